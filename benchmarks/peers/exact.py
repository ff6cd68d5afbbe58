"""Restoring exactly, being the base optimizer at radius 0, cost, randomness, and the calling convention."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from peers.adapters import Peer
from peers.outcome import Outcome, not_applicable, ok, within, wrong
from peers.problems import closure_of, data, distance, dropped, loss_of, mlp, normed, snapshot, train
from peers.registry import ROUNDING, loop

EXACT, CALL = "Exactness", "Calling convention"
NO_BASE = not_applicable("it wraps no base optimizer")


def _still(peer: Peer, dtype: torch.dtype) -> Outcome:
    model, batch = mlp(dtype), data(dtype=dtype)
    before = snapshot(model)
    after = train(peer.step, peer.build(model, lr=0.0), model, batch, steps=20)
    return within(distance(before, after), 0.0)


@loop(EXACT, "lr = 0, float32", "20 steps at learning rate 0 leave every weight as it was")
def still_float32(peer: Peer) -> Outcome:
    """Displace and restore."""
    return _still(peer, torch.float32)


@loop(EXACT, "lr = 0, bfloat16", "the same in bfloat16, where adding and subtracting drifts")
def still_bfloat16(peer: Peer) -> Outcome:
    """Displace and restore in few bits."""
    return _still(peer, torch.bfloat16)


def _as_base(peer: Peer, make: Callable[..., nn.Module]) -> Outcome:
    if not peer.base:
        return NO_BASE
    plain, model = make(torch.float32), make(torch.float32)
    batch = data(dtype=torch.float32)
    base = SGD(plain.parameters(), lr=0.1)
    expected = train(lambda opt, closure: opt.step(closure), base, plain, batch, steps=5)
    got = train(peer.step, peer.build(model, off=True), model, batch, steps=5)
    gaps = {name: distance({name: expected[name]}, {name: got[name]}) for name in expected}
    differing = [name for name, gap in gaps.items() if gap]
    if not differing:
        return ok()
    buffers = dict(plain.named_buffers())
    worst = max(gap for name, gap in gaps.items() if not name.endswith("num_batches_tracked")) or None
    only = "in buffers only: " + ", ".join(name.rsplit(".", 1)[-1] for name in differing)
    return wrong(only if all(name in buffers for name in differing) else "", worst)


@loop(EXACT, "radius 0", "5 steps at radius 0 are those of the base optimizer (SGD)")
def off_plain(peer: Peer) -> Outcome:
    """The base optimizer, without layers that keep or draw anything."""
    return _as_base(peer, mlp)


@loop(EXACT, "radius 0, batch norm", "the same with batch normalization, whose running statistics move once a step")
def off_batch_norm(peer: Peer) -> Outcome:
    """Buffers."""
    return _as_base(peer, normed)


@loop(EXACT, "radius 0, dropout", "the same with dropout, whose masks come from the global generator")
def off_dropout(peer: Peer) -> Outcome:
    """The stream of masks."""
    return _as_base(peer, dropped)


@loop(EXACT, "global random state", "a step leaves the global generator where plain training on this model would", None)
def random_state(peer: Peer) -> Outcome:
    """With dropout in the model, one forward pass a step is what plain training draws."""
    plain, model = dropped(), dropped()
    train(lambda opt, closure: opt.step(closure), SGD(plain.parameters(), lr=0.1), plain, steps=1)
    expected = torch.get_rng_state()
    train(peer.step, peer.build(model), model, steps=1)
    return ok() if torch.equal(expected, torch.get_rng_state()) else wrong("the generator is elsewhere")


@loop(EXACT, "seeded noise", "the noise is that of the method's own seed, whatever the state of the global generator")
def seeded_noise(peer: Peer) -> Outcome:
    """Equal seeds, different global states."""
    if not peer.noise:
        return not_applicable("it draws no noise")
    ends = []
    for seed in (1, 2):
        model = mlp()
        opt = peer.build(model)
        torch.manual_seed(seed)
        for _ in range(3):
            peer.step(opt, closure_of(opt, model, data()))
        ends.append(snapshot(model))
    return within(distance(*ends), 0.0, "it has no seed")


@loop(EXACT, "gradients a step", "10 steps cost the gradients that the method's paper promises", None)
def cost(peer: Peer) -> Outcome:
    """Count the forward passes."""
    model, count = mlp(), 0

    def counted(*args: Any) -> Tensor:
        nonlocal count
        count += 1
        return loss_of(*args)

    opt = peer.build(model)
    for _ in range(10):
        peer.step(opt, closure_of(opt, model, data(), counted))
    if count == round(10 * peer.evaluations):
        return ok()
    return wrong(f"{count / 10:g} a step instead of {peer.evaluations:g}")


@loop(
    CALL,
    "step(closure)",
    "torch's own contract: without a backward pass before, `step(closure)` with a closure that clears, computes, calls "
    "backward and returns the loss makes the same 3 steps as the documented loop, and returns the loss",
    ROUNDING,
)
def contract(peer: Peer) -> Outcome:
    """What Lightning, and any code written for LBFGS, does."""
    documented, model, batch = mlp(), mlp(), data()
    reference = peer.build(documented)
    opt, losses, returned = peer.build(model), [], None

    def recorded(*args: Any) -> Tensor:
        losses.append(float(value := loss_of(*args)))
        return value

    def backward(share: float) -> Tensor:
        (value := share * loss_of(documented, batch)).backward()
        return value

    for step in range(3):
        torch.manual_seed(step)
        peer.accumulate(reference, [backward])
        torch.manual_seed(step)
        losses.clear()
        returned = opt.step(closure_of(opt, model, batch, recorded))
    error = distance(snapshot(documented), snapshot(model))
    if error > ROUNDING:
        return wrong("other steps than those of the documented loop", error)
    if returned is None:
        return wrong("right steps, but it returns None")
    expected = [*losses, sum(losses) / len(losses)]
    return ok() if min(abs(float(returned) - value) for value in expected) < ROUNDING else wrong("not the loss")


@loop(
    CALL,
    "plain backward and step()",
    "the loop of a trainer that knows nothing of it, `zero_grad(); backward(); step()`, is the method or is refused, "
    "and never the base optimizer unnoticed",
    None,
)
def plain_loop(peer: Peer) -> Outcome:
    """Hugging Face Trainer, or a loop in which the change was forgotten."""
    if peer.distribution == "torch":
        return not_applicable("it is the base optimizer")
    plain, model, batch = mlp(), mlp(), data()
    expected = train(lambda opt, closure: opt.step(closure), SGD(plain.parameters(), lr=0.1), plain, batch)
    opt = peer.build(model)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                closure_of(opt, model, batch)()
                opt.step()
    except Exception as error:  # noqa: BLE001  (a refusal, of whatever kind, is what is asked for)
        return ok(f"refused: {type(error).__name__}")
    same = distance(expected, snapshot(model)) <= ROUNDING
    return wrong("it is the base optimizer's step, without a word") if same and not caught else ok()


@loop(
    CALL,
    "exception in a pass",
    "when the last forward pass of a step raises, the weights are as before it, and no module stays switched",
)
def exception(peer: Peer) -> Outcome:
    """Running out of memory in the second pass, or Ctrl-C."""
    trial, model, batch, calls, last = normed(), normed(), data(), 0, 0

    def failing(*args: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == last:
            raise MemoryError
        return loss_of(*args)

    opt = peer.build(trial)
    peer.step(opt, closure_of(opt, trial, batch, failing))
    calls, last, opt = 0, calls, peer.build(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    try:
        peer.step(opt, closure_of(opt, model, batch, failing))
    except MemoryError:
        error = distance(before, {name: p.detach() for name, p in model.named_parameters()})
        stuck = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d) and m.momentum != 0.1]
        detail = "and batch norm's momentum stays at 0" if stuck else ""
        return wrong(detail, error) if error or stuck else ok()
    return wrong("the exception is swallowed")
