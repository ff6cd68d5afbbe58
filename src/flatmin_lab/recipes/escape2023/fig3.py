"""Figure 3: from a start that fits the data and generalizes badly, RS against SA, and SA by batch size.

Radii are chosen on validation data at the end of a walk, for every method and batch size from as many values. The start
and every finished walk are kept, so that what was interrupted goes on where it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

import flatmin
from flatmin.checks import choice
from flatmin_lab.environment import code_digest
from flatmin_lab.recipes.escape2023.adversarial import drawn, fit, mislead
from flatmin_lab.recipes.escape2023.fig3_kept import Kept, Start, digest
from flatmin_lab.recipes.escape2023.fig3_results import Chosen, Results
from flatmin_lab.recipes.escape2023.fig3_scales import CLASSES, LEARNING_RATE, SIZES, Scale, Way, require
from flatmin_lab.recipes.escape2023.fig3_tables import outcome
from flatmin_lab.recipes.escape2023.fig3_walks import Asked, Observer, Walk, walk
from flatmin_lab.seeds import derive

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from flatmin_lab.data.splits import Splits
    from flatmin_lab.recipes.outcome import Outcome, Watch

__all__ = ["SIZES", "fig3", "require"]

_TASK = "escape.fig3"


def fig3(size: str, seed: int, watch: Watch, folder: Path, tasks: Sequence[str] = ()) -> Outcome:
    """Make the start, choose radii, and walk with them on every seed.

    Args:
        size: ``"toy"``: a perceptron on scikit-learn's digits; ``"small"``: a narrow ResNet-18 on images from the data
            root; ``"paper"``: ResNet-18 on CIFAR-10, which takes a GPU.
        seed: Of data, start and the first of the walks.
        watch: Told of the progress.
        folder: Where the start and finished walks are kept.
        tasks: There is one, ``"escape.fig3"``.

    Raises:
        ArgumentError: There is no such size or task.
        DataError: The data are not there.
        LabError: There is no GPU for ``"paper"``, or a start could not be fitted.
    """
    for name in tasks:
        choice("task", name, (_TASK,))
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        watch(text, 1, 1)

    return outcome(Course(require(size), seed, Kept(folder, note), watch).results(notes))


@dataclass
class Course:
    """The order of things at one size.

    Args:
        scale: The size.
        seed: Of everything random.
        kept: The folder.
        watch: Told of the progress.
    """

    scale: Scale
    seed: int
    kept: Kept
    watch: Watch

    def __post_init__(self) -> None:
        self._device = torch.device(self.scale.device)
        self._splits: Splits = self.scale.load(self.seed).to(self._device)
        self._observer = Observer(
            self._splits, self.scale.measured, self.scale.num_matvecs, derive(self.seed, "fig3: trace")
        )
        self._done, self._origin = 0, ""

    def results(self, notes: Sequence[str]) -> Results:
        """Do what is not yet stored, and return everything."""
        start, weights = self._start()
        self._origin = digest(start.made_of, self.scale.measured, self.scale.num_matvecs)
        chosen = tuple(self._chosen(way, start, weights) for way in self.scale.ways)
        return Results(self.scale, start, chosen, tuple(notes))

    def _start(self) -> tuple[Start, dict[str, Tensor]]:
        code = f"{flatmin.__version__} {code_digest()}"
        made_of = digest(self.scale.recipe(), self.seed, self._splits.digest, self.scale.device, code)
        found = self.kept.start(made_of)
        return found or self._made(made_of)

    def _made(self, made_of: str) -> tuple[Start, dict[str, Tensor]]:
        scale, train = self.scale, self._splits.train
        fresh = drawn(scale.network, self.seed).to(self._device)
        fit(fresh, train, scale.fresh, seed=self.seed, what="fresh start", watch=self.watch)
        model = drawn(scale.network, self.seed).to(self._device)
        first, then = mislead(model, train, CLASSES, scale.misleading, seed=self.seed, watch=self.watch)
        start = Start(
            made_of=made_of,
            random_share=first.share,
            random_epochs=first.epochs,
            true_epochs=then.epochs,
            gradients=first.gradients + then.gradients,
            look=self._observer.look(model),
            fresh=self._observer.look(fresh),
        )
        weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}
        self.kept.keep_start(start, weights)
        return start, weights

    def _chosen(self, way: Way, start: Start, weights: dict[str, Tensor]) -> Chosen:
        """Walk with every radius on the first seeds, and with the best on all."""

        def walked(rho: float, seeds: int) -> tuple[Walk, ...]:
            return tuple(self._walk(way, rho, self.seed + i, start, weights) for i in range(seeds))

        tried = {rho: walked(rho, self.scale.tuning_seeds) for rho in way.radii}
        best = max(tried, key=lambda rho: _validation(tried[rho])) if tried else 0.0
        return Chosen(way, best, tried, walked(best, self.scale.seeds))

    def _walk(self, way: Way, rho: float, seed: int, start: Start, weights: dict[str, Tensor]) -> Walk:
        scale = self.scale
        asked = Asked(
            method=way.method,
            batch_size=way.batch_size,
            rho=rho,
            seed=seed,
            num_steps=scale.num_steps,
            learning_rate=LEARNING_RATE,
            origin=self._origin,
        )
        found = self.kept.walk(asked)
        if found is None:
            model = drawn(scale.network, self.seed).to(self._device)
            model.load_state_dict(weights)
            found = walk(
                model,
                asked,
                self._observer,
                start.look,
                looks=scale.looks,
                traces=scale.traces,
                watch=self._watched(asked.name),
            )
            self.kept.keep_walk(found)
        return found

    def _watched(self, name: str) -> Callable[[int], None]:
        return lambda step: self.watch(name, step, self.scale.num_steps)


def _validation(walks: Sequence[Walk]) -> float:
    """Mean validation accuracy at the end; what diverged is the worst."""
    if any(found.diverged for found in walks):
        return float("-inf")
    return sum(found.looks[-1].validation_accuracy for found in walks) / len(walks)
