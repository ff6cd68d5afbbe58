r"""The loss on a line or a plane through the weights: what there is to see of a minimum.

- Li, Xu, Taylor, Studer, Goldstein. Visualizing the Loss Landscape of Neural Nets. NeurIPS 2018, arXiv:1712.09913.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flatmin.checks import whole
from flatmin.curvature.layout import Layout, trainable_parameters
from flatmin.curvature.risk import EmpiricalRisk
from flatmin.errors import ArgumentError, ArgumentTypeError
from flatmin.noise import Gaussian
from flatmin.perturb.displace import Displacer
from flatmin.streams import Stream
from flatmin.vectors import Vector

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flatmin.curvature.data import LossFunction
    from flatmin.curvature.observe import Mode

__all__ = ["Direction", "Surface", "random_directions", "surface"]

Direction = Mapping[str, Tensor]
"""A displacement of the weights: parameter names to tensors of their shapes; a missing parameter stays."""

_STREAM = int.from_bytes(b"view")  # far from the steps of a training run, whose noise must not come back here


@dataclass(frozen=True, kw_only=True, eq=False)
class Surface:
    """The loss on a line or a plane through the weights.

    Attributes:
        loss: f(W + Σ_i c_i D_i), float64. On a plane of shape (n, n), ``loss[i, j]`` at ``coordinates[i]`` along the
            first direction and ``coordinates[j]`` along the second; on a line of shape (n,). NaN and infinity are kept.
        coordinates: Multiples of the directions, shape (n,), float64.
        directions: D_1 and, on a plane, D_2, as named tensors.
    """

    loss: Tensor
    coordinates: Tensor
    directions: tuple[Direction, ...]

    def __repr__(self) -> str:
        """Show size, range and lowest loss in one line."""
        size = " x ".join(map(str, self.loss.shape))
        low, high = float(self.coordinates.min()), float(self.coordinates.max())
        return f"Surface({size} points, coordinates {low:g} to {high:g}, lowest loss {float(self.loss.min()):.4g})"


def random_directions(model: nn.Module, num_directions: int = 2, *, seed: int = 0) -> tuple[dict[str, Tensor], ...]:
    r"""Draw random directions in which a step of 1 moves every filter by its own length (Li et al. 2018, section 4).

    .. math:: D_{l,i} \leftarrow \frac{D_{l,i}}{\|D_{l,i}\|} \|W_{l,i}\|, \qquad D \sim N(0, I)

    for filter i of layer l: a slice of the weight along its first dimension, that is one output channel of a
    convolution, one unit of a linear layer, one row of an embedding. Rescaling filters, which leaves networks with
    ReLU or normalisation unchanged, then leaves the picture unchanged too. Parameters with fewer than two dimensions
    (biases, scales and shifts of normalisation layers) get zero, as in the authors' figures.

    Args:
        model: The model; parameters that do not require gradients are left out.
        num_directions: How many.
        seed: Seed of the draw. The first direction is the same however many are drawn.

    Returns:
        One dict of parameter names to tensors for each direction.

    Raises:
        ArgumentError: ``num_directions`` is below 1, or no parameter requires gradients.

    Example:
        >>> model = nn.Linear(4, 3)
        >>> direction, = random_directions(model, 1)
        >>> torch.allclose(direction["weight"].norm(dim=1), model.weight.norm(dim=1))
        True
        >>> direction["bias"]
        tensor([0., 0., 0.])
    """
    whole("num_directions", num_directions, minimum=1, hint="A line has one direction and a plane two.")
    whole("seed", seed, minimum=0, hint="It is the seed of the directions.")
    weights = trainable_parameters(model)
    streams = (Stream(seed).child(_STREAM, j) for j in range(num_directions))
    return tuple(
        {name: _like_filters(w.detach(), stream.generator(i, w.device)) for i, (name, w) in enumerate(weights.items())}
        for stream in streams
    )


def _like_filters(weight: Tensor, generator: torch.Generator) -> Tensor:
    if weight.dim() < 2:
        return torch.zeros_like(weight)
    drawn = Gaussian().sample_(torch.empty_like(weight, memory_format=torch.contiguous_format), generator)
    rows, filters = drawn.flatten(1), weight.flatten(1)
    return (rows * (filters.norm(dim=1) / rows.norm(dim=1)).unsqueeze(1)).view(weight.shape)


def surface(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterable[Any],
    *,
    coordinates: Sequence[float] | Tensor,
    directions: Sequence[Direction] | None = None,
    seed: int = 0,
    mode: Mode = "eval",
) -> Surface:
    r"""Evaluate the loss on a grid over a line or a plane through the weights.

    .. math:: (a, b) \mapsto f(W + a D_1 + b D_2)

    Weights are restored bit for bit, by exceptions too; nothing else is changed either. Losses that overflow are part
    of the picture and no error. Cost: n² evaluations of the loss on all data (n on a line); memory: four copies of the
    parameters.

    Args:
        model: The model.
        loss_fn: ``loss_fn(model(inputs), targets)``, or ``loss_fn(output, batch)`` for batches that are mappings; the
            mean over the examples of the batch.
        batches: A ``DataLoader``, a list, or another re-iterable of (inputs, targets) or of mappings.
        coordinates: The multiples of each direction to evaluate at, shape (n,).
        directions: One direction for a line, two for a plane: dicts of parameter names to tensors, such as
            ``H.layout.split(eigenvector)`` or the difference of two trained models. Default: two random ones.
        seed: Seed of the random directions.
        mode: ``"eval"``: every module in evaluation mode; ``"current"``: as it stands.

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
    grid = torch.as_tensor(coordinates, dtype=torch.float64).cpu()
    if grid.dim() != 1 or grid.numel() == 0 or not grid.isfinite().all():
        raise ArgumentError(
            f"coordinates has shape {tuple(grid.shape)}, but finite numbers in one dimension are needed, such as "
            "torch.linspace(-1, 1, 21)."
        )
    risk = EmpiricalRisk(model, loss_fn, batches, mode=mode)
    directions = random_directions(risk.model, seed=seed) if directions is None else tuple(directions)
    axes = _axes(directions, risk)
    with risk.observed():
        risk.check_weights()
        displacer = Displacer(dict(enumerate(risk.parameters.values())))
        try:
            losses = [_loss_at(risk, displacer, axes, point) for point in product(grid.tolist(), repeat=len(axes))]
        finally:
            displacer.release()
    loss = torch.tensor(losses, dtype=torch.float64).view((len(grid),) * len(axes))
    return Surface(loss=loss, coordinates=grid, directions=directions)


def _loss_at(risk: EmpiricalRisk, displacer: Displacer, axes: list[Vector], point: tuple[float, ...]) -> float:
    """Return the loss at the ``point`` of the line or the plane."""
    offset = point[0] * axes[0]
    for multiple, axis in zip(point[1:], axes[1:], strict=True):
        offset += multiple * axis
    displacer.displace(offset)
    return risk.mean(finite=False)


def _axes(directions: Sequence[Direction], risk: EmpiricalRisk) -> list[Vector]:
    """Return directions as vectors over the positions of the parameters."""
    if len(directions) not in (1, 2):
        raise ArgumentError(f"there are {len(directions)} directions, but a line has 1 and a plane 2.")
    position = {name: i for i, name in enumerate(risk.parameters)}
    axes = []
    for direction in directions:
        if not isinstance(direction, Mapping):
            raise ArgumentTypeError(
                f"a direction is a {type(direction).__name__}, but a dict of parameter names to tensors is needed. "
                "A flat vector becomes one by Layout.split."
            )
        Layout.of(risk.parameters).check(direction)
        likes = {name: risk.parameters[name] for name in direction}
        axes.append(Vector({position[n]: t.detach().to(likes[n].device, likes[n].dtype) for n, t in direction.items()}))
    return axes
