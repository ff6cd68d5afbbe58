"""SAM as two calls, over the shell that all optimizers here are."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from flatmin.compat.ascent import Ascent, two_call
from flatmin.compat.checkpoints import without_scratch
from flatmin.errors import ArgumentTypeError, ClosureError, ProbeError
from flatmin.optim import guards
from flatmin.optim.shell import Perturbed
from flatmin.perturb import Evaluation
from flatmin.perturb import gradients as grads
from flatmin.vectors import PerParameter


class SAM(Perturbed):
    r"""The two-call form of SAM: ``first_step`` climbs, ``second_step`` returns and steps.

    .. math:: w \leftarrow \text{base}\big(w, \nabla f(w + e)\big),\qquad
        e = \rho\,\frac{g}{\|g\|} \quad\text{or, adaptive,}\quad e = \rho\,\frac{w^2 g}{\|w g\|},\qquad g = \nabla f(w)

    Foret et al., arXiv:2010.01412, equations (2) and (3); Kwon et al., arXiv:2102.11600, equation (9) with η = 0. The
    norms are over all parameters together. The signatures are those of the widespread class, and so are the steps, but
    for its 1e-12 beside the norm. New code is better off with :class:`flatmin.SAM`; :meth:`probes` works here too.

    Between the two calls the weights stand at w + e. They return, bit for bit,

    - in :meth:`second_step`, and in ``step()`` without a closure, which is how ``GradScaler.step`` makes the second
      step (one that it skips returns them too);
    - when the step is given up: by :meth:`undo_first_step`, :meth:`state_dict`, :meth:`load_state_dict`, a loop over
      :meth:`probes`, a call out of order (which raises), or an exception in the closure of ``step(closure)``;
    - when the optimizer is let go of, unless somebody else has changed the weights by then.

    An exception of the script's own between the calls is not seen: where it is caught, call :meth:`undo_first_step`.

    Buffers such as batch-norm statistics move in the script's first forward pass alone, so that
    :func:`disable_running_stats` is no longer needed.

    Args:
        params: Parameters or parameter groups; a group may have its own ``rho`` and ``adaptive``.
        base_optimizer: Class of the optimizer that makes the step.
        rho: Length of the ascent step, in units of the weights (relative to them if adaptive).
        adaptive: Ascend as ASAM does.
        **kwargs: Arguments of the base optimizer.

    Raises:
        ArgumentError: A value that cannot work, by name.
        ArgumentTypeError: ``base_optimizer`` is an optimizer already.

    Example:
        >>> import torch
        >>> model, x = torch.nn.Linear(2, 1), torch.ones(4, 2)
        >>> optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.05, lr=0.1, momentum=0.9)
        >>> model(x).square().mean().backward()
        >>> optimizer.first_step(zero_grad=True)
        >>> model(x).square().mean().backward()
        >>> optimizer.second_step(zero_grad=True)
    """

    _step_supports_amp_scaling = True
    """Have ``GradScaler.step`` call :meth:`step` even where it skips, since the weights must return then too."""

    def __init__(
        self,
        params: Any,
        base_optimizer: Callable[..., Optimizer],
        rho: float = 0.05,
        adaptive: bool = False,
        **kwargs: Any,
    ) -> None:
        if isinstance(base_optimizer, Optimizer):
            raise ArgumentTypeError(
                "base_optimizer is an optimizer already, but its class is needed, with its arguments as keywords: "
                "SAM(params, torch.optim.SGD, rho=0.05, lr=...). flatmin.SAM goes around an optimizer that exists."
            )
        base = base_optimizer(params, **kwargs)
        base.defaults["adaptive"] = adaptive  # from where torch fills groups that are added
        for group in base.param_groups:
            group.setdefault("adaptive", adaptive)
        super().__init__(base, two_call, radii={"rho": rho}, trace_window=0)
        self._loosen()

    @property
    def base_optimizer(self) -> Optimizer:
        """The optimizer that makes the step."""
        return self.base

    def first_step(self, zero_grad: bool = False) -> None:
        """Climb to w + e along the gradients that a backward pass has left.

        Several backward passes before it are micro-batches, if as many come before :meth:`second_step`.

        Args:
            zero_grad: Clear the gradients. If nothing does, those of the second backward pass are added to them.

        Raises:
            ProbeError: There are no gradients, or a first step is open already. The weights are clean.
        """
        if self.undo_first_step():
            raise ProbeError(
                "first_step() came twice without second_step() in between, so that this gradient was computed at the "
                "displaced weights. Likely causes: a skipped second_step(), or an exception between the two calls that "
                "was caught; call optimizer.undo_first_step() there. The weights are clean; start the step anew."
            )
        self._groups.require_complete()
        parameters = self._groups.parameters()
        if not grads.current(parameters):
            raise ProbeError(
                "first_step() found no gradients to climb along. Call loss.backward() before first_step() and before "
                "step(closure), and nothing that clears gradients in between. (flatmin.SAM has torch's step(closure), "
                "which needs no backward pass before it.) The weights are as they were."
            )
        modules = self._hosts.modules(parameters.values())
        guards.require_plain_loop(self._hosts.topmost(parameters.values()), climbs_alone=False)
        # The script's own first forward pass has moved the buffers and drawn the random numbers of this step.
        evaluation = Evaluation(parameters, modules=modules, buffers="frozen", common_randomness=False, owned=True)
        start = functools.partial(self._flow, self._groups.stream, **self._arguments())
        self._open, self._ascent = evaluation, Ascent(self, evaluation, start, parameters)
        try:
            self._ascent.climb(keeps_gradients=not zero_grad)
        except BaseException:
            self._abandon()
            raise

    def second_step(self, zero_grad: bool = False) -> None:
        """Return to w and step along the gradients that a backward pass at w + e has left.

        Args:
            zero_grad: Clear the gradients afterwards.

        Raises:
            ProbeError: No first step is open, or there are no gradients. The weights are clean.
            NonFiniteError: The gradient is NaN or infinite, on a CPU; elsewhere that is not asked.
        """
        if self._ascent is None:
            raise ProbeError(
                "second_step() came without first_step() before it, or the first step was given up in between "
                "(undo_first_step(), a checkpoint, a loop over probes). The weights are as they were; start the step "
                "anew with loss.backward() and first_step()."
            )
        self.step()
        if zero_grad:
            self.zero_grad()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take both steps around ``closure``, or without one the second step.

        Args:
            closure: Computes the loss, calls ``backward()``, returns the loss. It is called once, at w + e: as in the
                old class, a backward pass must have come before. (Not so in :meth:`flatmin.SAM.step`.)

        Returns:
            What the closure returns, a tensor without its graph.

        Raises:
            ClosureError: A ``GradScaler`` passes a closure on.
            ProbeError: See :meth:`first_step` and :meth:`second_step`.
        """
        scale, overflow = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)  # set by GradScaler.step
        loss = None
        if closure is None:
            self._descend()
        elif overflow is None:
            loss = self._around(closure)
        else:
            self._abandon()
            raise ClosureError(
                "GradScaler.step(optimizer, closure) would take the closure's gradients as they are, scaled. Call "
                "first_step(), run the second forward and backward, then scaler.step(optimizer)."
            )
        if overflow is not None and float(overflow) > 0:  # the scaler would have waited for it, too
            return None
        if scale is not None:
            grads.rescale(self._groups.parameters(), 1 / float(scale))
        super().step()
        return loss

    def undo_first_step(self) -> bool:
        """Put the weights back without a step and drop the gradients, if a first step is open; tell whether one was.

        For ``except`` blocks, after the second forward or backward pass has failed.
        """
        return self._ascent is not None and self._abandon()

    def _around(self, closure: Callable[[], Any]) -> Any:
        self.first_step(zero_grad=True)
        try:
            with torch.enable_grad():
                loss = closure()
        except BaseException:
            self._abandon()
            raise
        self._descend()
        return loss.detach() if isinstance(loss, Tensor) else loss

    def _descend(self) -> None:
        if self._ascent is None:
            return
        try:
            if not grads.current(self._groups.parameters()):
                raise ProbeError(
                    "No parameter has a gradient at the displaced weights. Between first_step() and second_step(), or "
                    "in the closure, compute the loss anew and call backward(). The weights are as they were."
                )
            self._ascent.descend()
            self._has_evaluated = True
        finally:
            self._abandon()

    def _abandon(self) -> bool:
        ascent, self._ascent = self._ascent, None
        if ascent is not None:
            ascent.disown()
        return super()._abandon()

    def _arguments(self, sign: int = 1) -> dict[str, Any]:
        default = self.defaults.get("adaptive", False)
        flags = [bool(group.get("adaptive", default)) for group in self.param_groups for _ in group["params"]]
        return {**super()._arguments(sign), "adaptive": PerParameter(tuple(map(float, flags)))}

    def state_dict(self) -> dict[str, Any]:
        """Return all of the state, the base's moments among it; an open first step is given up."""
        self.undo_first_step()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of this class, of :class:`flatmin.SAM`, of the base, or of the old class.

        The last did not save the state of its base (momentum, moments), which starts from zero; a warning says so.
        """
        super().load_state_dict(without_scratch(state_dict))

    def _loosen(self) -> None:
        # Held weakly, so that letting go of the optimizer ends an open first step at once, without waiting for cycles.
        owners = weakref.WeakMethod(self._owners)
        self._groups.look_up(lambda parameters: found(parameters) if (found := owners()) else [])

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._ascent: Ascent | None = None
        super().__setstate__(state)
        if state:
            self._loosen()
