r"""Directions in weight space to look along: random ones and eigenvectors, and what length a step along them has.

- Li, Xu, Taylor, Studer, Goldstein. Visualizing the Loss Landscape of Neural Nets. NeurIPS 2018, arXiv:1712.09913.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from flatmin.checks import whole
from flatmin.curvature import EigenPairs, top_eigenvalues
from flatmin.curvature.data import unwrapped
from flatmin.curvature.layout import trainable_parameters
from flatmin.errors import ArgumentError, ArgumentTypeError
from flatmin.noise import Gaussian
from flatmin.streams import Stream

if TYPE_CHECKING:
    from flatmin.curvature.operators import LinearOperator

Direction = Mapping[str, Tensor]
"""A displacement: names of parameters, or of buffers that go along, to tensors of their shapes; what is missing stays.
"""

_STREAM = int.from_bytes(b"view")  # far from the steps of a training run, whose noise must not come back here


def random_directions(model: nn.Module, num_directions: int = 2, *, seed: int = 0) -> tuple[dict[str, Tensor], ...]:
    r"""Draw random directions in which a step of 1 moves every filter by its own length (Li et al. 2018, section 4).

    .. math:: D_{l,i} \leftarrow \frac{D_{l,i}}{\|D_{l,i}\|} \|W_{l,i}\|, \qquad D \sim N(0, I)

    See :func:`filter_normalized` for what a filter is and what this is good for.

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
    weights = trainable_parameters(unwrapped(model))
    streams = (Stream(seed).child(_STREAM, j) for j in range(num_directions))
    return tuple(
        {name: _like_filters(_drawn(w, stream, i), w.detach()) for i, (name, w) in enumerate(weights.items())}
        for stream in streams
    )


def eigenvector_directions(
    source: EigenPairs | LinearOperator, num_directions: int = 2, *, like: nn.Module | None = None, seed: int = 0
) -> tuple[dict[str, Tensor], ...]:
    r"""Return eigenvectors of the Hessian as directions, those of largest magnitude first.

    Each has length 1, so that a coordinate along it is a distance in weight space, and the second derivative of the
    slice in its middle is the eigenvalue: :math:`\frac{d^2}{da^2} f(W + a v_i) \big|_0 = v_i^\top H v_i = \lambda_i`.
    The sign, which is arbitrary, is chosen so that the coordinate of largest magnitude is positive.

    Args:
        source: What ``top_eigenvalues`` returned, or an operator, such as a ``Hessian``, whose eigenvectors are found.
        num_directions: How many.
        like: Its filters lend their lengths to those of the eigenvectors, as in :func:`filter_normalized`. What comes
            out is no eigenvector any more. Default: eigenvectors as they are.
        seed: Seed of the search, where an operator is given.

    Returns:
        One dict of parameter names to tensors for each direction.

    Raises:
        ArgumentError: There are fewer eigenvectors than directions, or the operator does not know the names of the
            parameters.

    Example:
        >>> import flatmin as fm
        >>> model = nn.Linear(2, 1, bias=False)
        >>> H = fm.Hessian(model, nn.functional.mse_loss, [(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.ones(2, 1))])
        >>> first, second = eigenvector_directions(H)
        >>> first["weight"].round(decimals=3).abs()
        tensor([[1., 0.]])
    """
    whole("num_directions", num_directions, minimum=1, hint="A line has one direction and a plane two.")
    pairs = source if isinstance(source, EigenPairs) else top_eigenvalues(source, k=num_directions, seed=seed)
    if len(pairs) < num_directions:
        raise ArgumentError(
            f"there are {len(pairs)} eigenvectors, but num_directions is {num_directions}. Find more: "
            f"top_eigenvalues(H, k={num_directions})."
        )
    found = tuple(_facing_up(pairs.vector(index)) for index in range(num_directions))
    return found if like is None else tuple(filter_normalized(direction, like) for direction in found)


def filter_normalized(direction: Direction, model: nn.Module) -> dict[str, Tensor]:
    r"""Give every filter of a direction the length that the same filter has in the model (Li et al. 2018, section 4).

    A filter is a slice along the first dimension: one output channel of a convolution, one unit of a linear layer, one
    row of an embedding. Where a normalisation layer follows, rescaling filters changes neither network nor picture; nor
    does scaling a layer of a ReLU network up and the next one down. Tensors with fewer than two dimensions (biases,
    scales and shifts of normalisation layers) get zero, as in the authors' figures.

    Args:
        direction: Names to tensors.
        model: Its filters lend their lengths.

    Returns:
        The direction; filters that are zero stay zero.

    Raises:
        ArgumentError: A name or a shape is not that of a parameter of the model.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> direction = filter_normalized({"weight": torch.tensor([[2.0, 0.0], [0.0, 0.0]])}, model)
        >>> torch.allclose(direction["weight"].norm(dim=1), model.weight.norm(dim=1) * torch.tensor([1.0, 0.0]))
        True
    """
    weights = {name: w.detach() for name, w in unwrapped(model).named_parameters()}
    check_direction(direction, weights)
    return {name: _like_filters(tensor.to(weights[name]), weights[name]) for name, tensor in direction.items()}


def unit(direction: Direction) -> dict[str, Tensor]:
    """Return a direction of length 1, along which a coordinate is a distance in weight space.

    Args:
        direction: Names to tensors.

    Returns:
        The same direction.

    Raises:
        ArgumentError: It has no length, or one that is not finite, as the way from a model to itself.

    Example:
        >>> unit({"weight": torch.tensor([3.0, 4.0])})
        {'weight': tensor([0.6000, 0.8000])}
    """
    length = length_of(direction)
    if not 0 < length < float("inf"):
        raise ArgumentError(f"the direction has length {length}, so it leads nowhere. Are the two models the same one?")
    return {name: tensor / length for name, tensor in direction.items()}


def length_of(direction: Direction, names: Iterable[str] | None = None) -> float:
    """Return the Euclidean length of a direction, in float64; of its tensors called ``names`` alone, if given."""
    parts = direction.values() if names is None else (direction[name] for name in names if name in direction)
    return float(torch.stack([torch.zeros((), dtype=torch.float64), *(_norm(t) for t in parts)]).norm())


def check_direction(direction: object, movable: Mapping[str, Tensor]) -> None:
    """Raise unless ``direction`` names tensors of the shapes that those of the model have, and at least one."""
    if not isinstance(direction, Mapping):
        raise ArgumentTypeError(
            f"a direction is a {type(direction).__name__}, but a dict of parameter names to tensors is needed. "
            "A flat vector becomes one by Layout.split."
        )
    if not direction:
        raise ArgumentError("a direction names no tensor, so it leads nowhere. Name at least one.")
    for name, tensor in direction.items():
        if name not in movable:
            raise ArgumentError(
                f"{name!r} is the name of no parameter or buffer of floating point. There are "
                f"{', '.join(map(repr, movable))}."
            )
        if tensor.shape != movable[name].shape:
            raise ArgumentError(
                f"{name!r} has shape {tuple(tensor.shape)}, but must have {tuple(movable[name].shape)}."
            )


def _drawn(weight: Tensor, stream: Stream, position: int) -> Tensor:
    if weight.dim() < 2:  # filters alone are drawn
        return torch.zeros_like(weight, memory_format=torch.contiguous_format)
    room = torch.empty_like(weight, memory_format=torch.contiguous_format)
    return Gaussian().sample_(room, stream.generator(position, weight.device)).detach()


def _like_filters(tensor: Tensor, weight: Tensor) -> Tensor:
    """Return ``tensor`` with the norms that the filters of ``weight`` have; zero where there are no filters."""
    if weight.dim() < 2:
        return torch.zeros_like(weight)
    rows, filters = tensor.flatten(1), weight.flatten(1)
    lengths = rows.norm(dim=1)
    scale = torch.where(lengths > 0, filters.norm(dim=1) / lengths, 0.0)
    return (rows * scale.unsqueeze(1)).view(weight.shape)


def _facing_up(direction: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the direction or its opposite, that whose coordinate of largest magnitude is positive."""
    peaks = [tensor.flatten()[tensor.abs().argmax()] for tensor in direction.values() if tensor.numel()]
    return {n: -t for n, t in direction.items()} if max(peaks, key=lambda p: abs(float(p))) < 0 else direction


def _norm(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64).cpu()
