"""A comparison with the shape and the size of a real one, made up: what the report's tests print and draw."""

import math

import numpy as np

from flatmin_lab.spec import Comparison, Point, RunResult, RunSpec, Selection, Study, Surface

GRIDS = {"nso": (0.01, 0.02, 0.05, 0.1), "wpsgd": (0.01, 0.02, 0.05, 0.1), "sam": (0.05, 0.1, 0.2, 0.5)}
CHOSEN = {"nso": 0.05, "wpsgd": 0.05, "sam": 0.5}
# Test accuracy, test loss, train loss, Hessian trace, top eigenvalue: about what digits give.
CENTRES = {
    ("digits-clean", "sgd"): (0.925, 0.31, 4.1e-4, 21.0, 2.1),
    ("digits-clean", "wpsgd"): (0.930, 0.28, 1.9e-3, 9.5, 1.1),
    ("digits-clean", "nso"): (0.934, 0.25, 2.6e-3, 6.2, 0.62),
    ("digits-clean", "sam"): (0.937, 0.24, 4.0e-3, 5.1, 0.49),
    ("digits-noisy", "sgd"): (0.670, 2.35, 3.2e-3, 1140.0, 78.0),
    ("digits-noisy", "wpsgd"): (0.772, 1.20, 0.31, 402.0, 22.0),
    ("digits-noisy", "nso"): (0.848, 0.83, 0.62, 143.0, 9.4),
    ("digits-noisy", "sam"): (0.884, 0.71, 0.78, 96.0, 6.1),
}
COST = {"sgd": 1, "wpsgd": 1, "nso": 2, "sam": 2}


def comparison(
    tasks=("digits-clean", "digits-noisy"), methods=("sgd", "wpsgd", "nso", "sam"), seeds=6, budget=2400, **changes
):
    """Build a whole comparison; ``changes`` replace its fields."""
    spec = Study.crossed(tasks=tasks, methods=methods, seeds=seeds, budget=budget)
    results = tuple(run(t, m, s, budget) for t in tasks for m in methods for s in range(seeds))
    whole = Comparison(
        spec=spec,
        selections=tuple(selection(t, m, budget) for t in tasks for m in methods if m in GRIDS),
        results=results,
        surfaces=tuple(surface(t, m) for t in tasks for m in ("sgd", "nso") if m in methods),
        environment={
            "python": "3.11.9",
            "torch": "2.13.0+cpu",
            "flatmin": "0.1.0",
            "platform": "Linux x86_64, 2 cores",
        },
    )
    return whole.model_copy(update=changes)


def run(task, method, seed, budget=2400, **changes):
    """One run; ``changes`` replace fields of its result."""
    accuracy, test_loss, train_loss, trace, top = CENTRES.get((task, method), CENTRES["digits-noisy", "nso"])
    shared = np.random.default_rng([seed, len(task)])  # seeds are paired: one split, good or bad, for every method
    own = np.random.default_rng([seed, *map(ord, task + method)])
    accuracy = round((accuracy + 0.012 * shared.normal() + 0.006 * own.normal()) * 1197) / 1197
    spread = np.exp(0.06 * own.normal(size=4) + 0.05 * shared.normal())
    result = RunResult(
        spec=RunSpec(task=task, method=method, value=CHOSEN.get(method), seed=seed, budget=budget),
        test_accuracy=accuracy,
        test_loss=test_loss * spread[0],
        train_accuracy=1.0 if train_loss < 0.1 else 0.78,
        train_loss=train_loss * spread[1],
        validation_accuracy=accuracy - 0.004,
        validation_loss=test_loss * 1.02,
        trace=trace * spread[2],
        trace_stderr=0.015 * trace,
        top_eigenvalue=top * spread[3],
        top_eigenvalue_residual=1e-4,
        seconds=2.4 + 0.3 * own.random(),
        gradient_evaluations=budget,
        history=history(method, accuracy, train_loss, trace, budget, own),
    )
    return result.model_copy(update=changes)


def history(method, accuracy, train_loss, trace, budget, random, points=24):
    """A training history that ends near the run's numbers."""
    rows = []
    for i in range(points + 1):
        t = i / points
        loss = train_loss + (2.3 - train_loss) * math.exp(-7 * t) * math.exp(0.04 * random.normal())
        peak = 0.84 + (accuracy - 0.84) * max(0.0, (t - 0.2) / 0.8) if accuracy < 0.84 else accuracy
        live = (
            trace * (1 + 3 * math.exp(-6 * t)) * (1 - math.exp(-12 * t)) if method in ("nso", "wpsgd") and i else None
        )
        rows.append(
            Point(
                evaluations=round(budget * t),
                train_loss=loss,
                train_accuracy=1 - math.exp(-5 * t) * 0.9,
                validation_loss=loss + 0.3,
                validation_accuracy=0.1 + (peak - 0.1) * (1 - math.exp(-14 * t)) + 0.006 * random.normal(),
                live_trace=None if live is None else live * (1 + 0.08 * random.normal()),
                live_trace_stderr=None if live is None else 0.12 * live,
            )
        )
    return tuple(rows)


def selection(task, method, budget=2400):
    """A grid searched; SAM takes its edge."""
    grid, chosen = GRIDS[method], CHOSEN[method]
    top = CENTRES.get((task, method), (0.84,))[0] - 0.004
    scores = tuple(top - 0.02 * abs(math.log2(value / chosen)) for value in grid)
    return Selection(
        task=task,
        method=method,
        budget=budget,
        hyperparameter="rho" if method == "sam" else "sigma",
        grid=grid,
        validation_accuracies=scores,
        chosen=chosen,
    )


def surface(task, method, size=25):
    """A bowl with a lopsided rim, sharp for SGD."""
    x = np.linspace(-1, 1, size)
    a, b = np.meshgrid(x, x, indexing="ij")
    steep, floor = (7.0, 4e-3) if method == "sgd" else (1.6, 2.5e-2)
    loss = floor + steep * (a**2 + 0.4 * b**2 + 0.25 * a * b) / (1 + 0.15 * (a**2 + b**2)) + 0.03 * np.sin(5 * a) ** 2
    return Surface(
        task=task,
        method=method,
        seed=0,
        coordinates=tuple(map(float, x)),
        loss=tuple(tuple(map(float, row)) for row in loss),
    )
