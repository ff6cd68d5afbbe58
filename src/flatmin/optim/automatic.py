r"""Sigma that follows the PAC-Bayes bound while a model trains.

- Zhang, Li, Ju. Noise Stability Optimization for Finding Flat Minima. arXiv:2306.08553, equations (27) and (28).
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from flatmin.checks import nonnegative, positive, whole
from flatmin.curvature.results import TraceEstimate
from flatmin.distributed import ShardedTotal, is_sharded, local, local_slice
from flatmin.errors import ArgumentError
from flatmin.noise.automatic import optimal_sigma
from flatmin.vectors import Vector

_SIZE = "It is a value of sigma, in units of the weights."


class Source(Protocol):
    """What an automatic sigma looks at: an optimizer of :mod:`flatmin.optim` is one."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups."""
        ...

    @property
    def trace_estimate(self) -> TraceEstimate | None:
        """The Hessian's trace, if it is known."""
        ...


class AutoSigma:
    r"""A schedule that follows :func:`optimal_sigma`, from the live trace and the distance travelled.

    Give it as ``sigma`` to :class:`~flatmin.optim.NSO` or :class:`~flatmin.optim.WPSGD`, which bind it to themselves,
    save its state in theirs, and call it with the step. At steps that are a positive multiple of ``every`` it computes
    sigma anew, and waits for the device to do so: one synchronisation in ``every`` steps. In between, or as long as the
    distance is 0 or the trace unknown (parameters of 16 bits) or not positive, it stays where it is. The distance is
    over all trainable parameters of the optimizer. It is a length in units of the weights, which does not go with
    ``noise_scale="filter"``. Memory: one copy of the trainable parameters, their start.

    Args:
        num_examples: n, the number of training examples.
        loss_bound: C, see :func:`optimal_sigma`.
        beta: See :func:`optimal_sigma`.
        initial: Sigma until the first update; above 0, since without noise there is no trace.
        minimum: Least sigma. Default: ``initial / 10``.
        maximum: Largest sigma. Default: ``initial``.
        every: Number of steps from one update to the next.
        start: Where training started, one tensor for each parameter in the optimizer's order (copied here). Default:
            the parameters as the optimizer finds them when it is made; parameters that are added or thawed later start
            from what they are at the next update.

    Raises:
        ArgumentError: A value that cannot work.
        ArgumentTypeError: One is of the wrong kind.

    Example:
        >>> import torch, flatmin as fm
        >>> model = torch.nn.Linear(3, 1)
        >>> sigma = AutoSigma(1000, loss_bound=1.0, initial=0.01)
        >>> opt = fm.NSO(torch.optim.SGD(model.parameters(), lr=0.1), sigma=sigma)
        >>> sigma
        AutoSigma(0.01, at the start, every 100 steps within 0.001 to 0.01)
    """

    def __init__(
        self,
        num_examples: int,
        *,
        loss_bound: float,
        beta: float = 0.5,
        initial: float,
        minimum: float | None = None,
        maximum: float | None = None,
        every: int = 100,
        start: Iterable[Tensor] | None = None,
    ) -> None:
        optimal_sigma(1.0, 1.0, num_examples, loss_bound=loss_bound, beta=beta)  # for its checks
        self._formula = {"num_examples": num_examples, "loss_bound": float(loss_bound), "beta": float(beta)}
        self._value = positive("initial", initial, hint="Without noise there is no trace to learn from.")
        self._low = self._value / 10 if minimum is None else nonnegative("minimum", minimum, hint=_SIZE)
        self._high = self._value if maximum is None else nonnegative("maximum", maximum, hint=_SIZE)
        if not self._low <= self._value <= self._high:
            raise ArgumentError(
                f"initial is {initial}, but it must lie between minimum, {self._low:g}, and maximum, {self._high:g}."
            )
        self._every = whole("every", every, minimum=1, hint="It is the number of steps from one update to the next.")
        self._given = None if start is None else [tensor.detach().clone() for tensor in start]
        self._start: dict[int, Tensor] = {}
        self._updated: tuple[int, float] | None = None
        self._let_go()

    def _let_go(self) -> None:
        self._source: weakref.ref[Source] | None = None  # weak, since the optimizer holds this object
        self._bound: dict[int, weakref.ref[Tensor]] = {}
        self._asked: int | None = None

    def __repr__(self) -> str:
        """Show the value, when it was found, and its limits in one line."""
        when = "at the start" if self._updated is None else f"of step {self._updated[0]}"
        return f"AutoSigma({self._value:.4g}, {when}, every {self._every} steps within {self._low:g} to {self._high:g})"

    @property
    def value(self) -> float:
        """Sigma as it stands."""
        return self._value

    def bind(self, source: Source) -> None:
        """Look at ``source`` from now on; the optimizer does this when it is made, copied or given a group.

        Raises:
            ArgumentError: ``start`` does not fit its parameters, another optimizer was bound before, or this one says
                (``reports_trace``) that it will never know the trace.
        """
        if not getattr(source, "reports_trace", True):
            raise ArgumentError(
                f"{self!r} follows the live Hessian trace, which {type(source).__name__} does not report with these "
                "settings, so it would stay where it starts. It goes with sigma of NSO and WPSGD, with "
                "noise_scale='absolute', ranks='shared' and a trace_window above 0."
            )
        parameters = _parameters(source)
        if any(parameters.get(i) is not known() for i, known in self._bound.items()):
            raise ArgumentError(
                "this AutoSigma belongs to another optimizer, from whose start it measures the distance. Make a new "
                "one for each optimizer."
            )
        if self._given is not None:
            if len(self._given) != len(parameters):
                raise ArgumentError(
                    f"start has {len(self._given)} tensors, but the optimizer has {len(parameters)} parameters. Pass "
                    "one for each in its order, such as list(model.parameters()) before training."
                )
            self._start, self._given = dict(enumerate(self._given)), None
        self._require_fit(parameters)
        self._join(parameters)
        self._bound = {i: weakref.ref(parameter) for i, parameter in parameters.items()}
        self._source = weakref.ref(source)

    def _require_fit(self, parameters: dict[int, Tensor]) -> None:
        for i, start in self._start.items():
            shape = tuple(parameters[i].shape) if i in parameters else "missing"
            if shape != tuple(start.shape):
                raise ArgumentError(
                    f"start has shape {tuple(start.shape)} at position {i}, where the optimizer's parameter is "
                    f"{shape}. Likely cause: another order than that of the parameter groups, or a checkpoint of "
                    "another model."
                )

    def __call__(self, step: int) -> float:
        """Return sigma at ``step``, computed anew if it is time; as often as one likes within a step.

        Raises:
            ArgumentError: It is called for one step after the other without an optimizer that has bound it.
        """
        source = None if self._source is None else self._source()
        if source is None:
            self._require_binding_soon(step)
        elif step > 0 and step % self._every == 0:
            self._update(step, source)
        return self._value

    def _require_binding_soon(self, step: int) -> None:
        if step and self._asked not in (None, step):
            raise ArgumentError(
                f"AutoSigma was asked for steps {self._asked} and {step}, but no optimizer has bound it, so it knows "
                "neither trace nor distance. Give it as sigma= itself, not inside another schedule or function."
            )
        self._asked = step or self._asked

    def _update(self, step: int, source: Source) -> None:
        estimate = source.trace_estimate
        # The trace is part of the key since a checkpoint that is being loaded may bring its step before its trace.
        if estimate is None or not 0 < estimate.value < math.inf or self._updated == (step, estimate.value):
            return
        self._updated = (step, estimate.value)
        distance = self._distance(_parameters(source))
        if 0 < distance < math.inf:
            sigma = optimal_sigma(distance, estimate.value, **self._formula)
            self._value = min(max(sigma, self._low), self._high)

    @torch.no_grad()
    def _distance(self, parameters: dict[int, Tensor]) -> float:
        self._join(parameters)
        moved = {i: p for i, p in parameters.items() if p.requires_grad}
        starts = [_local_start(self._start[i], p) for i, p in moved.items()]
        ways = torch._foreach_sub([local(p).detach() for p in moved.values()], starts)
        return float(Vector(dict(zip(moved, ways, strict=True)), ShardedTotal(parameters)).norm())

    def _join(self, parameters: dict[int, Tensor]) -> None:
        """Let trainable parameters that are not known yet start from where they are."""
        new = {i: p for i, p in parameters.items() if p.requires_grad and i not in self._start}
        self._start |= {i: p.detach().clone() for i, p in new.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return sigma, the last update and the start; it loads with ``weights_only=True``."""
        return {"value": self._value, "updated": self._updated, "start": dict(self._start)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self._value = float(state["value"])
        self._updated = None if state["updated"] is None else tuple(state["updated"])
        self._start, self._given = dict(state["start"]), None
        if self._source is not None and (source := self._source()) is not None:
            self._require_fit(_parameters(source))

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_source", "_bound", "_asked")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._let_go()


def _parameters(source: Source) -> dict[int, Tensor]:
    """Return all parameters by position among them, which freezing does not shift."""
    return dict(enumerate(parameter for group in source.param_groups for parameter in group["params"]))


def _local_start(start: Tensor, parameter: Tensor) -> Tensor:
    here = local(start) if is_sharded(start) else local_slice(local(start), parameter)
    return here.to(parameter.device)
