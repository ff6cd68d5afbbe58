"""All points of a step in one pass (``step_batched``), beside the same points in turn (``step(closure)``)."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import flatmin as fm
from training.cases import closure_of
from training.problems import Instance, Problem
from training.timing import timed
from training.written import RADIUS

PAIRS = (1, 4)


def _perceptron(width: int, layers: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        hidden = [part for _ in range(layers) for part in (nn.LazyLinear(width), nn.ReLU())]
        network = nn.Sequential(*hidden, nn.LazyLinear(10))
        network(torch.zeros(1, 64))
        return network

    return make


def _convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.GroupNorm(4, 16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3), nn.GroupNorm(4, 32), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(800, 10),
    )  # fmt: skip


def _rows(number: int) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: (torch.randn(number, 64), torch.randint(10, (number,)))


_BOTH = ("cpu", "cuda")
NETWORKS = (
    Problem("perceptron 64-64-10, batch 32", _perceptron(64, 1), _rows(32), _BOTH),
    Problem("perceptron with 3 layers of 256, batch 32", _perceptron(256, 3), _rows(32), _BOTH),
    Problem(
        "two convolutions with group norm, 28 pixels, batch 32",
        _convolutional,
        lambda: (torch.randn(32, 1, 28, 28), torch.randint(10, (32,))),
        _BOTH,
    ),
    Problem("perceptron with 3 layers of 1,024, batch 128", _perceptron(1024, 3), _rows(128), _BOTH),
)


def batched(device: torch.device, *, rounds: int) -> dict[str, Any]:
    """Time both ways of a step in turns; return their ratios, batched to in turn, and the seconds of each."""
    rounds = 10 * rounds  # steps of milliseconds
    return {"rows": [_row(problem, k, device, rounds) for problem in NETWORKS for k in PAIRS]}


def _row(problem: Problem, pairs: int, device: torch.device, rounds: int) -> dict[str, Any]:
    together, in_turn = Instance(problem, device), Instance(problem, device)
    one = fm.NSO(together.sgd(), sigma=RADIUS, num_perturbations=pairs, model=together.model)
    other = fm.NSO(in_turn.sgd(), sigma=RADIUS, num_perturbations=pairs, model=in_turn.model)
    inputs, targets = together.batch
    closure = closure_of(other, in_turn)

    def batched_step() -> None:
        one.step_batched(together.model, lambda net: functional.cross_entropy(net(inputs), targets))

    seconds: dict[str, list[float]] = {"batched": [], "in turn": []}
    for number in range(2 + rounds):
        ways = [("batched", batched_step), ("in turn", lambda: other.step(closure))]
        for name, step in ways if number % 2 else reversed(ways):
            took = timed(step, together)
            if number >= 2:
                seconds[name].append(took)
    ratios = [a / b for a, b in zip(seconds["batched"], seconds["in turn"], strict=True)]
    low, middle, high = quantiles(ratios, n=4)
    return {
        "network": problem.title,
        "parameters": together.size,
        "pairs": pairs,
        "ratio": round(middle, 4),
        "middle_half": [round(low, 4), round(high, 4)],
        **{name: round(median(times), 6) for name, times in seconds.items()},
    }
