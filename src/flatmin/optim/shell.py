"""The optimizer shell: any torch optimizer, given the direction of a flow instead of the plain gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatmin.checks import choice, whole
from flatmin.curvature.results import TraceEstimate
from flatmin.distributed import ShardedTotal, reshard, sharded_modules
from flatmin.errors import ClosureError, ProbeError
from flatmin.noise import Schedule
from flatmin.optim import guards
from flatmin.optim.groups import Groups
from flatmin.optim.live_trace import LiveTrace, Observation
from flatmin.optim.wrapper import Wrapper
from flatmin.perturb import BUFFER_POLICIES, BufferPolicy, Evaluation, Flow, FlowFunction, Hosts, Probe
from flatmin.vectors import has_16_bits


class ShellOptions(TypedDict, total=False):
    """The options that every method has, as keyword arguments; see :class:`Perturbed`."""

    buffers: BufferPolicy
    common_randomness: bool
    check_finite: bool | None
    trace_window: int
    model: nn.Module | None


class Perturbed(Wrapper):
    """A flow around a base optimizer; the named methods are this class with a flow and its hyperparameters.

    The radius (sigma or rho), the number of steps taken and the seed are entries of the parameter groups, beside
    ``lr``: the one place that every way of checkpointing carries. A group may have a radius of its own, and 0 leaves it
    unperturbed.

    Args:
        base: The optimizer that makes the step.
        flow: The method.
        radii: Hyperparameters that have the units of the weights: a number or a function of the step each.
        settings: The flow's other hyperparameters.
        seed: Seed of the noise.
        buffers: When buffers such as batch-norm statistics move: in the ``"first"`` evaluation of a step (as in plain
            training), in ``"all"``, or never (``"frozen"``).
        common_randomness: Give every evaluation of a step the same dropout masks and other random numbers.
        check_finite: Refuse a step on NaN or infinite losses and gradients, with the weights left as they were. None:
            on a CPU only, since on an accelerator the answer has to be waited for.
        trace_window: Number of steps that the live trace looks back; 0 turns it off.
        model: The model, if its modules should not be looked up among the live ones.
    """

    _fields = ("_flow", "_groups", "_settings", "_buffers", "_common_randomness", "_check_finite", "_trace")
    _kept = (*Wrapper._kept, *_fields)

    def __init__(
        self,
        base: Optimizer,
        flow: FlowFunction,
        *,
        radii: Mapping[str, float | Schedule],
        settings: Mapping[str, Any] | None = None,
        seed: int = 0,
        buffers: BufferPolicy = "first",
        common_randomness: bool = True,
        check_finite: bool | None = None,
        trace_window: int = 100,
        model: nn.Module | None = None,
    ) -> None:
        super().__init__(base)
        self._flow = flow
        self._settings = dict(settings or {})
        self._buffers = choice("buffers", buffers, BUFFER_POLICIES)
        self._common_randomness = common_randomness
        self._check_finite = check_finite
        window = whole("trace_window", trace_window, minimum=0, hint="It is a number of steps; 0 turns the trace off.")
        self._trace = LiveTrace(window)
        self._hosts = Hosts(model)
        self._groups = Groups(base, radii, seed)
        parameters = self._groups.parameters()
        guards.require_trainable(parameters, sum(len(group["params"]) for group in self.param_groups))
        # Now, while sharded parameters are sure to be in their modules.
        reshard(sharded_modules(self._hosts.modules(parameters.values())))
        guards.require_usable(parameters)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base; it may bring a radius of its own."""
        super().add_param_group(param_group)
        self._groups.complete()
        guards.require_usable(self._groups.parameters())

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, as the base does.

        Raises:
            ProbeError: It comes inside a loop over :meth:`probes`, where the gradients of the points are collected.
        """
        if self._open is not None and self._open.collects:
            raise ProbeError(
                "zero_grad() came inside a loop over probes, where it would clear the gradients of the earlier points. "
                "Call it after opt.step(), outside the loop."
            )
        self._trace.forget()
        super().zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take a step.

        With a closure, torch's own contract: it clears the gradients, computes the loss, calls backward and returns the
        loss; it is called once for each evaluation of the method. Gradients accumulated before the call are therefore
        dropped, and a ``GradScaler`` must not be given the closure: both are what :meth:`probes` is for. Without a
        closure, the step is made with what ``.grad`` holds, which after a loop over probes is the method's direction.

        Args:
            closure: Clears gradients, computes the loss, calls ``backward()``, returns the loss.

        Returns:
            With a closure the loss: for a noise method the average over its points, which estimates the smoothed loss;
            for the others the loss at the weights themselves. A 0-dim tensor without graph, or a float if that is what
            the closure returns.

        Raises:
            ClosureError: The closure returned None or computed no gradient, or the base cannot step without a closure.
            ProbeError: A loop over :meth:`probes` was left before its end.
            NonFiniteError: The loss or the gradient is NaN or infinite (see ``check_finite``).
        """
        if closure is not None:
            loss = self.base.step(functools.partial(self._evaluate, closure))
        else:
            if self._base_needs_closure:
                name = type(self.base).__name__
                raise ClosureError(f"{name} evaluates the loss as often as it likes, so it needs opt.step(closure).")
            self._require_finished_loop()
            self._groups.require_complete()
            self._require_finite_gradients()
            loss = self.base.step()
        self._trace.commit()
        self._groups.advance()
        return loss

    def probes(self, *, scaler: torch.amp.GradScaler | None = None) -> Iterator[Probe]:
        """Yield the points of one step; after the loop ``.grad`` holds the direction, on top of what it held before.

        Inside each ``with probe:`` run forward and backward at the same data, and do not clear gradients there.
        Clipping, unscaling and logging come after the loop. Gradient accumulation works either way round: micro-batches
        inside each probe (right for every method), or this loop inside each micro-batch (the same for noise methods,
        whose noise depends on the step alone).

        The weights are back after each probe, but for the two of an antithetic pair: between these they stay where the
        first point is, since the second is its mirror image. A loop that is left early, by ``break`` or by an
        exception, puts them back and drops the gradients.

        Args:
            scaler: The ``GradScaler`` in use, which the live trace needs in order to undo the scale of the loss.

        Raises:
            ProbeError: A probe was not entered, computed no gradient, or is entered after its loop has ended.

        Example:
            >>> import torch, flatmin as fm
            >>> model = torch.nn.Linear(2, 1)
            >>> opt = fm.NSO(torch.optim.SGD(model.parameters(), lr=0.1), sigma=0.01)
            >>> for probe in opt.probes():
            ...     with probe:
            ...         model(torch.ones(4, 2)).square().mean().backward()
            >>> opt.step()
            >>> opt.zero_grad()
        """
        guards.require_scaler(scaler)
        return self._run(owned=False, scaler=scaler)

    def _run(self, *, owned: bool, scaler: torch.amp.GradScaler | None = None) -> Generator[Probe]:
        self._abandon()  # a loop left by a break or an exception that something still holds on to
        self._groups.require_complete()
        parameters = self._groups.parameters()
        modules = self._hosts.modules(parameters.values())
        if owned or all(parameter.grad is None for parameter in parameters.values()):
            self._trace.discard()
        seen = Observation(modules)
        evaluation = Evaluation(
            parameters,
            modules=modules,
            buffers=self._buffers,
            common_randomness=self._common_randomness,
            owned=owned,
            observer=seen if self._trace.window and not has_16_bits(parameters.values()) else None,
        )
        self._open = evaluation
        yield from evaluation.probes(self._start)
        total, scale = ShardedTotal(parameters), scaler.scale if scaler else _identity
        self._trace.settle(seen, self._groups.positions(), total, scale)
        self._open = None

    def _start(self) -> Flow:
        return self._flow(self._groups.stream, **self._groups.radii(), **self._settings)

    def _evaluate(self, closure: Callable[[], Any]) -> Any:
        losses, weights = [], []
        try:
            for probe in self._run(owned=True):
                with probe, torch.enable_grad():
                    loss = closure()
                    guards.require_loss(loss, self._groups.parameters())
                    if self._checks_finite():
                        guards.require_finite_loss(loss, **self._situation())
                losses.append(loss.detach() if isinstance(loss, Tensor) else loss)
                weights.append(probe.weight)
        except BaseException:
            self._abandon()
            raise
        self._require_finite_gradients()
        if weights[0] is None:
            return losses[0]
        return sum(weight * loss for weight, loss in zip(weights, losses, strict=True))

    def _require_finished_loop(self) -> None:
        if self._abandon():
            raise ProbeError(
                "step() came before the loop over probes had ended (a break, or a call inside the loop?), so there is "
                "no direction to step in. The weights are clean and the unfinished gradients were dropped; run a loop "
                "to its end."
            )

    def _abandon(self) -> bool:
        """End an evaluation that is still open; tell whether there was one."""
        unfinished, self._open = self._open, None
        if unfinished is not None:
            unfinished.abandon()
        return unfinished is not None

    def _require_finite_gradients(self) -> None:
        if self._checks_finite():
            guards.require_finite_gradients(self._groups.parameters(), **self._situation())

    def _checks_finite(self) -> bool:
        if self._check_finite is not None:
            return self._check_finite
        return all(parameter.device.type == "cpu" for parameter in self._groups.parameters().values())

    def _situation(self) -> dict[str, Any]:
        def radii() -> str:
            return ", ".join(f"{name} = {radius}" for name, radius in self._groups.radii().items())

        return {"step": self._groups.step, "radii": radii}

    @property
    def trace_estimate(self) -> TraceEstimate | None:
        """The Hessian trace of the training loss, with its standard error, from the gradients of the latest steps.

        None before the first noisy step, for methods that draw no noise, and for parameters of 16 bits, where rounding
        is as large as the noise. It is the trace that the noise acts on: of the loss smoothed at this sigma, on
        mini-batches, over all perturbed parameters. Steps whose gradients were accumulated without synchronisation
        over ranks (``no_sync``) give no sample.
        """
        estimates = self._trace.estimates()
        return None if estimates is None else estimates[0]

    @property
    def group_trace_estimates(self) -> tuple[TraceEstimate, ...] | None:
        """The same for each parameter group: traces of the diagonal blocks, which add up to the whole."""
        estimates = self._trace.estimates()
        return None if estimates is None else estimates[1]

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state with the radii, the step, the seed and the samples of the live trace.

        Nothing in it is the size of the model but what the base keeps, and it loads with ``weights_only=True``.
        Radii that are functions are left out: like a model's code they come from the constructor.
        """
        return {**self._groups.state_dict(), "trace": self._trace.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned; a plain checkpoint of the base loads too.

        Radii are taken from the checkpoint, as ``lr`` is, but for those that are functions here: these stay.
        """
        self._abandon()
        self._groups.load_state_dict({key: value for key, value in state_dict.items() if key != "trace"})
        self._trace.load_state_dict(state_dict.get("trace"))

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Modules are looked up again, and an open loop does not travel.
        self._hosts = Hosts()
        self._open: Evaluation | None = None
        super().__setstate__(state)


def _identity(tensor: Tensor) -> Tensor:
    return tensor
