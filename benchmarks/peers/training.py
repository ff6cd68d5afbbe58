"""What training loops add: accumulation, mixed precision, clipping, checkpointing, compilation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.checkpoint import checkpoint

from peers.adapters import Peer
from peers.outcome import Outcome, not_applicable, ok, within, wrong
from peers.problems import Batch, closure_of, data, distance, loss_of, mlp, snapshot, train
from peers.registry import ROUNDING, loop

LOOP = "Training loops"
SCALE = 2.0**12


def _micro(batch: Batch, parts: int = 3) -> list[Batch]:
    return list(zip(*(tensor.chunk(parts) for tensor in batch), strict=True))


@loop(
    LOOP,
    "accumulation, in each pass",
    "3 steps with 3 micro-batches inside every pass equal those on the big batch",
    ROUNDING,
)
def accumulation_inside(peer: Peer) -> Outcome:
    """Possible where the loop is one's own and holds all micro-batches at once."""
    whole, model, batch = mlp(), mlp(), data()
    opt = peer.build(model, quiet=True)

    def closure() -> Tensor:
        opt.zero_grad()
        losses = [loss_of(model, part) / 3 for part in _micro(batch)]
        for loss in losses:
            loss.backward()
        return sum(losses)  # pyright: ignore[reportReturnType]

    expected = train(peer.step, peer.build(whole, quiet=True), whole, batch)
    for _ in range(3):
        peer.step(opt, closure)
    return within(distance(expected, snapshot(model)), ROUNDING)


@loop(
    LOOP,
    "accumulation, as trainers do",
    "a step from 3 micro-batches, seen one after another and once each, equals that on the big batch",
    ROUNDING,
)
def accumulation_outside(peer: Peer) -> Outcome:
    """The order of Hugging Face Trainer, Accelerate and Lightning, which keep no micro-batch."""
    whole, model, batch = mlp(), mlp(), data()

    def backward_of(part: Batch) -> Callable[[float], Tensor]:
        def backward(share: float) -> Tensor:
            (loss := share * loss_of(model, part)).backward()
            return loss

        return backward

    expected = train(peer.step, peer.build(whole, quiet=True), whole, batch, steps=1)
    peer.accumulate(peer.build(model, quiet=True), [backward_of(part) for part in _micro(batch)])
    return within(distance(expected, snapshot(model)), ROUNDING)


def _cast(peer: Peer, *, whole_step: bool) -> Outcome:
    def autocast(cached: bool) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, cache_enabled=cached)

    ends = []
    for cached in (True, False):
        model, batch = mlp(torch.float32), data(dtype=torch.float32)

        def loss(*args: Any, cached: bool = cached) -> Tensor:
            with autocast(cached):
                return loss_of(*args)

        opt = peer.build(model)
        closure = closure_of(opt, model, batch, loss_of if whole_step else loss)
        for step in range(3):
            torch.manual_seed(step)
            if whole_step:
                with autocast(cached):
                    peer.step(opt, closure)
            else:
                peer.step(opt, closure)
        ends.append(snapshot(model))
    return within(distance(*ends), 0.0)


@loop(
    LOOP,
    "autocast",
    "3 steps with bfloat16 autocast around the forward pass do not depend on its cache of cast weights",
)
def autocast_forward(peer: Peer) -> Outcome:
    """As torch recommends it."""
    return _cast(peer, whole_step=False)


@loop(
    LOOP,
    "autocast around the step",
    "the same with autocast around the whole step, which torch advises against: its passes share the cache",
)
def autocast_step(peer: Peer) -> Outcome:
    """Torch advises against it, and it is common."""
    return _cast(peer, whole_step=True)


def _scaler() -> Any:
    return torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=1000)


def _under_scaler(peer: Peer, drive: Callable[..., None]) -> Outcome:
    plain, model, batch = mlp(), mlp(), data()
    opt, scaler = peer.build(model, quiet=True), _scaler()
    expected = train(peer.step, peer.build(plain, quiet=True), plain, batch)
    for _ in range(3):
        drive(opt, scaler, lambda: loss_of(model, batch))
    return within(distance(expected, snapshot(model)), ROUNDING)


@loop(LOOP, "GradScaler, usual pattern", "3 steps with `scaler.step(opt, ...)` equal those without a scaler", ROUNDING)
def scaler_usual(peer: Peer) -> Outcome:
    """``scale(loss).backward(); step; update``."""
    return _under_scaler(peer, peer.scaled)


@loop(LOOP, "GradScaler, by hand", "the same with the best pattern we know, unscaling by hand in each pass", ROUNDING)
def scaler_by_hand(peer: Peer) -> Outcome:
    """What a user can make work."""
    return _under_scaler(peer, peer.by_hand)


@loop(
    LOOP,
    "GradScaler, overflow",
    "by the same pattern, without checks of one's own, a step with infinite gradients is skipped: the weights stay, "
    "and the next step is as if it had not been",
    ROUNDING,
)
def scaler_overflow(peer: Peer) -> Outcome:
    """Which is what a scaler is for."""
    plain, model, batch, factor = mlp(), mlp(), data(), 1.0
    expected = train(peer.step, peer.build(plain, quiet=True), plain, batch, steps=2)
    opt, scaler = peer.build(model, quiet=True), _scaler()
    for factor in (1.0, torch.inf, 1.0):
        before = snapshot(model)
        try:
            peer.by_hand(opt, scaler, lambda factor=factor: factor * loss_of(model, batch))
        except Exception:
            if factor == 1.0:
                raise
        if factor != 1.0 and (moved := distance(before, snapshot(model))):
            return wrong("the step is made", moved)
    return within(distance(expected, snapshot(model)), ROUNDING, "the next step is another one")


@loop(
    LOOP,
    "unscale_ and clip",
    "with `unscale_` and `clip_grad_norm_` the step is the unclipped one, shortened to the threshold (SGD, first step)",
    ROUNDING,
)
def clipping(peer: Peer) -> Outcome:
    """One clip of the final gradient."""
    if not peer.base and not _descends(peer):
        return not_applicable("its update is no descent along one gradient")
    free, model, batch, limit, lr = mlp(), mlp(), data(), 0.05, 0.1
    start = snapshot(model)
    end = train(peer.step, peer.build(free, quiet=True, lr=lr), free, batch, steps=1)
    direction = {name: (start[name] - end[name]) / lr for name in start}
    length = float(torch.cat([d.flatten() for d in direction.values()]).norm())
    expected = {name: start[name] - lr * min(1.0, limit / length) * direction[name] for name in start}
    parameters = list(model.parameters())
    opt = peer.build(model, quiet=True, lr=lr)
    peer.by_hand(opt, _scaler(), lambda: loss_of(model, batch), lambda: clip_grad_norm_(parameters, limit))
    return within(distance(expected, snapshot(model)), ROUNDING)


def _descends(peer: Peer) -> bool:
    """Tell whether, silenced, it takes a step along the gradient (IVON does)."""
    model, plain = mlp(), mlp()
    got = train(peer.step, peer.build(model, quiet=True), model, steps=1)
    expected = train(lambda o, c: o.step(c), torch.optim.SGD(plain.parameters(), lr=0.1), plain, steps=1)
    return distance(got, expected) < ROUNDING


class _Checkpointed(nn.Module):
    """The same layers, recomputed in the backward pass."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, inputs: Tensor) -> Tensor:
        """Run under activation checkpointing."""
        return checkpoint(self.layers, inputs, use_reentrant=False)  # pyright: ignore[reportReturnType]


@loop(LOOP, "activation checkpointing", "3 steps with recomputed activations equal those with stored ones", ROUNDING)
def checkpointing(peer: Peer) -> Outcome:
    """The recomputation must see the displaced weights."""
    plain, layers = mlp(), mlp()
    model = _Checkpointed(layers)
    expected = train(peer.step, peer.build(plain), plain)
    train(peer.step, peer.build(layers), model)
    return within(distance(expected, snapshot(layers)), ROUNDING)


@loop(
    LOOP, "torch.compile", "4 steps of a compiled model equal those of the model, with one graph (aot_eager)", ROUNDING
)
def compiled(peer: Peer) -> Outcome:
    """Displaced weights must be seen, and must not make it compile again."""
    torch._dynamo.reset()
    aot_eager, graphs = torch._dynamo.lookup_backend("aot_eager"), 0

    def backend(graph: Any, inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return aot_eager(graph, inputs)

    plain, model = mlp(), mlp()
    expected = train(peer.step, peer.build(plain), plain, steps=4)
    train(peer.step, peer.build(model), torch.compile(model, backend=backend), steps=4)
    error = distance(expected, snapshot(model))
    if error > ROUNDING:
        return wrong("", error)
    return ok() if graphs == 1 else wrong(f"{graphs} graphs")
