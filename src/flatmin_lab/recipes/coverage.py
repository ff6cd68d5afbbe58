"""Whether bounds hold as often as they say: simulated problems whose true risk is known.

- One coin: Q = P, so KL = 0, and the bounds are about one mean. The tightest that there can be.
- The luckiest of 100,000 fair coins, KL = ln 100,000: the worst that honest fitting can do. Left out, the price of the
  choice shows that the simulation can fail.
- A noisy classifier of numbers by their sign, one label in ten flipped: weights fitted to each sample, the best of
  three σ searched, draws of the weights and all. Its true risk is an integral over x of a closed form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from flatmin.bounds import INEQUALITIES, binomial, certify, certify_draw, posterior_risk, seeger_maurer, zero_one
from flatmin.bounds.monte_carlo import batch_mean
from flatmin.bounds.posterior import per_parameter
from flatmin.curvature.risk import EmpiricalRisk
from flatmin_lab.seeds import generator
from flatmin_lab.spec import Value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flatmin_lab.recipes.outcome import Watch

DELTA = 0.1
_COINS = 10**5
_FLIPPED = 0.1
_WEIGHTS = (1.0, 2.0, 4.0, 8.0, 16.0)
_SIGMAS = (2.0, 4.0, 8.0)


class Coverage(Value):
    """How often one bound held on one problem.

    Attributes:
        problem: In a few words.
        bound: Its name.
        holds: Whether it is a bound at all, and not shown for contrast.
        repetitions: Independent samples.
        share: Of the repetitions in which the bound was at least the true risk.
        stderr: Standard error of the share.
        truth: The true risk, on average.
        value: The bound, on average.
    """

    problem: str
    bound: str
    holds: bool = True
    repetitions: int
    share: float
    stderr: float
    truth: float
    value: float


class CoverageTable(Value):
    """All simulations.

    Attributes:
        confidence: That the bounds were asked for.
        seed: Of the simulation.
        rows: One for each problem and bound.
    """

    confidence: float
    seed: int
    rows: tuple[Coverage, ...]


def coverage(repetitions: int = 1000, *, seed: int = 0, watch: Watch = lambda *_: None) -> CoverageTable:
    """Simulate all problems at a confidence of 90 %.

    Args:
        repetitions: Samples of the classifier; of the coins, which cost nothing, ten times as many.
        seed: Of everything random.
        watch: Told of the progress.

    Example:
        >>> table = coverage(2)
        >>> len({row.problem for row in table.rows}), table.confidence
        (4, 0.9)
    """
    rng = np.random.default_rng(seed)
    rows = [*_one_coin(rng, 0.01, 10 * repetitions), *_one_coin(rng, 0.2, 10 * repetitions)]
    rows += _luckiest_coin(rng, 10 * repetitions)
    rows += _classifier(repetitions, seed, watch)
    return CoverageTable(confidence=1 - DELTA, seed=seed, rows=tuple(rows))


def _one_coin(rng: np.random.Generator, risk: float, repetitions: int, n: int = 200) -> Iterator[Coverage]:
    errors = rng.binomial(n, risk, repetitions)
    bounds: dict[str, Callable[[int], float]] = {"hold-out (binomial)": lambda k: binomial(k, n, DELTA)}
    bounds |= {name: lambda k, f=f: f(k / n, 0.0, n, DELTA) for name, f in INEQUALITIES.items()}
    for name, bound in bounds.items():
        yield _counted(f"one coin, risk {risk:g}, n = {n}", name, errors, bound, risk)


def _luckiest_coin(rng: np.random.Generator, repetitions: int, n: int = 100) -> Iterator[Coverage]:
    half = np.cumsum([math.comb(n, k) / 2**n for k in range(n + 1)])  # of a fair coin: chance of at most k errors
    lowest = -np.expm1(np.log1p(-rng.random(repetitions)) / _COINS)  # the least of as many uniform numbers
    errors, problem = np.searchsorted(half, lowest), f"the luckiest of {_COINS:,} fair coins, n = {n}"
    for name, f in INEQUALITIES.items():
        yield _counted(problem, name, errors, lambda k, f=f: f(k / n, math.log(_COINS), n, DELTA), 0.5)
    blind = _counted(problem, "seeger-maurer without KL", errors, lambda k: seeger_maurer(k / n, 0, n, DELTA), 0.5)
    yield blind.model_copy(update={"holds": False})


def _counted(problem: str, name: str, errors: Any, bound: Callable[[int], float], risk: float) -> Coverage:
    values = {k: bound(k) for k in set(errors.tolist())}
    return _row(problem, name, [(values[k], risk) for k in errors.tolist()])


def _row(problem: str, name: str, pairs: list[tuple[float, float]]) -> Coverage:
    """Return the row of a bound from its values and the true risks."""
    values, truths = np.array(pairs).T
    share, count = float(np.mean(values >= truths)), len(pairs)
    return Coverage(
        problem=problem,
        bound=name,
        repetitions=count,
        share=share,
        stderr=math.sqrt(share * (1 - share) / count),
        truth=float(truths.mean()),
        value=float(np.minimum(values, 1).mean()),
    )


@dataclass(frozen=True)
class Line:
    """A sample of numbers and labels, and classifiers of them by sign: two outputs -w x and w x, and biases."""

    x: Tensor
    y: Tensor

    @classmethod
    def drawn(cls, n: int, seed: int) -> Line:
        """Draw ``n`` numbers, uniform in [-1, 1], and their labels."""
        source = generator(seed, "line")
        x = torch.rand(n, 1, generator=source, dtype=torch.float64) * 2 - 1
        flipped = torch.rand(n, generator=source) < _FLIPPED
        return cls(x, (x[:, 0] > 0).long() ^ flipped.long())

    def risk(self, weight: float, sigma: float) -> float:
        """Return the mean error here under N(W, σ²), in closed form: the margin at x has variance 2σ² (x² + 1)."""
        x = self.x[:, 0]
        up = torch.special.ndtr(2 * weight * x / (sigma * (2 * (x.square() + 1)).sqrt()))
        return float(torch.where(self.y == 1, 1 - up, up).mean())

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """Return the sample, five at a time: as many draws of the weights a pass as there are batches."""
        return list(zip(self.x.split(5), self.y.split(5), strict=True))


def true_risk(weight: float, sigma: float) -> float:
    """Return the error on new data of networks drawn around ``weight``: the integral over x, labels flipped or not."""
    x = (torch.arange(4000, dtype=torch.float64)[:, None] + 0.5) / 2000 - 1
    clean = Line(x, (x[:, 0] > 0).long()).risk(weight, sigma)
    return (1 - _FLIPPED) * clean + _FLIPPED * (1 - clean)


def true_risk_of(weights: dict[str, Tensor]) -> float:
    """Return the error on new data of one network, which says 1 on one side of a threshold."""
    slope = float(weights["weight"][1] - weights["weight"][0])
    offset = float(weights["bias"][1] - weights["bias"][0])
    if slope == 0:
        return 0.5
    passed_by = abs(min(1.0, max(-1.0, offset / slope))) / 2  # share of the numbers between the threshold and zero
    wrong = passed_by if slope > 0 else 1 - passed_by
    return (1 - _FLIPPED) * wrong + _FLIPPED * (1 - wrong)


def _classifier(repetitions: int, seed: int, watch: Watch, n: int = 100) -> Iterator[Coverage]:
    found: dict[str, list[tuple[float, float]]] = {}
    for i in range(repetitions):
        watch("coverage", i, repetitions)
        for name, value, truth in _one_fit(Line.drawn(n, seed * repetitions + i), seed=i):
            found.setdefault(name, []).append((value, truth))
    watch("coverage", repetitions, repetitions)
    for name, pairs in found.items():
        yield _row(f"a noisy classifier fitted to n = {n}, σ searched", name, pairs)


def _one_fit(line: Line, seed: int) -> Iterator[tuple[str, float, float]]:
    """Fit weights to a sample, certify them in every way, and yield names, bounds and true risks."""
    weight = min(_WEIGHTS, key=lambda w: line.risk(w, _SIGMAS[1]))
    model = nn.Linear(1, 2).double()
    model.load_state_dict({"weight": torch.tensor([[-weight], [weight]]), "bias": torch.zeros(2)})
    prior = {name: torch.zeros_like(p) for name, p in model.state_dict().items()}
    given: dict[str, Any] = {"prior": prior, "batches": line.batches(), "delta": DELTA, "seed": seed}
    c = certify(model, sigma=_SIGMAS, num_passes=2, **given)
    best: Any = c.sigma
    for name, f in INEQUALITIES.items():
        # For each inequality these σ were fixed; the one that is best for the first may be taken for all.
        yield name, f(c.empirical.upper, c.kl, c.n, c.delta_bound), true_risk(weight, best)
    single, drawn = certify_draw(model, sigma=best, num_searched=len(_SIGMAS), **given)
    yield "single draw", single.risk, true_risk_of(drawn)
    # Small weights, and the prior's variance that minimises KL in hindsight.
    small, sigma = weight / 32, 0.1
    model.load_state_dict({"weight": torch.tensor([[-small], [small]]), "bias": torch.zeros(2)})
    hindsight = math.sqrt(sigma**2 + 2 * small**2 / 4)
    free = certify(model, sigma=sigma, prior_sigma=hindsight, bound="dziugaite-roy", num_passes=2, **given)
    yield "dziugaite-roy, prior's variance fitted", free.risk, true_risk(small, sigma)
    risk = EmpiricalRisk(model, batch_mean(zero_one), line.batches())
    noisy = posterior_risk(risk, per_parameter("sigma", sigma, risk.parameters), num_passes=1, delta=DELTA, seed=seed)
    yield "Monte-Carlo step alone", noisy.upper, line.risk(small, sigma)
