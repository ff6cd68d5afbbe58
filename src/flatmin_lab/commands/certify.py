"""``flatmin certify``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from flatmin_lab.recipes.registry import CERTIFICATES

_WHAT_HELP = (
    "A finished run of `flatmin train` or `flatmin compare`, or a recipe that trains for a certificate: "
    f"{'; '.join(f'{name} ({summary})' for name, summary in CERTIFICATES.items())}."
)


@dataclass(frozen=True)
class Certify:
    """Bound the error on new data of noisy copies of a network, with a stated confidence (PAC-Bayes).

    A run is certified with the training data it had, against the network that it started from. A recipe learns its
    prior on one part of the data and certifies with the other; interrupted, it goes on where it was.

    Attributes:
        what: What to certify.
        sigma: Standard deviations of the noise. For a run those to try, each paid for; the grid of its method if not
            given. For a recipe those to train and certify at, with a figure; all certificates then hold at once.
        delta: For a run: one minus the confidence. Recipes have theirs fixed at 0.05.
        passes: For a run: passes over the data for the empirical risk.
        seed: For a recipe: seed of everything random.
        data_root: Folder of data that are not part of flatmin; $FLATMIN_DATA if not given.
        out: For a recipe: the folder to write into; one under runs/certify if not given.
        json: Print the result as JSON, and nothing else, on standard output.
    """

    what: Annotated[tyro.conf.Positional[str], tyro.conf.arg(help=_WHAT_HELP)]
    sigma: tuple[float, ...] = ()
    delta: float = 0.05
    passes: int = 10
    seed: int = 0
    data_root: Path | None = None
    out: Path | None = None
    json: bool = False

    def run(self) -> None:
        """Do it."""
        if self.what in CERTIFICATES:
            self._run_recipe()
            return
        from flatmin_lab.certification import certify_run
        from flatmin_lab.commands.present import present_certificate

        record = certify_run(Path(self.what), sigmas=self.sigma or None, delta=self.delta, num_passes=self.passes)
        present_certificate(record, as_json=self.json)

    def _run_recipe(self) -> None:
        from rich.console import Console

        from flatmin_lab.certification import certify_recipe, certify_sweep
        from flatmin_lab.commands.present import present_certificate, present_sweep
        from flatmin_lab.parts import PartBars

        messages = Console(stderr=True)
        several = "-sigmas" if self.sigma else ""
        folder = self.out or Path("runs/certify") / f"{self.what}{several}-seed{self.seed}"
        bars = PartBars(messages)
        common: dict[str, Any] = {"root": self.data_root, "seed": self.seed, "watch": bars, "note": messages.print}
        if self.sigma:
            with bars:
                sweep = certify_sweep(self.what, self.sigma, folder, **common)
            present_sweep(sweep, folder, as_json=self.json)
        else:
            with bars:
                record = certify_recipe(self.what, folder, **common)
            present_certificate(record, as_json=self.json)
