"""Live curvature where people look: what training knows of it, every so many steps, to whoever keeps records."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatmin.checks import whole
from flatmin.curvature.layerwise.groups import Groups
from flatmin.distributed import this_rank
from flatmin.errors import ArgumentTypeError
from flatmin.measures.reading import Reading
from flatmin.measures.trackers import Guarded, Tracker
from flatmin.perturb.observation import is_measuring

_EXAMPLE = "fm.Monitor(opt, model, every=50, to=[JsonLines('metrics.jsonl')])"


class Monitor:
    """Reads the live curvature every few steps and hands it to trackers, in any loop.

    What it reads (:class:`~flatmin.measures.Reading`): the live Hessian trace with its standard error, the share of
    each layer, the noise-to-signal ratio of the gradients at the points of a step, and the numbers of gradient
    evaluations and of forward passes. Between two readings it costs a comparison of two integers a step, and never
    waits for the device; a reading waits, and the step before it takes two more norms a point (see
    :meth:`flatmin.optim.Perturbed.compare_gradients`).

    It is invisible: weights, gradients, random states and what is trained are as they would be without it. Under
    several processes each may have one, or the first alone: nothing is asked of other processes, and trackers are told
    by the first only, so make them there. The noise-to-signal ratio is known to a single process alone.

    Args:
        source: A method of flatmin (``fm.NSO(...)``, also in a framework's wrapper) or what :func:`flatmin.attach`
            returned. Any other optimizer has nothing to tell but the counts.
        model: The model that the loop calls, for the number of its forward passes; None leaves them out.
        every: Number of steps from one reading to the next.
        to: Trackers that are told; they are closed with the monitor. If one fails, a warning says so, and the run goes
            on.
        groups: Which parameters make a layer, see :func:`flatmin.layerwise`; None leaves layers out.

    Raises:
        ArgumentError: ``every`` is below 1, or the groups do not fit.
        ArgumentTypeError: An argument is of the wrong kind.

    Example:
        >>> import torch, flatmin as fm
        >>> model = torch.nn.Linear(2, 1)
        >>> opt = fm.NSO(torch.optim.SGD(model.parameters(), lr=0.1), sigma=0.01)
        >>> monitor = fm.Monitor(opt, model, every=2)
        >>> for step in range(4):
        ...     for probe in opt.probes():
        ...         with probe:
        ...             loss = model(torch.ones(4, 2)).square().mean()
        ...             loss.backward()
        ...     opt.step()
        ...     opt.zero_grad()
        ...     reading = monitor.log(step, loss=loss)
        >>> reading.gradient_evaluations, reading.forward_passes, reading.trace.num_matvecs
        (8, 8, 4)
        >>> monitor.close()
    """

    def __init__(
        self,
        source: Any,
        model: nn.Module | None = None,
        *,
        every: int = 50,
        to: Iterable[Tracker] = (),
        groups: Groups | None = "module",
    ) -> None:
        self._source = _known(source)
        self._every = whole("every", every, minimum=1, hint="It is the number of steps from one reading to the next.")
        self._trackers = [Guarded(tracker, _warn) for tracker in _require_trackers(to)]
        self._groups = groups
        Reading.of(self._source, groups=groups)  # groups that do not fit are found now
        if model is not None and not isinstance(model, nn.Module):
            raise ArgumentTypeError(f"model is a {type(model).__name__}, but a torch.nn.Module is needed: {_EXAMPLE}.")
        self._passes = ForwardPasses()
        self._hook = None if model is None else model.register_forward_pre_hook(self._passes, prepend=True)
        self._steps = 0
        self.latest: Reading | None = None
        self._prepare()

    def log(self, step: int, **values: float | Tensor) -> Reading | None:
        """Take note that a step was made, and read the curvature if it is time.

        Args:
            step: What trackers are told of where this is, such as the number of steps.
            **values: What else they are told: loss, accuracy, learning rate, as numbers or 0-dim tensors. These are
                looked at only if it is time.

        Returns:
            The reading; None between two.

        Raises:
            ArgumentTypeError: A value is no number.
        """
        self._steps += 1
        reading = None
        if self._steps % self._every == 0:
            reading = self.latest = self.read()
            metrics = {name: _number(name, value) for name, value in values.items()} | reading.metrics()
            for tracker in self._trackers if this_rank() == 0 else ():
                tracker.log(metrics, step)
        self._prepare()
        return reading

    def read(self) -> Reading:
        """Read what is known now, whether it is time or not; trackers are not told."""
        passes = None if self._hook is None else self._passes.count
        return Reading.of(self._source, groups=self._groups, forward_passes=passes)

    def prepare(self) -> None:
        """Have the next step compare its gradients, for a reading after it; :meth:`log` does this when it is time."""
        if hasattr(self._source, "compare_gradients"):
            self._source.compare_gradients()

    def _prepare(self) -> None:
        if (self._steps + 1) % self._every == 0:
            self.prepare()

    def close(self) -> None:
        """Close the trackers and take the hook off the model; a second call does nothing."""
        if self._hook is not None:
            self._hook.remove()
        trackers, self._trackers = self._trackers, []
        for tracker in trackers:
            tracker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def state_dict(self) -> dict[str, int]:
        """Return the counts; the samples of the trace are in the state of the optimizer or of the attachment."""
        return {"steps": self._steps, "forward_passes": self._passes.count}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self._steps, self._passes.count = state["steps"], state["forward_passes"]
        self._prepare()


class ForwardPasses:
    """A hook that counts the training forward passes of a module; copies and pickles of the module count on their own.

    Attributes:
        count: How many there were.
    """

    def __init__(self, count: int = 0) -> None:
        self.count: int = count

    @torch._disable_dynamo  # which is torch.compiler.disable, but imports the compiler at the first call only
    def __call__(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:  # noqa: ARG002
        """Count a pass, unless it is an evaluation or a measurement."""
        self.count += module.training and torch.is_grad_enabled() and not is_measuring()

    def __deepcopy__(self, memo: dict[int, Any]) -> ForwardPasses:
        return ForwardPasses(self.count)


def _known(source: Any) -> Any:
    """Return what can be read, in the wrappers that frameworks put around an optimizer (``.optimizer``)."""
    while not hasattr(source, "trace_estimate") and isinstance(inner := getattr(source, "optimizer", None), Optimizer):
        source = inner
    if not hasattr(source, "trace_estimate") and not isinstance(source, Optimizer):
        raise ArgumentTypeError(
            f"source is a {type(source).__name__}, which knows no curvature. Pass the optimizer, such as fm.NSO(...), "
            f"or what fm.attach(...) returned: {_EXAMPLE}."
        )
    return source


def _require_trackers(to: Any) -> Iterable[Tracker]:
    trackers = [to] if hasattr(to, "log") else list(to)
    for tracker in trackers:
        if not callable(getattr(tracker, "log", None)) or not callable(getattr(tracker, "close", None)):
            raise ArgumentTypeError(
                f"to holds a {type(tracker).__name__}, which has no log(metrics, step) and close(). Take one of "
                f"flatmin.integrations.trackers, or give yours these two methods: {_EXAMPLE}."
            )
    return trackers


def _number(name: str, value: Any) -> float:
    try:
        return float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentTypeError(
            f"{name} is a {type(value).__name__}, but a number is needed. Log its mean, {name}={name}.mean()."
        ) from error


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=5)
