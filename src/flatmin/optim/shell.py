"""The optimizer shell: any torch optimizer, given the direction of a flow instead of the plain gradient."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatmin import flows
from flatmin.checks import choice, positive, whole
from flatmin.curvature.results import TraceEstimate
from flatmin.distributed import ShardedTotal, is_parallel, reshard, sharded_modules
from flatmin.errors import ClosureError, ProbeError
from flatmin.optim import guards
from flatmin.optim.batched import BatchedSteps, WholeStep
from flatmin.optim.callers import Accumulated, is_idle, require_cleared, require_no_scaler, warn_of_plain_step
from flatmin.optim.groups import Groups
from flatmin.optim.live_trace import LiveTrace, Observation
from flatmin.optim.noise_to_signal import NoiseToSignal
from flatmin.optim.patterns import Owner, Radius, is_by_name, owners
from flatmin.optim.ranks import RankPolicy, of_this_rank, require_policy
from flatmin.optim.readings import Readings
from flatmin.optim.wrapper import Wrapper
from flatmin.perturb import (
    BUFFER_POLICIES,
    BufferPolicy,
    Evaluation,
    Flow,
    FlowFunction,
    Hosts,
    Probe,
    Snapshots,
    all_within,
)
from flatmin.vectors import Vector, has_16_bits


class ShellOptions(TypedDict, total=False):
    """The options that every method has, as keyword arguments; see :class:`Perturbed`."""

    buffers: BufferPolicy
    common_randomness: bool
    check_finite: bool | None
    trace_window: int
    model: nn.Module | None


class Perturbed(BatchedSteps, Readings, Wrapper):
    """A flow around a base optimizer; the named methods are this class with a flow and its hyperparameters.

    The radius (sigma or rho), the number of steps taken and the seed are entries of the parameter groups, beside
    ``lr``: the one place that every way of checkpointing carries. A group may have a radius of its own, and 0 leaves it
    unperturbed.

    Args:
        base: The optimizer that makes the step.
        flow: The method.
        radii: Hyperparameters that have the units of the weights: a number, a function of the step, or a mapping from
            patterns of parameter names (or classes of modules) to either, ``{"*.bias": 0.0, "*": 0.01}``.
        settings: The flow's other hyperparameters; a mapping from patterns becomes one value for each parameter.
        noise_scale: Unit of sigma, for flows that take one: ``"absolute"``, or the norm of the ``"parameter"`` or the
            ``"filter"``. A group may have its own.
        seed: Seed of the noise.
        ranks: Whether distributed ranks draw ``"shared"``, ``"independent"`` or ``"antithetic"`` noise.
        local_ascents: Number of the flow's first evaluations whose gradients stay on each rank (m-sharpness).
        buffers: When buffers such as batch-norm statistics move: in the ``"first"`` evaluation of a step (as in plain
            training), in ``"all"``, or never (``"frozen"``).
        common_randomness: Give every evaluation of a step the same dropout masks and other random numbers.
        check_finite: Refuse a step on NaN or infinite losses and gradients, with the weights left as they were. None:
            on a CPU only, since on an accelerator the answer has to be waited for.
        trace_window: Number of steps that the live trace looks back; 0 turns it off.
        model: The model, if its modules should not be looked up among the live ones.
    """

    _fields = (
        "_flow", "_groups", "_settings", "_buffers", "_common_randomness", "_finite", "_trace", "_ranks",
        "_local_ascents", "_evaluations",
    )  # fmt: skip
    _kept = (*Wrapper._kept, *_fields)
    _sees_loss_scale: ClassVar[bool] = False
    """Whether the flow comes out differently where the loss is multiplied by a number (SAM's does not)."""

    def __init__(
        self,
        base: Optimizer,
        flow: FlowFunction,
        *,
        radii: Mapping[str, Radius],
        settings: Mapping[str, Any] | None = None,
        noise_scale: str | None = None,
        seed: int = 0,
        ranks: RankPolicy = "shared",
        local_ascents: int = 0,
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
        self._finite = guards.FiniteCheck(check_finite)
        window = whole("trace_window", trace_window, minimum=0, hint="It is a number of steps; 0 turns the trace off.")
        self._trace = LiveTrace(window)
        self._evaluations = 0
        self._hosts = Hosts(model)
        self._groups = Groups(base, radii, seed, noise_scale=noise_scale, owners=self._owners)
        parameters = self._groups.parameters()
        self._ranks = require_policy(ranks, parameters, climbs_alone=local_ascents > 0)
        self._local_ascents = local_ascents
        self._groups.bind_schedules(self)
        guards.require_trainable(parameters, sum(len(group["params"]) for group in self.param_groups))
        # Now, while sharded parameters are sure to be in their modules.
        reshard(sharded_modules(self._hosts.modules(parameters.values())))
        guards.require_usable(parameters)

    def _owners(self, parameters: Iterable[Tensor]) -> list[Owner]:
        parameters = list(parameters)
        return owners(parameters, self._hosts.topmost(parameters))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base; it may bring a radius of its own."""
        super().add_param_group(param_group)
        self._groups.complete()
        self._groups.bind_schedules(self)
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
        self._begin()
        self._trace.forget()
        super().zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take a step.

        With a closure, torch's own contract: it clears the gradients, computes the loss, calls backward and returns the
        loss; it is called once for each evaluation of the method. It cannot stand for accumulated gradients, and a
        ``GradScaler`` must not be given it: both are refused, and are what :meth:`probes` is for. Without a closure,
        the step is made with what ``.grad`` holds, which after a loop over probes is the method's direction; without
        such a loop it is a plain step of the base, of which a warning tells once.

        Args:
            closure: Clears gradients, computes the loss, calls ``backward()``, returns the loss.

        Returns:
            With a closure the loss: for a noise method the average over its points, which estimates the smoothed loss;
            for the others the loss at the first point, which for most is the weights themselves. A 0-dim tensor without
            graph, or a float if that is what the closure returns.

        Raises:
            ClosureError: The closure returned None, computed no gradient, or does not clear gradients that had been
                accumulated; or the base cannot step without a closure.
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
            self._require_probed()
            self._finite.gradients(self._groups)
            loss = self.base.step()
            if not self._has_evaluated and is_idle(self.param_groups):
                return loss  # a state was made (so distributed checkpoints do), and no step was taken
        self._trace.commit()
        self._groups.advance()
        self._spent = Accumulated.of(self._groups.parameters())
        return loss

    def probes(self, *, scaler: torch.amp.GradScaler | None = None, loss_scale: float = 1.0) -> Iterator[Probe]:
        """Yield the points of one step; after the loop ``.grad`` holds the direction, on top of what it held before.

        Inside each ``with probe:`` run forward and backward at the same data, and do not clear gradients there.
        Clipping, unscaling and logging come after the loop. Gradient accumulation works either way round: micro-batches
        inside each probe (right for every method), or this loop inside each micro-batch (the same for noise methods,
        whose noise depends on the step alone; for the others each micro-batch then climbs its own gradient:
        m-sharpness).

        The weights are back after each probe, but for the two of an antithetic pair: between these they stay where the
        first point is, since the second is its mirror image. A loop that is left early, by ``break`` or by an
        exception, puts them back and drops the gradients.

        Args:
            scaler: The ``GradScaler`` in use. The live trace, and methods that look at the size of gradients, need it
                to undo the scale of the loss.
            loss_scale: What else the loss is multiplied by, such as 1/m in a loop over probes inside each of m
                micro-batches. Of account for methods that are not linear in the gradients.

        Raises:
            ArgumentError: ``loss_scale`` is not above 0.
            ArgumentTypeError: ``scaler`` scales nothing.
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
        positive("loss_scale", loss_scale, hint="It is what the loss is multiplied by, such as 1 / 4.")
        return self._run(owned=False, scaler=scaler, loss_scale=loss_scale)

    def _run(
        self, *, owned: bool, scaler: torch.amp.GradScaler | None = None, loss_scale: float = 1.0
    ) -> Generator[Probe]:
        self._abandon()  # a loop left by a break or an exception that something still holds on to
        self._groups.require_complete()
        parameters = self._groups.parameters()
        topmost = self._hosts.topmost(parameters.values())
        guards.require_plain_loop(topmost, climbs_alone=self._local_ascents > 0)
        modules = all_within(topmost)
        if owned or all(parameter.grad is None for parameter in parameters.values()):
            self._begin()
        seen, total = Observation(), ShardedTotal(parameters)
        evaluation = Evaluation(
            parameters,
            modules=modules,
            buffers=self._buffers,
            common_randomness=self._common_randomness,
            owned=owned,
            observer=seen if self._is_observed(parameters) else None,
            loss_scale=functools.partial(_product, scaler, loss_scale, next(iter(parameters.values())).device),
            keeps_nonfinite=self._sees_loss_scale,
            local_ascents=self._local_ascents,
            snapshots=self._snapshots,
        )
        self._open, self._was_told_of_scaler = evaluation, owned or scaler is not None
        yield from self._watched(evaluation.probes(self._start), parameters)
        number = self._groups.positions()[-1].stop
        self._trace.settle(seen, number, total, scaler.scale if scaler else _identity)
        self._receive(evaluation.extras, loss_scale)
        self._open, self._has_evaluated = None, True

    def _is_observed(self, parameters: Mapping[int, Tensor]) -> bool:
        """Tell whether the evaluations of these parameters give samples of the live trace."""
        return self._trace.window > 0 and self._ranks == "shared" and not has_16_bits(parameters.values())

    def _watched(self, probes: Generator[Probe], parameters: Mapping[int, Tensor]) -> Generator[Probe]:
        """Count the points as they are evaluated, and compare their gradients if that was asked for."""
        comparison, self._comparison = self._comparison, None
        with contextlib.closing(probes):
            for probe in probes if comparison is None else comparison.through(probes, parameters):
                yield probe
                self._evaluations += 1
        self._compared = comparison or self._compared

    def _begin(self) -> None:
        """Forget what earlier loops over probes gave that no step has used: a new step begins."""
        self._trace.discard()

    def _start(self) -> Flow:
        stream, sign = of_this_rank(self._ranks, self._groups.stream)
        return self._flow(stream, **self._arguments(sign))

    def _arguments(self, sign: int = 1) -> dict[str, Any]:
        """Return what the flow is called with at this step; ``sign`` is that of the noise on this rank."""
        settings = {n: self._groups.by_name(n, v) if is_by_name(v) else v for n, v in self._settings.items()}
        hyperparameters = self._groups.hyperparameters()
        if sign < 0:
            hyperparameters["sigma"] = -hyperparameters["sigma"]
        return {**hyperparameters, **settings}

    def _receive(self, extras: Mapping[str, Vector], loss_scale: float) -> None:
        """Take what the flow gave beside its direction: for methods with an update rule of their own."""

    def _evaluate(self, closure: Callable[[], Any]) -> Any:
        if isinstance(closure, WholeStep):
            return closure()
        losses, weights = [], []
        self._groups.require_complete()
        earlier = Accumulated.of(self._groups.parameters())
        if earlier is not None and (earlier.is_still(self._spent) or earlier.was_cleared()):
            earlier = None
        try:
            for probe in self._run(owned=True):
                with probe, torch.enable_grad():
                    with require_cleared(earlier):
                        loss = closure()
                    earlier = None
                    guards.require_loss(loss, self._groups.parameters())
                    self._finite.loss(loss, self._groups)
                losses.append(loss.detach() if isinstance(loss, Tensor) else loss)
                weights.append(probe.weight)
        except BaseException:
            self._abandon()
            raise
        self._finite.gradients(self._groups)
        if weights[0] is None:
            return losses[0]
        return sum(weight * loss for weight, loss in zip(weights, losses, strict=True))

    @property
    def probe(self) -> Probe | None:
        """The probe that is being evaluated, None outside: a closure can ask it for ``full_batch``."""
        return None if self._open is None else self._open.current

    def _require_finished_loop(self) -> None:
        if self._abandon():
            raise ProbeError(
                "step() came before the loop over probes had ended (a break, or a call inside the loop?), so there is "
                "no direction to step in. The weights are clean and the unfinished gradients were dropped; run a loop "
                "to its end."
            )

    def _require_probed(self) -> None:
        """Look at how a step without a closure was come to."""
        if self._sees_loss_scale and not self._was_told_of_scaler:
            require_no_scaler(type(self).__name__)
        if not self._has_evaluated and self._flow is not flows.sgd and Accumulated.of(self._groups.parameters()):
            self._has_evaluated = warn_of_plain_step(type(self).__name__, self.param_groups)

    def _abandon(self) -> bool:
        """End an evaluation that is still open; tell whether there was one."""
        unfinished, self._open = self._open, None
        if unfinished is not None:
            unfinished.abandon()
        return unfinished is not None

    @property
    def reports_trace(self) -> bool:
        """Whether these settings have a live trace: noise of one size in every coordinate, shared by all ranks."""
        is_noise = self._flow in (flows.nso, flows.wpsgd) and self._ranks == "shared"
        return is_noise and self._trace.window > 0 and self._groups.hyperparameters()["noise_scale"] == "absolute"

    @property
    def trace_estimate(self) -> TraceEstimate | None:
        """The Hessian trace of the training loss, with its standard error, from the gradients of the latest steps.

        None before the first noisy step, for methods that draw no noise, and for parameters of 16 bits, where rounding
        is as large as the noise. It is the trace that the noise acts on: of the loss smoothed at this sigma, on
        mini-batches, over all perturbed parameters. Steps whose gradients were accumulated without synchronisation
        over ranks (``no_sync``) give no sample.
        """
        return self._trace.estimate()

    def _observed(self) -> tuple[LiveTrace, Groups, NoiseToSignal | None]:
        return self._trace, self._groups, self._compared

    @property
    def gradient_evaluations(self) -> int:
        """The number of points whose gradients were taken, on this process; checkpoints carry it."""
        return self._evaluations

    def compare_gradients(self) -> None:
        """Have the gradients at the points of the next step compared, for :attr:`noise_to_signal`.

        That step takes two norms more for each point, and a copy of the gradients between its points. It does nothing
        where several processes train: there the gradients of one point are nowhere by themselves.
        """
        self._comparison = None if is_parallel() else NoiseToSignal()

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state with the radii, the step, the seed, the samples of the live trace and the counts.

        Nothing in it is the size of the model but what the base keeps (and the start, with an :class:`AutoSigma`), and
        it loads with ``weights_only=True``. Radii that are functions or mappings are left out: like a model's code they
        come from the constructor; of functions that have a state, this is kept.
        """
        if self._open is not None and self._open.status == "open":
            self._abandon()  # a loop that was left but is still held: what is saved beside this must be clean
        schedules = [schedule.state_dict() for schedule in self._groups.stateful_schedules()]
        kept = {"trace": self._trace.state_dict(), "schedules": schedules, "evaluations": self._evaluations}
        return {**self._groups.state_dict(), **kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned; a plain checkpoint of the base loads too.

        Radii are taken from the checkpoint, as ``lr`` is, but for those that are functions here: these stay.
        """
        self._abandon()
        own = ("trace", "schedules", "evaluations")
        self._groups.load_state_dict({k: v for k, v in state_dict.items() if k not in own})
        self._trace.load_state_dict(state_dict.get("trace"))
        self._evaluations = int(state_dict.get("evaluations", 0))
        states = state_dict.get("schedules", ())
        for schedule, state in zip(self._groups.stateful_schedules(), states, strict=False):
            schedule.load_state_dict(state)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Modules are looked up again, and an open loop does not travel.
        self._hosts, self._snapshots = Hosts(), Snapshots()
        self._open: Evaluation | None = None
        self._spent: Accumulated | None = None
        self._comparison: NoiseToSignal | None = None  # to be made at the next step
        self._compared: NoiseToSignal | None = None
        self._was_told_of_scaler, self._has_evaluated = True, False
        super().__setstate__(state)
        if state:
            self._groups.look_up(self._owners)
            self._groups.bind_schedules(self)


def _identity(tensor: Tensor) -> Tensor:
    return tensor


def _product(scaler: torch.amp.GradScaler | None, loss_scale: float, device: torch.device) -> Tensor | None:
    """Return what the loss is multiplied by, on the device; None if by nothing."""
    if scaler is None and loss_scale == 1:
        return None
    factor = torch.full((), loss_scale, dtype=torch.float32, device=device)
    return factor if scaler is None else scaler.scale(factor)
