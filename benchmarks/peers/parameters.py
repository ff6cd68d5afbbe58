"""Parameters that are not all trained, dense, of one type, or used in every pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peers.adapters import Peer
from peers.outcome import Outcome, not_applicable, ok, within, wrong
from peers.problems import Batch, closure_of, data, distance, mlp, seeded, snapshot, train
from peers.registry import ROUNDING, loop

PARAMETERS = "Parameters"


class _WithSpare(nn.Module):
    """An MLP with a layer that is used only in the passes named."""

    def __init__(self, passes: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.net = mlp()
        self.spare = seeded(lambda: nn.Linear(6, 3)).double()
        self.passes = passes
        self.count = 0

    def forward(self, inputs: Tensor) -> Tensor:
        """Use the spare layer where it is asked for."""
        self.count += 1
        extra = self.spare(inputs) if self.count - 1 in self.passes else 0.0
        return self.net(inputs) + extra


@loop(
    PARAMETERS,
    "never used",
    "a layer that no forward pass uses stays as it is, and without noise the others move as they would without it",
    ROUNDING,
)
def unused(peer: Peer) -> Outcome:
    """Its gradient is None."""
    plain, model = mlp(), _WithSpare()
    spare = snapshot(model.spare)
    expected = train(peer.step, peer.build(plain, quiet=True), plain)
    train(peer.step, peer.build(model, quiet=True), model)
    if moved := distance(spare, snapshot(model.spare)):
        return wrong("it moves", moved)
    return ok() if peer.noise else within(distance(expected, snapshot(model.net)), ROUNDING)


@loop(
    PARAMETERS,
    "used in one pass only",
    "a layer that is dropped in the last pass of a step, and used in the others, is back after it at lr = 0",
    ROUNDING,
)
def dropped_layer(peer: Peer) -> Outcome:
    """Stochastic depth, mixtures of experts."""
    if peer.passes < 2:
        return not_applicable("a step has one pass")
    model = _WithSpare()
    opt = peer.build(model, lr=0.0)
    before = snapshot(model)
    model.passes = tuple(range(_passes(peer) - 1))  # in all but the last
    train(peer.step, opt, model, steps=1)
    return within(distance(before, snapshot(model)), ROUNDING)


def _passes(peer: Peer) -> int:
    """Count the forward passes of a step."""
    model = _WithSpare(tuple(range(9)))
    train(peer.step, peer.build(model, lr=0.0), model, steps=1)
    return model.count


@loop(
    PARAMETERS,
    "frozen",
    "a frozen layer among the parameters stays as it is, and without noise the others move as they would without it",
    ROUNDING,
)
def frozen(peer: Peer) -> Outcome:
    """``requires_grad=False``, in the optimizer all the same; default settings."""
    plain, model = mlp(), mlp()
    for net in (plain, model):
        net[2].requires_grad_(requires_grad=False)
    before = snapshot(model[2])
    expected = None
    if peer.base and not peer.noise:
        only = nn.ModuleList([plain[0], plain[4]])
        opt = peer.build(only)
        if hasattr(opt, "model"):
            opt.model = plain
        expected = train(peer.step, opt, plain)
    train(peer.step, peer.build(model), model)
    if moved := distance(before, snapshot(model[2])):
        return wrong("it moves", moved)
    return ok() if expected is None else within(distance(expected, snapshot(model)), ROUNDING)


@loop(PARAMETERS, "sparse gradients", "an embedding with sparse gradients is trained as a dense one is (SGD)", ROUNDING)
def sparse(peer: Peer) -> Outcome:
    """``nn.Embedding(sparse=True)``, with indices that repeat."""
    tokens = seeded(lambda: torch.randint(0, 10, (24, 4)))
    ends = []
    for kind in (False, True):
        table = seeded(lambda kind=kind: nn.Embedding(10, 5, sparse=kind)).double()
        model = nn.Sequential(table, nn.Flatten(), seeded(lambda: nn.Linear(20, 3)).double())
        batch: Batch = (tokens, data()[1])
        ends.append(train(peer.step, peer.build(model), model, batch))
    return within(distance(*ends), ROUNDING)


class _Mixed(nn.Module):
    """One layer in float32, one in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.first = seeded(lambda: nn.Linear(6, 8))
        self.second = seeded(lambda: nn.Linear(8, 3)).bfloat16()

    def forward(self, inputs: Tensor) -> Tensor:
        """Cast in between."""
        return self.second(torch.tanh(self.first(inputs)).bfloat16())


@loop(PARAMETERS, "float32 and bfloat16", "20 steps at lr = 0 leave a model of both types as it was")
def mixed(peer: Peer) -> Outcome:
    """Two types in one group."""
    model, batch = _Mixed(), data(dtype=torch.float32)
    before = snapshot(model)
    opt = peer.build(model, lr=0.0)
    for step in range(20):
        torch.manual_seed(step)
        peer.step(opt, closure_of(opt, model, batch))
    return within(distance(before, snapshot(model)), 0.0)
