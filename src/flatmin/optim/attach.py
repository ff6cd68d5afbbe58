"""Noise stability optimization by hooks alone, for training loops that cannot be edited."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from flatmin.checks import whole
from flatmin.distributed import reshard, sharded_modules
from flatmin.errors import ArgumentError, ArgumentTypeError
from flatmin.noise import Law, resolve_law
from flatmin.optim import guards
from flatmin.optim.attachment import Attachment, MicroBatches, Smoother, TraceWitness
from flatmin.optim.attachment.reach import require_hookable
from flatmin.optim.patterns import Radius
from flatmin.optim.ranks import RankPolicy
from flatmin.optim.wrapper import ATTACHED, Wrapper, needs_closure
from flatmin.perturb import Hosts

_EXAMPLE = "fm.attach(model, torch.optim.SGD(model.parameters(), lr=0.02), sigma=0.01)"


def attach(
    model: nn.Module,
    optimizer: Optimizer,
    sigma: Radius,
    *,
    noise: str | Law = "gaussian",
    noise_scale: str = "absolute",
    seed: int = 0,
    ranks: RankPolicy = "shared",
    scaler: torch.amp.GradScaler | None = None,
    trace_window: int = 100,
) -> Attachment:
    r"""Train on the smoothed loss in any loop: two-point weight noise at the price of the base optimizer.

    Every forward pass of ``model`` in training mode is one micro-batch and is evaluated at displaced weights. The two
    points of a pair fall on successive micro-batches (or, with ``ranks="antithetic"``, on neighbouring ranks):

    .. math:: g = \tfrac12\left[\nabla f_{B_1}(w + u) + \nabla f_{B_2}(w - u)\right],\qquad u\sim\sigma\mathcal P

    is an unbiased estimate of the gradient of :math:`F(w) = \mathbb E f(w + u)`, from which the first-order term of the
    noise cancels but for the difference between the batches. :class:`~flatmin.optim.NSO` evaluates both points on one
    batch, at twice the price (Zhang, Li, Ju, arXiv:2306.08553, Algorithm 1). Cost: one gradient and one noise draw a
    micro-batch, and one copy of the weights while they are displaced.

    The weights stay displaced until the backward pass of that forward pass has ended, and are then put back bit for
    bit. They are clean in evaluations (evaluation mode, or no gradients recorded), for ``state_dict()``, copies and
    pickles, and when the optimizer steps. A training forward pass that begins while another one's graph is still to be
    used sees the same displacement and belongs to the same micro-batch.

    Nothing but hooks is involved, so the loop may be that of a trainer, accumulate gradients, scale losses, clip,
    compile or shard the model. Attach to the module that the loop calls; to what ``torch.compile`` returned rather than
    to what was given to it; after ``fully_shard``.

    Args:
        model: The module that the loop calls.
        optimizer: What steps, holding parameters of the model; wrappers such as Accelerate's are looked into. All its
            parameters that require gradients are displaced.
        sigma: Standard deviation of the noise on each weight: a number, a function of the number of steps, or a mapping
            from patterns of parameter names to either. A parameter group may have its own; 0 is plain training.
        noise: Name of a law, or a law.
        noise_scale: Unit of sigma: ``"absolute"``, or the norm of each ``"parameter"`` or ``"filter"``.
        seed: Seed of the noise.
        ranks: ``"shared"``: all ranks draw the same noise, as one process would. ``"independent"``: each its own.
            ``"antithetic"``: ranks 2i and 2i + 1 draw u and -u, anew for each micro-batch.
        scaler: The ``GradScaler`` in use, if any, for the live trace.
        trace_window: Number of steps that the live trace looks back; 0 turns it off.

    Returns:
        The handle: ``remove()`` ends it, as does leaving it as a context; ``trace_estimate`` is the live trace. The
        number of the micro-batch and the seed are entries of the optimizer's groups: its checkpoints resume bit for
        bit. The handle's own ``state_dict()`` holds the samples of the trace, and need not be saved.

    Raises:
        ArgumentError: A value that cannot work; an optimizer of other parameters or with a line search (LBFGS); a model
            or an optimizer that is attached already, is wrapped by a method of flatmin, or lives in an engine of
            DeepSpeed or the older FSDP.
        ArgumentTypeError: An argument of the wrong kind.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> handle = attach(model, optimizer, sigma=0.01)
        >>> for micro_batch in torch.ones(2, 4, 3):
        ...     (model(micro_batch).square().mean() / 2).backward()
        >>> optimizer.step()
        >>> handle
        Attachment(sigma=0.01, ranks='shared', after 2 micro-batches)
        >>> handle.remove()
    """
    _require_model(model)
    optimizer = _unwrapped(optimizer)
    law = resolve_law(noise)
    guards.require_scaler(scaler)
    window = whole("trace_window", trace_window, minimum=0, hint="It is a number of steps; 0 turns the trace off.")
    _require_fit(model, optimizer)
    hosts = Hosts()
    with _left_as_found(optimizer):
        micro_batches = MicroBatches(
            optimizer, sigma=sigma, noise_scale=noise_scale, law=law, seed=seed, ranks=ranks, hosts=hosts
        )
        parameters = micro_batches.groups.parameters()
        guards.require_trainable(parameters, sum(len(group["params"]) for group in optimizer.param_groups))
        guards.require_usable(parameters)
        require_hookable(model, hosts.topmost(parameters.values()))
        witness = TraceWitness(window, micro_batches, scaler, hosts)
        micro_batches.bind_schedules(witness)
        smoother = Smoother(model, optimizer, micro_batches, witness, hosts)
    ATTACHED.add(smoother)
    return Attachment(smoother, micro_batches, witness)


@contextmanager
def _left_as_found(optimizer: Optimizer) -> Iterator[None]:
    """Take out of the parameter groups what an attachment that fails has put there: the next one would take it up."""
    found = [dict(group) for group in optimizer.param_groups]
    try:
        yield
    except BaseException:
        for group, before in zip(optimizer.param_groups, found, strict=True):
            for name in group.keys() - before.keys():
                del group[name]
            group.update(before)
        raise


def _require_model(model: Any) -> None:
    if isinstance(model, Optimizer):
        raise ArgumentTypeError(f"model is an optimizer; the model comes first: {_EXAMPLE}.")
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"model is a {type(model).__name__}, but a torch.nn.Module is needed: {_EXAMPLE}.")
    if isinstance(model, torch.jit.ScriptModule):
        raise ArgumentTypeError("model is a ScriptModule, which takes no hooks. Attach to a module that contains it.")


def _unwrapped(optimizer: Any) -> Optimizer:
    """Return the torch optimizer that steps, within wrappers that hand on to one; refuse what cannot be attached."""
    outer = optimizer
    while not isinstance(optimizer, Wrapper) and isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer
    for each in (outer, optimizer, getattr(optimizer, "optimizer", None)):
        if type(each).__module__.startswith("deepspeed") and not type(each).__module__.startswith("deepspeed.ops"):
            raise ArgumentTypeError(
                f"optimizer is a {type(each).__name__} of DeepSpeed, whose engine keeps the weights that are trained "
                "and steps by itself: hooks do not reach it. Train with FSDP2 (torch.distributed.fsdp.fully_shard) or "
                "DistributedDataParallel."
            )
    if isinstance(optimizer, type):
        raise ArgumentTypeError(f"optimizer is the class {optimizer.__name__}; pass an instance of it: {_EXAMPLE}.")
    if not isinstance(optimizer, Optimizer):
        raise ArgumentTypeError(
            f"optimizer is a {type(optimizer).__name__}, but a torch.optim.Optimizer is needed: {_EXAMPLE}."
        )
    if isinstance(optimizer, Wrapper):
        raise ArgumentError(
            f"optimizer is a {type(optimizer).__name__}, which displaces the weights itself. Use it without attach, or "
            "attach to the plain optimizer, opt.base, and step that."
        )
    if needs_closure(optimizer):
        raise ArgumentError(
            f"optimizer is a {type(optimizer).__name__}, which evaluates the loss several times a step and compares: "
            "with fresh noise each time its line search would compare different functions. Use "
            f"fm.NSO({type(optimizer).__name__}(...)), which keeps the noise of a step, or an optimizer without one."
        )
    return optimizer


def _require_fit(model: nn.Module, optimizer: Optimizer) -> None:
    """Raise unless ``optimizer`` steps parameters of ``model`` that no other attachment displaces."""
    reshard(sharded_modules(model.modules()))  # which only then holds the parameters that optimizers are given
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if held.isdisjoint(map(id, model.parameters())):
        raise ArgumentError(
            "The optimizer holds none of the model's parameters. Likely causes: it is that of another model, or the "
            "model was copied, sharded or given new parameters after it was made. Make the optimizer from "
            "model.parameters(), right before attaching."
        )
    for other in ATTACHED:
        theirs = {id(parameter) for group in other.optimizer.param_groups for parameter in group["params"]}
        if other.model is not None and not held.isdisjoint(theirs):
            raise ArgumentError(
                f"The optimizer's parameters are displaced already by an attachment ({other.micro_batches}). Call "
                "remove() on its handle first; to change the noise, set 'sigma' in optimizer.param_groups."
            )
