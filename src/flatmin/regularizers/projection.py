"""The distance to the start of fine-tuning bounded: a projection after every step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.nn.modules.conv import _ConvTransposeNd
from torch.optim import Optimizer

from flatmin.checks import choice, nonnegative, whole
from flatmin.distributed import ShardedTotal, is_sharded, local
from flatmin.errors import ArgumentError, ArgumentTypeError
from flatmin.regularizers.start import Names, Start, matches, named_parameters, require_patterns, start_in
from flatmin.vectors import accumulation_dtype

Norm = Literal["frobenius", "mars"]

_RADIUS = "It is the largest distance that a weight matrix may move from its start, in the units of the weights."


class DistanceProjection:
    r"""Holds each layer's weights in a ball around where fine-tuning started: they are projected after every step.

    .. math:: \|W - W^0\| \le \gamma

    Gouk, Hospedales, Pontil, arXiv:2002.08253, which bounds the distance of every layer by projected gradient steps. A
    weight matrix W has a row for each output; kernels of convolutions are matrices of outputs × all the rest.

    ``"frobenius"``: the root of the sum of squares, the matrix as a whole. Computed is the Euclidean projection,
    :math:`W^0 + (W - W^0)/\max(1, \|W - W^0\|_F/\gamma)`.

    ``"mars"``: the maximum absolute row sum, :math:`\max_j\sum_i |W_{ji} - W^0_{ji}|`, the paper's proposal. Computed
    is what the authors' code computes: each row is scaled by its *own* sum, so that rows that keep the bound stay as
    they are (github.com/henrygouk/mars-finetuning). The result is a nearest point in this norm; it is not the
    Euclidean projection, which would shrink every entry of a row by the same amount.

    Weights inside the ball keep their bits; those outside land on its boundary, to the rounding of their type; those
    that are not finite are left for all to see. By default only parameters of two dimensions and more are projected:
    neither biases nor the scales of normalisation layers (whose quotient by the running deviation the authors' code
    bounds). Frozen parameters are left alone while they are. Nothing is waited for on an accelerator.

    It is a hook of the optimizer's step and works for any, the methods of :mod:`flatmin.optim` and steps with closures
    included. Pickles and copies of the optimizer do not carry it: copy both together. Memory: one copy of the weights
    for the start, and one more during the projection.

    Args:
        optimizer: The optimizer after whose steps to project.
        model: The model, for the names of its parameters. Those that the optimizer holds now take part.
        radius: gamma: one number for every layer, or by pattern of names, of which the first that matches counts; names
            that none matches are left alone. 0 pins the weights to their start.
        norm: ``"frobenius"`` or ``"mars"``. Which size is right depends on it; see :meth:`distances`.
        start: The centres by name (``state_dict()`` of the pretrained model); parameters that it leaves out, such as a
            new head, have theirs at zero. None: the weights as they are now.
        min_dim: Fewest dimensions of a parameter that takes part. Below two, every entry is a row.

    Raises:
        ArgumentError: A value that cannot work, by name; a pattern that matches nothing; a start of another shape; a
            row that is cut by the sharding, under ``"mars"``.
        ArgumentTypeError: An argument of the wrong kind.

    Example:
        >>> import torch, flatmin as fm
        >>> model, x = torch.nn.Linear(3, 2), torch.ones(8, 3)
        >>> opt = fm.NSO(torch.optim.SGD(model.parameters(), lr=10.0), sigma=0.01)
        >>> projection = DistanceProjection(opt, model, norm="mars", radius=0.5)
        >>> for probe in opt.probes():
        ...     with probe:
        ...         model(x).square().sum().backward()
        >>> opt.step()
        >>> round(float(projection.distances()["weight"]), 4)
        0.5
        >>> projection.remove()
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        *,
        radius: float | Mapping[str, float],
        norm: Norm = "frobenius",
        start: Mapping[str, Tensor] | None = None,
        min_dim: int = 2,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise ArgumentTypeError(
                f"optimizer is a {type(optimizer).__name__}, but a torch.optim.Optimizer is needed."
            )
        self._norm = choice("norm", norm, ("frobenius", "mars"))
        min_dim = whole("min_dim", min_dim, minimum=0, hint="It is the fewest dimensions of a projected parameter.")
        held = {p for group in optimizer.param_groups for p in group["params"]}
        parameters = named_parameters(model)
        meant = [names for names, p in parameters.items() if p in held and p.dim() >= min_dim]
        if not meant:
            raise ArgumentError(
                f"The optimizer holds no parameter of the model of at least min_dim = {min_dim} dimensions, so there "
                "is nothing to project. Was the model wrapped or sharded after the optimizer was made?"
            )
        radii = _radii(radius, meant)
        self._radii = {names[0]: radii[names] for names in radii}
        self._start = Start(parameters, radii, start)
        self._groups = _transposed_groups(model, self._start.parameters)
        if self._norm == "mars":
            for name, parameter in self._start.parameters.items():
                _require_whole_rows(name, parameter, is_transposed=name in self._groups)
        self._optimizer, self._is_on = optimizer, True
        self._handle = optimizer.register_step_post_hook(self._after_step)

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        lost = [name for name, p in self._start.parameters.items() if id(p) not in held]
        if lost:
            raise ArgumentError(
                f"The optimizer no longer holds the parameter that was {lost[0]!r} when the projection was made. Was "
                "the model sharded or prepared since? Make the projection after that."
            )
        self.project()

    @torch.no_grad()
    def project(self) -> None:
        """Project the weights now, in place; a collective operation where the norm of a shard is a part of one."""
        names, differences = self._start.trainable(), self._start.differences()
        for (i, difference), size in zip(differences.items(), self._sizes(differences), strict=True):
            radius, weights = self._radii[names[i]], local(self._start.parameters[names[i]].detach())
            difference.mul_((radius / size).to(difference.dtype)).add_(local(self._start.weight(names[i])))
            outside = (size > radius) & size.isfinite()
            torch.where(outside, difference.to(weights.dtype), weights, out=weights)

    @torch.no_grad()
    def distances(self) -> dict[str, Tensor]:
        """Return how far each projected weight is from its start, in the norm of the projection (0-dim, by name).

        Under ``"mars"`` the largest of the rows on this rank.
        """
        names, sizes = self._start.trainable(), self._sizes(self._start.differences())
        rows = (torch.cat([size.flatten(), size.new_zeros(1)]) for size in sizes)  # a rank may hold none
        return {name: row.max() for name, row in zip(names.values(), rows, strict=True)}

    def _sizes(self, differences: Mapping[int, Tensor]) -> list[Tensor]:
        """Return the norms of ``differences`` in double precision, in shapes that divide them."""
        if not differences:
            return []
        parameters = dict(enumerate(self._start.parameters.values()))
        if self._norm == "mars":
            names = list(self._start.parameters)
            return [_row_sums(d, self._groups.get(names[i])) for i, d in differences.items()]
        values = list(differences.values())
        norms = torch._foreach_norm(values, 2.0, accumulation_dtype(values[0].device))
        total = ShardedTotal(parameters)
        return [
            total({i: norm.square()}).sqrt() if is_sharded(parameters[i]) else norm
            for i, norm in zip(differences, norms, strict=True)
        ]

    def remove(self) -> None:
        """Project no more."""
        self._is_on = False
        self._handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return the centres of the balls, so that a resumed run projects to the true start."""
        return {"start": self._start.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Project around the start in ``state_dict``; norm and radii stay.

        Raises:
            ArgumentError: It is the state of something else, or of other parameters.
        """
        self._start.load_state_dict(start_in(state_dict))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_handle"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._handle = self._optimizer.register_step_post_hook(self._after_step)
        if not self._is_on:
            self.remove()


def _radii(radius: Any, parameters: list[Names]) -> dict[Names, float]:
    """Return the radius of each parameter that has one."""
    if not isinstance(radius, Mapping):
        return dict.fromkeys(parameters, nonnegative("radius", radius, hint=_RADIUS))
    require_patterns("radius", radius, parameters)
    numbers = {
        pattern: nonnegative(f"radius of {pattern!r}", number, hint=_RADIUS) for pattern, number in radius.items()
    }
    first = {names: next((p for p in numbers if matches(p, names)), None) for names in parameters}
    return {names: numbers[pattern] for names, pattern in first.items() if pattern is not None}


def _transposed_groups(model: nn.Module, parameters: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the groups of transposed convolutions, whose weights hold the inputs first, by name of the weight."""
    groups = {id(m._parameters.get("weight")): m.groups for m in model.modules() if isinstance(m, _ConvTransposeNd)}
    return {name: groups[id(p)] for name, p in parameters.items() if id(p) in groups}


def _row_sums(difference: Tensor, groups: int | None) -> Tensor:
    """Return the absolute row sums of a weight, a row being all that leads to one output.

    Args:
        difference: Outputs × the rest; of a transposed convolution inputs × outputs of a group × the rest.
        groups: The groups of a transposed convolution; None for anything else.
    """
    wide = accumulation_dtype(difference.device)
    if difference.dim() < 2:
        return difference.abs().to(wide)
    if groups is None:
        return vector_norm(difference, 1, tuple(range(1, difference.dim())), keepdim=True, dtype=wide)
    by_group = difference.unflatten(0, (groups, -1))
    sums = vector_norm(by_group, 1, (1, *range(3, by_group.dim())), keepdim=True, dtype=wide)
    return sums.expand(-1, by_group.shape[1], *(-1 for _ in sums.shape[2:])).flatten(0, 1)


def _require_whole_rows(name: str, parameter: Any, *, is_transposed: bool) -> None:
    """Raise unless each row of ``parameter`` has real entries, and all of them on one rank."""
    if parameter.is_complex():
        raise ArgumentTypeError(
            f"Parameter {name!r} is complex, for which norm='mars' is not defined; take 'frobenius'."
        )
    if not is_sharded(parameter):
        return
    placements = parameter.placements
    if not all(p.is_replicate() or (p.is_shard(0) and not is_transposed) for p in placements):
        raise ArgumentError(
            f"Parameter {name!r} is sharded as {tuple(placements)}, which cuts its rows (all that leads to one "
            "output), so that no rank knows their sums. Shard it along its outputs, Shard(0), leave it out of radius, "
            "or take norm='frobenius'."
        )
