"""Saving, loading, copying, scheduling."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from peers.adapters import Peer
from peers.outcome import Outcome, within, wrong
from peers.problems import closure_of, data, distance, mlp, snapshot, train
from peers.registry import ROUNDING, loop

STATE = "State"


def _go_on(peer: Peer, opt: Any, model: nn.Module, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        peer.step(opt, closure_of(opt, model, data()))


@loop(STATE, "save and resume", "3 steps, `torch.save`, `torch.load` into new objects and 3 more equal 6 steps (AdamW)")
def resume(peer: Peer) -> Outcome:
    """The state dicts of model and optimizer, and nothing else, as every trainer saves."""
    whole, first, second = mlp(), mlp(), mlp()
    _go_on(peer, peer.build(whole, AdamW, lr=0.01), whole, range(6))
    opt, file = peer.build(first, AdamW, lr=0.01), io.BytesIO()
    _go_on(peer, opt, first, range(3))
    torch.save({"model": first.state_dict(), "opt": opt.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second.load_state_dict(saved["model"])
    opt = peer.build(second, AdamW, lr=0.01)
    opt.load_state_dict(saved["opt"])
    _go_on(peer, opt, second, range(3, 6))
    return within(distance(snapshot(whole), snapshot(second)), 0.0)


def _copied(peer: Peer, *, by_pickle: bool) -> Outcome:
    model = mlp()
    opt = peer.build(model, AdamW, lr=0.01)
    _go_on(peer, opt, model, range(2))
    pair = (model, opt)
    other, twin = pickle.loads(pickle.dumps(pair)) if by_pickle else copy.deepcopy(pair)  # noqa: S301  (just made)
    _go_on(peer, opt, model, range(2, 4))
    _go_on(peer, twin, other, range(2, 4))
    return within(distance(snapshot(model), snapshot(other)), 0.0)


@loop(STATE, "deepcopy", "a deep copy of model and optimizer goes on as they do (AdamW)")
def deepcopied(peer: Peer) -> Outcome:
    """As early stopping and evaluation code does."""
    return _copied(peer, by_pickle=False)


@loop(STATE, "pickle", "pickled and loaded, model and optimizer go on as they do (AdamW)")
def pickled(peer: Peer) -> Outcome:
    """As multiprocessing does."""
    return _copied(peer, by_pickle=True)


@loop(
    STATE,
    "LR scheduler",
    "a scheduler on the optimizer divides the learning rate by ten after each of 3 steps as setting it in the base by "
    "hand does, without a warning",
    ROUNDING,
)
def scheduler(peer: Peer) -> Outcome:
    """The schedulers of torch, in their own order."""
    plain, model = mlp(), mlp()
    by_hand, opt = peer.build(plain), peer.build(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        schedule = LambdaLR(opt, lambda step: 0.1**step)
        for step in range(3):
            _go_on(peer, opt, model, range(step, step + 1))
            schedule.step()
    for step in range(3):
        for group in peer.inner(by_hand).param_groups:
            group["lr"] = 0.1 * 0.1**step
        _go_on(peer, by_hand, plain, range(step, step + 1))
    error = distance(snapshot(plain), snapshot(model))
    if caught and error <= ROUNDING:
        return wrong(f"warns: {str(caught[0].message).splitlines()[0]}")
    return within(error, ROUNDING)


@loop(
    STATE,
    "load_state_dict(state_dict())",
    "after the round trip that Accelerate makes before the first step, a learning rate set in the optimizer's groups "
    "still reaches the base",
    ROUNDING,
)
def round_trip(peer: Peer) -> Outcome:
    """Wrapper and base must go on sharing their groups."""
    plain, model = mlp(), mlp()
    reference, opt = peer.build(plain), peer.build(model)
    opt.load_state_dict(opt.state_dict())
    for group in opt.param_groups:
        group["lr"] = 0.01
    for group in peer.inner(reference).param_groups:
        group["lr"] = 0.01
    return within(distance(train(peer.step, reference, plain), train(peer.step, opt, model)), ROUNDING)
