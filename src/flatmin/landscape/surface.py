r"""The loss on a line or a plane through the weights: what there is to see of a minimum.

- Li, Xu, Taylor, Studer, Goldstein. Visualizing the Loss Landscape of Neural Nets. NeurIPS 2018, arXiv:1712.09913.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence, Sized
from contextlib import closing
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from flatmin.curvature.risk import EmpiricalRisk
from flatmin.errors import ArgumentError
from flatmin.landscape.directions import Direction, check_direction, length_of, random_directions
from flatmin.landscape.evaluation import Points
from flatmin.landscape.states import floating_state
from flatmin.perturb.displace import Displacer
from flatmin.vectors import Vector

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

    from flatmin.curvature.data import LossFunction
    from flatmin.curvature.observe import Mode
    from flatmin.landscape.evaluation import Progress

__all__ = ["Surface", "surface"]

Coordinates = Sequence[float] | Tensor
"""Multiples of a direction, shape (n,)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Surface:
    """The loss on a line or a plane through the weights.

    Attributes:
        loss: f(W + Σ_i c_i D_i), float64. On a plane of shape (n, m), ``loss[i, j]`` at ``axes[0][i]`` along the first
            direction and ``axes[1][j]`` along the second; on a line of shape (n,). NaN and infinity are kept.
        axes: Multiples of each direction, float64.
        directions: D_1 and, on a plane, D_2, as named tensors.
        lengths: The Euclidean length of each direction, over parameters alone: a step of 1 moves the weights so far.

    Example:
        >>> Surface(loss=torch.tensor([1.0, 0.0, 1.0]), axes=(torch.tensor([-1.0, 0.0, 1.0]),),
        ...         directions=({"weight": torch.ones(1)},), lengths=(1.0,))
        Surface(3 points, coordinates -1 to 1, lowest loss 0)
    """

    loss: Tensor
    axes: tuple[Tensor, ...]
    directions: tuple[Direction, ...]
    lengths: tuple[float, ...]

    @property
    def coordinates(self) -> Tensor:
        """Multiples of the first direction; on a plane with one grid for both, of the second too."""
        return self.axes[0]

    def __repr__(self) -> str:
        """Show size, range and lowest loss in one line."""
        size = " x ".join(map(str, self.loss.shape))
        ranges = " and ".join(dict.fromkeys(f"{float(axis.min()):g} to {float(axis.max()):g}" for axis in self.axes))
        return f"Surface({size} points, coordinates {ranges}, lowest loss {float(self.loss.min()):.4g})"


def surface(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterable[Any],
    *,
    coordinates: Coordinates | Sequence[Coordinates],
    directions: Sequence[Direction] | None = None,
    seed: int = 0,
    mode: Mode = "eval",
    progress: Progress | None = None,
    store: MutableMapping[str, Any] | None = None,
) -> Surface:
    r"""Evaluate the loss on a grid over a line or a plane through the weights.

    .. math:: (a, b) \mapsto f(W + a D_1 + b D_2)

    Weights are restored bit for bit, by exceptions too; nothing else is changed either. Losses that overflow are part
    of the picture and no error. Cost: n² evaluations of the loss on all data (n on a line), which are read once;
    memory: four copies of what is moved, and 256 MiB of data at most.

    Args:
        model: The model.
        loss_fn: ``loss_fn(model(inputs), targets)``, or ``loss_fn(output, batch)`` for batches that are mappings; the
            mean over the examples of the batch.
        batches: A ``DataLoader``, a list, or another re-iterable of (inputs, targets) or of mappings.
        coordinates: The multiples of each direction to evaluate at, shape (n,); or a pair of them, one for each.
        directions: One direction for a line, two for a plane: dicts of names to tensors, such as
            :func:`~flatmin.landscape.eigenvector_directions` or :func:`~flatmin.landscape.difference` returns. They
            move parameters, and buffers that they name. Default: two random ones.
        seed: Seed of the random directions.
        mode: ``"eval"``: every module in evaluation mode; ``"current"``: as it stands.
        progress: Told how many batches were evaluated, over all points, and how many there are; None for the latter
            where the data do not know their length.
        store: A dict, or anything like one that outlives the process: what was computed is kept in it once a second,
            and the same call with the same store goes on from there.

    Returns:
        Losses, coordinates and directions.

    Raises:
        ArgumentError: Coordinates are empty or not finite, there are neither one nor two directions, or one does not
            fit the model.
        ArgumentTypeError: An argument is of the wrong kind.
        DataError: The data are empty, change between passes, or have an unknown form.
        NonFiniteError: The weights themselves are not finite.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> data = [(torch.eye(2), model.weight.detach().T.clone())]            # the weights are the minimum
        >>> plane = surface(model, nn.functional.mse_loss, data, coordinates=[-1.0, 0.0, 1.0])
        >>> plane.loss.shape, int(plane.loss.argmin())
        (torch.Size([3, 3]), 4)
    """
    risk = EmpiricalRisk(model, loss_fn, batches, mode=mode)
    chosen = random_directions(risk.model, seed=seed) if directions is None else tuple(directions)
    if len(chosen) not in (1, 2):
        raise ArgumentError(f"there are {len(chosen)} directions, but a line has 1 and a plane 2.")
    axes = _axes(coordinates, len(chosen))
    movable = floating_state(risk.model)
    for direction in chosen:
        check_direction(direction, movable)
    places = list(product(*(axis.tolist() for axis in axes)))
    with risk.observed(), closing(_Moves(movable, chosen, places)) as moves:
        risk.check_weights()
        points = Points(
            risk,
            moves.to,
            len(places),
            progress=progress,
            num_batches=_length(batches),
            store=store,
            question="" if store is None else _digest(chosen, axes, mode),
        )
        losses = points.losses()
    lengths = tuple(length_of(direction, risk.parameters) for direction in chosen)
    loss = losses.view([len(axis) for axis in axes])
    return Surface(loss=loss, axes=axes, directions=chosen, lengths=lengths)


class _Moves:
    """Moves weights, and buffers that go along, to places on a line or a plane; closing it puts them back."""

    def __init__(
        self, movable: Mapping[str, Tensor], directions: Sequence[Direction], places: Sequence[tuple[float, ...]]
    ) -> None:
        position = {name: i for i, name in enumerate(movable)}
        moved = {position[n]: movable[n] for direction in directions for n in direction}
        self._axes = [
            Vector({position[n]: t.detach().to(movable[n].device, movable[n].dtype) for n, t in direction.items()})
            for direction in directions
        ]
        self._places = places
        self._displacer = Displacer(moved)

    def to(self, number: int) -> None:
        """Move to the place of this number."""
        first, *others = self._places[number]
        offset = first * self._axes[0]
        for multiple, axis in zip(others, self._axes[1:], strict=True):
            offset += multiple * axis
        self._displacer.displace(offset)

    def close(self) -> None:
        """Put everything back."""
        self._displacer.release()


def _axes(coordinates: Any, number: int) -> tuple[Tensor, ...]:
    """Return the coordinates along each of ``number`` directions, one grid being that of all."""
    several = not isinstance(coordinates, Tensor) and any(_is_many(item) for item in coordinates)
    axes = tuple(torch.as_tensor(c, dtype=torch.float64).cpu() for c in (coordinates if several else [coordinates]))
    for axis in axes:
        if axis.dim() != 1 or axis.numel() == 0 or not axis.isfinite().all():
            raise ArgumentError(
                f"coordinates has shape {tuple(axis.shape)}, but finite numbers in one dimension are needed, such as "
                "torch.linspace(-1, 1, 21), or one such grid for each direction."
            )
    if several and len(axes) != number:
        raise ArgumentError(f"there are {len(axes)} grids of coordinates, but the number of directions is {number}.")
    return axes if several else axes * number


def _is_many(item: Any) -> bool:
    return isinstance(item, Sequence) or (isinstance(item, Tensor) and item.dim() > 0)


def _length(batches: object) -> int | None:
    try:
        return len(cast("Sized", batches))
    except TypeError:  # some have a __len__ that says so
        return None


def _digest(directions: Sequence[Direction], axes: Sequence[Tensor], mode: str) -> str:
    """Return a text that tells this picture from those along other directions or at other places."""
    digest = hashlib.sha256(mode.encode())
    for axis in axes:
        digest.update(axis.numpy().tobytes())
    for direction in directions:
        for name, tensor in direction.items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
