"""One model measured: its weights and its examples found, measured, and kept with all that is needed to do it again."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field

from flatmin.errors import ArgumentError, FlatminError
from flatmin.measures.joint import measure
from flatmin.measures.measurement import Measurement
from flatmin_lab.data.examples import Examples, Wanted, load_examples
from flatmin_lab.environment import environment
from flatmin_lab.errors import StoreError
from flatmin_lab.files import explained, write_whole
from flatmin_lab.fit import accuracy, check_fit
from flatmin_lab.lock import held
from flatmin_lab.models.loading import Subject, folder_name, load_subject
from flatmin_lab.run import usable_device
from flatmin_lab.shelf import Shelf
from flatmin_lab.spec import Value

if TYPE_CHECKING:
    from collections.abc import Callable

    from flatmin.measures.joint import Progress

RECORD = "measurement.json"
"""The file of a folder that holds everything that was measured."""

_PARTS = "parts"


class MeasureSpec(Value):
    """What ``flatmin measure`` was asked for."""

    weights: str = Field(description="file or folder, as it was named")
    model: str = "auto"
    head_seed: int | None = Field(default=None, description="seed of the head of a transformer that has none")
    data: str | None = Field(default=None, description="a key of DATA; None for that which goes with the model")
    split: Literal["train", "test"] = "train"
    examples: int = 512
    batch_size: int = 128
    trace: bool = True
    eigenvalues: int = Field(default=5, description="how many; 0 for none")
    density: bool = True
    layers: bool = True
    gap: float | None = Field(default=None, description="sigma of the noise; None for no gap")
    rtol: float = Field(default=0.02, description="relative standard error of the trace to reach")
    max_products: int = Field(default=1000, description="the most that the trace may take")
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True)
class Sheet:
    """A measurement with what it was made of; all that a report needs.

    Attributes:
        spec: What was asked for, the data set named.
        kind: The network, as :class:`~flatmin_lab.models.loading.Subject` has it.
        digest: Of its weights.
        notes: What a reader of the numbers must know.
        accuracy: Share of the examples that are classified rightly.
        available: Examples of the split from which those measured were taken.
        measurement: The numbers.
        environment: Machine and software.
    """

    spec: MeasureSpec
    kind: str
    digest: str
    notes: tuple[str, ...]
    accuracy: float
    available: int
    measurement: Measurement
    environment: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return it as strict JSON has it."""
        return {
            "spec": self.spec.model_dump(mode="json"),
            "model": {"kind": self.kind, "digest": self.digest, "notes": list(self.notes)},
            "accuracy": self.accuracy,
            "available": self.available,
            "measurement": self.measurement.to_dict(),
            "environment": self.environment,
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Sheet:
        """Return what :meth:`to_dict` was called on."""
        model = record["model"]
        return cls(
            spec=MeasureSpec.model_validate(record["spec"]),
            kind=model["kind"],
            digest=model["digest"],
            notes=tuple(map(str, model["notes"])),
            accuracy=float(record["accuracy"]),
            available=int(record["available"]),
            measurement=Measurement.from_dict(record["measurement"]),
            environment=record["environment"],
        )


def load_sheet(folder: Path) -> Sheet:
    """Read what was measured into a folder.

    Raises:
        StoreError: There is nothing, or it cannot be read.
    """
    path = folder / RECORD
    with explained(path, "read"):
        try:
            return Sheet.from_dict(json.loads(path.read_bytes()))
        except FileNotFoundError:
            raise StoreError(
                f"{folder} holds no finished measurement: there is no {RECORD} in it. Likely cause: it was "
                "interrupted. Give the same `flatmin measure` again."
            ) from None
        except (KeyError, ValueError, TypeError, FlatminError) as error:
            raise StoreError(
                f"{path} cannot be read ({type(error).__name__}). Likely cause: it was edited, or written by another "
                "version of flatmin. Delete it and measure again; finished parts are kept."
            ) from error


class Measuring:
    """A folder while something is measured into it.

    Args:
        folder: New, empty, or that of an earlier measurement.
        note: Told in one line about everything unusual.

    Raises:
        LockedError: On entering, where another process works in the folder.
        StoreError: On entering, where the folder holds something else or cannot be written.
    """

    def __init__(self, folder: Path, note: Callable[[str], object] = lambda _: None) -> None:
        self.folder = folder
        self._note = note
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(held(self.folder, "measurement", {RECORD, _PARTS}))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, spec: MeasureSpec, subject: Subject, examples: Examples, progress: Progress | None = None) -> Sheet:
        """Measure what is not yet measured, and keep it.

        Args:
            spec: What is asked for.
            subject: The model.
            examples: What to measure it on.
            progress: Told how far each part is.

        Returns:
            The numbers.

        Raises:
            FlatminError: Something cannot be measured; the message says why.
        """
        device = usable_device(spec.device)
        model = subject.model.to(device)
        measurement = measure(
            model,
            examples.loss_fn,
            examples.batches,
            trace=spec.trace,
            eigenvalues=spec.eigenvalues,
            density=spec.density,
            layers=spec.layers,
            gap=spec.gap,
            rtol=spec.rtol,
            max_matvecs=spec.max_products,
            seed=spec.seed,
            progress=progress,
            store=Shelf(self.folder / _PARTS, self._note),
        )
        sheet = Sheet(
            spec=spec,
            kind=subject.kind,
            digest=subject.digest,
            notes=subject.notes,
            accuracy=accuracy(model, examples, device),
            available=examples.available,
            measurement=measurement,
            environment=environment(),
        )
        write_whole(self.folder / RECORD, json.dumps(sheet.to_dict(), indent=1, allow_nan=False).encode())
        return sheet


def prepare(spec: MeasureSpec, root: Path | None) -> tuple[MeasureSpec, Subject, Examples]:
    """Load the model and the examples that ``spec`` names.

    Args:
        spec: What is asked for.
        root: The data root; None for that of the environment.

    Returns:
        The specification with the data set named, the model, the examples.

    Raises:
        FlatminError: One of them is not there or does not fit.
    """
    if not (spec.trace or spec.eigenvalues or spec.density or spec.layers or spec.gap is not None):
        raise ArgumentError(
            "nothing was asked for. Name one or more of --trace, --eigenvalues, --density, --layers, --gap."
        )
    usable_device(spec.device)
    subject = load_subject(Path(spec.weights), kind=spec.model, head_seed=spec.head_seed)
    data = spec.data or subject.data
    wanted = Wanted(data, spec.split, spec.examples, spec.batch_size, root, subject.seed)
    examples = load_examples(wanted, subject.tokenizer)
    check_fit(subject, examples, data)
    return spec.model_copy(update={"data": data}), subject, examples


def folder_for(spec: MeasureSpec) -> Path:
    """Return where a measurement goes if nothing else is said: a folder called after the weights."""
    return Path("runs/measure") / folder_name(Path(spec.weights))
