"""What ``flatmin landscape`` was asked for and what it found, as it is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationError

from flatmin_lab.errors import StoreError
from flatmin_lab.files import explained
from flatmin_lab.spec import Value

if TYPE_CHECKING:
    from pathlib import Path

    from flatmin.landscape import Surface

RECORD = "landscape.json"
"""The file of a folder that holds everything that was found."""

Kind = Literal["random", "eigenvectors", "between"]
Unit = Literal["filters", "distance"]


class LandscapeSpec(Value):
    """What ``flatmin landscape`` was asked for."""

    weights: tuple[str, ...] = Field(description="files or folders, as they were named")
    directions: Kind = "random"
    dimensions: Literal[1, 2] | None = Field(default=None, description="None for 2, and 1 between two solutions")
    unit: Unit | None = Field(default=None, description="None for filters if random, and distance if eigenvectors")
    points: int = Field(default=21, description="along each direction")
    reach: float | None = Field(default=None, description="coordinates on either side; None for what suits the unit")
    model: str = "auto"
    head_seed: int | None = Field(default=None, description="seed of the head of a transformer that has none")
    data: str | None = Field(default=None, description="a key of DATA; None for that which goes with the model")
    split: Literal["train", "test"] = "train"
    examples: int = 512
    batch_size: int = 128
    seed: int = 0
    device: str = "cpu"


class Mark(Value):
    """Where another solution is seen in a plane, and how far it is off the plane."""

    label: str
    at: tuple[float, float]
    distance: float


class Slice(Value):
    """The loss on one line or plane."""

    label: str
    weights: str
    method: str | None = Field(default=None, description="of the run that the weights are of")
    kind: str
    digest: str = Field(description="of the weights")
    notes: tuple[str, ...] = ()
    loss_there: float = Field(description="at the weights themselves")
    axes: tuple[tuple[float, ...], ...] = Field(description="coordinates along each direction")
    lengths: tuple[float, ...] = Field(description="of each direction, in units of the weights")
    loss: tuple[float, ...] = Field(description="row by row; the second direction changes fastest")
    eigenvalues: tuple[float, ...] = ()
    eigenvalue_errors: tuple[float, ...] = ()
    marks: tuple[Mark, ...] = ()

    def surface(self) -> Surface:
        """Return it as the library has it, without the directions, which are not kept here."""
        import torch

        from flatmin.landscape import Surface

        axes = tuple(torch.tensor(axis, dtype=torch.float64) for axis in self.axes)
        loss = torch.tensor(self.loss, dtype=torch.float64).view([len(axis) for axis in axes])
        return Surface(loss=loss, axes=axes, directions=tuple({} for _ in axes), lengths=self.lengths)


class Landscape(Value):
    """Lines or planes through one or more solutions, which have one scale."""

    spec: LandscapeSpec
    count: int = Field(description="examples that the loss is the mean over")
    available: int = Field(description="examples of the split from which they were taken")
    slices: tuple[Slice, ...]
    environment: dict[str, str]


def load_landscape(folder: Path) -> Landscape:
    """Read what was found.

    Raises:
        StoreError: There is nothing, or it cannot be read.
    """
    path = folder / RECORD
    with explained(path, "read"):
        try:
            return Landscape.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise StoreError(
                f"{folder} holds no finished landscape: there is no {RECORD} in it. Likely cause: it was interrupted. "
                "Give the same `flatmin landscape` again."
            ) from None
        except ValidationError as error:
            raise StoreError(
                f"{path} cannot be read ({error.error_count()} fields). Likely cause: it was edited, or written by "
                "another version of flatmin. Delete it and give the command again; finished points are kept."
            ) from error
