"""``flatmin measure``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from flatmin_lab.data.examples import DATA

if TYPE_CHECKING:
    from flatmin_lab.measure import MeasureSpec

_DATA_HELP = (
    f"The examples; those that go with the model if not given: {'; '.join(f'{n} ({s})' for n, s in DATA.items())}."
)


@dataclass(frozen=True)
class Measure:
    """Measure how curved the loss is at given weights; print a table and write a report with figures.

    Without --trace, --eigenvalues, --density, --layers and --gap all but the gap are measured. Files are read as
    tensors alone; nothing in them is executed.

    Attributes:
        weights: A file (.safetensors, or a state dict as .pt), the folder of a finished run of `flatmin train` or
            `flatmin compare`, or a folder of transformers.
        trace: The trace of the Hessian, exact where it can be, else to --rtol.
        eigenvalues: So many eigenvalues of the Hessian, those of largest magnitude.
        density: The density of the Hessian's spectrum.
        layers: The trace of each layer's block, and its share.
        gap: The rise of the loss under noise of this standard deviation in the weights.
        rtol: Relative standard error of the trace to reach.
        max_products: The most products for the trace; what they do not suffice for is told with its error.
        model: What the weights belong to; found by their names if not given.
        head_seed: For a transformer without a trained head: the seed of a fresh one.
        data: The examples; those that go with the model if not given.
        data_root: Folder of data that are not part of flatmin; $FLATMIN_DATA if not given.
        split: Those to train on, or those to test with.
        examples: How many, at most.
        batch_size: Examples in a batch: more take more memory and less time.
        seed: Seed of everything random.
        device: Where to compute, as torch names it: cpu, cuda, cuda:1, mps.
        out: The folder to write into; one under runs/measure if not given.
        json: Print the result as JSON, and nothing else, on standard output.
    """

    weights: tyro.conf.Positional[Path]
    trace: bool = False
    eigenvalues: int | None = None
    density: bool = False
    layers: bool = False
    gap: float | None = None
    rtol: float = 0.02
    max_products: int = 1000
    model: str = "auto"
    head_seed: int | None = None
    data: Annotated[str | None, tyro.conf.arg(help=_DATA_HELP)] = None
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

        from flatmin_lab.commands.present import present_sheet
        from flatmin_lab.measure import Measuring, folder_for, prepare
        from flatmin_lab.parts import PartBars

        messages = Console(stderr=True)
        spec, subject, examples = prepare(self._spec(), self.data_root)
        folder = folder_for(spec) if self.out is None else self.out
        with Measuring(folder, messages.print) as measuring:
            with PartBars(messages) as progress:
                sheet = measuring.run(spec, subject, examples, progress)
            present_sheet(sheet, folder, as_json=self.json)

    def _spec(self) -> MeasureSpec:
        from flatmin_lab.measure import MeasureSpec

        everything = not (self.trace or self.density or self.layers or self.eigenvalues or self.gap is not None)
        return MeasureSpec(
            weights=str(self.weights),
            trace=self.trace or everything,
            eigenvalues=5 if everything and self.eigenvalues is None else self.eigenvalues or 0,
            density=self.density or everything,
            layers=self.layers or everything,
            gap=self.gap,
            rtol=self.rtol,
            max_products=self.max_products,
            model=self.model,
            head_seed=self.head_seed,
            data=self.data,
            split=self.split,
            examples=self.examples,
            batch_size=self.batch_size,
            seed=self.seed,
            device=self.device,
        )
