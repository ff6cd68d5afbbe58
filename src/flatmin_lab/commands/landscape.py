"""``flatmin landscape``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

if TYPE_CHECKING:
    from flatmin_lab.landscapes.record import LandscapeSpec


@dataclass(frozen=True)
class Landscape:
    """Evaluate the loss on lines or planes through one or more solutions, and write a page on which planes turn.

    Several solutions are drawn on one scale. Interrupted, it goes on where it was. Files are read as tensors alone;
    nothing in them is executed.

    Attributes:
        weights: A file (.safetensors, or a state dict as .pt), the folder of a finished run of `flatmin train` or
            `flatmin compare`, or a folder of transformers.
        others: More of them.
        directions: Random ones, eigenvectors of the Hessian, or between the first solution and the others.
        dimensions: Lines or planes; planes if not given, and a line between two solutions. A plane between goes through
            three, or as near as can be to more.
        unit: What a step of 1 is: the lengths of the filters, or a distance of 1. Filters for random directions, and a
            distance for eigenvectors, if not given.
        points: Points along each direction.
        reach: How far on either side: 1 if not given, or for random directions by distance as far as filters would
            reach; beyond the ends of a line between two, 0.25.
        model: What the weights belong to; found by their names if not given.
        head_seed: For a transformer without a trained head: the seed of a fresh one.
        data: The examples, as for `flatmin measure`; those that go with the first model if not given.
        data_root: Folder of data that are not part of flatmin; $FLATMIN_DATA if not given.
        split: Those to train on, or those to test with.
        examples: How many, at most.
        batch_size: Examples in a batch: more take more memory and less time.
        seed: Seed of everything random.
        device: Where to compute, as torch names it: cpu, cuda, cuda:1, mps.
        out: The folder to write into; one under runs/landscape if not given.
        json: Print the result as JSON, and nothing else, on standard output.
    """

    weights: tyro.conf.Positional[Path]
    others: tyro.conf.Positional[tuple[Path, ...]] = ()
    directions: Literal["random", "eigenvectors", "between"] = "random"
    dimensions: Literal[1, 2] | None = None
    unit: Literal["filters", "distance"] | None = None
    points: int = 21
    reach: float | None = None
    model: str = "auto"
    head_seed: int | None = None
    data: str | None = None
    data_root: Path | None = None
    split: Literal["train", "test"] = "train"
    examples: int = 512
    batch_size: int = 128
    seed: int = 0
    device: str = "cpu"
    out: Path | None = None
    json: bool = False

    def run(self) -> None:
        """Do it."""
        from rich.console import Console

        from flatmin_lab.commands.present import present_landscape
        from flatmin_lab.landscapes.survey import folder_for, held, prepare, survey
        from flatmin_lab.parts import PartBars

        messages = Console(stderr=True)
        spec, solutions, examples = prepare(self._spec(), self.data_root)
        folder = folder_for(spec) if self.out is None else self.out
        with held(folder):
            with PartBars(messages) as progress:
                found = survey(spec, solutions, examples, folder, progress=progress, note=messages.print)
            present_landscape(found, folder, as_json=self.json)

    def _spec(self) -> LandscapeSpec:
        from flatmin_lab.landscapes.record import LandscapeSpec

        return LandscapeSpec(
            weights=tuple(map(str, (self.weights, *self.others))),
            directions=self.directions,
            dimensions=self.dimensions,
            unit=self.unit,
            points=self.points,
            reach=self.reach,
            model=self.model,
            head_seed=self.head_seed,
            data=self.data,
            split=self.split,
            examples=self.examples,
            batch_size=self.batch_size,
            seed=self.seed,
            device=self.device,
        )
