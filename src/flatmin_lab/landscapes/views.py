"""Which lines and planes through solutions are looked along."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

import flatmin as fm
from flatmin.curvature.journal import Journal
from flatmin.landscape import (
    Trajectory,
    difference,
    eigenvector_directions,
    random_directions,
    trajectory_plane,
    unit,
)
from flatmin.landscape.directions import length_of
from flatmin_lab.landscapes.record import Mark

if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence

    from flatmin.landscape import Direction
    from flatmin_lab.data.examples import Examples
    from flatmin_lab.landscapes.record import LandscapeSpec
    from flatmin_lab.models.loading import Subject

_BEYOND = 0.25  # of the way between two solutions, on either side
_AROUND = 1.0  # a solution: lengths of its filters, or distance along eigenvectors

Told = Callable[[str, int, int | None], object]
"""Progress: what is at work, how much of it is done, and of how much; None where nobody knows."""


@dataclass(frozen=True)
class Solution:
    """One of the networks that are looked at.

    Attributes:
        path: Where its weights are, as it was named.
        label: What it is called in pictures.
        method: Of the run it is of.
        subject: The network.
    """

    path: str
    label: str
    method: str | None
    subject: Subject


@dataclass(frozen=True)
class View:
    """A line or a plane to evaluate."""

    label: str
    solution: Solution
    directions: Sequence[Direction]
    axes: tuple[torch.Tensor, ...] = ()
    found: dict[str, Any] = field(default_factory=dict)


def views(
    spec: LandscapeSpec,
    solutions: Sequence[Solution],
    examples: Examples,
    store: MutableMapping[str, Any],
    progress: Told,
) -> list[View]:
    """Return the lines or planes that ``spec`` asks for.

    Args:
        spec: Completed.
        solutions: The networks, on their device.
        examples: What the Hessian is taken on.
        store: Where its products are kept.
        progress: Told how many there were.
    """
    number = spec.dimensions or 2
    if spec.directions == "between":
        return _across(spec, solutions) if number == 2 else _ways(spec, solutions)
    if spec.directions == "random":
        looks, default = _random(spec, solutions, number)
    else:
        looks, default = [_bent(spec, s, examples, number, store, progress) for s in solutions], _AROUND
    reach = spec.reach or default
    axis = torch.linspace(-reach, reach, spec.points, dtype=torch.float64)
    return [replace(view, axes=(axis,) * number) for view in looks]


def _random(spec: LandscapeSpec, solutions: Sequence[Solution], number: int) -> tuple[list[View], float]:
    """Return views along random directions, and how far they go: as far as the lengths of filters would."""
    drawn = [random_directions(s.subject.model, number, seed=spec.seed) for s in solutions]
    if spec.unit == "filters":
        return [View(s.label, s, d) for s, d in zip(solutions, drawn, strict=True)], _AROUND
    longest = max(length_of(direction) for directions in drawn for direction in directions)
    return [View(s.label, s, [unit(one) for one in d]) for s, d in zip(solutions, drawn, strict=True)], longest


def _bent(
    spec: LandscapeSpec,
    solution: Solution,
    examples: Examples,
    number: int,
    store: MutableMapping[str, Any],
    progress: Told,
) -> View:
    """Return a view along the eigenvectors of the Hessian, whose products are kept."""
    model, part = solution.subject.model, f"eigenvectors, {solution.label}"

    def watch(columns: int) -> None:
        progress(part, columns, None)

    with Journal(store, f"{key(spec, solution)}-eigenvectors", watch=watch).open():
        pairs = fm.top_eigenvalues(fm.Hessian(model, examples.loss_fn, examples.batches), k=number, seed=spec.seed)
    like = model if spec.unit == "filters" else None
    directions = eigenvector_directions(pairs, number, like=like)
    found = {"eigenvalues": tuple(pairs.values.tolist()), "eigenvalue_errors": tuple(pairs.errors.tolist())}
    return View(solution.label, solution, directions, found=found)


def _ways(spec: LandscapeSpec, solutions: Sequence[Solution]) -> list[View]:
    """Return a line from the first solution to each of the others."""
    first, *others = solutions
    beyond = spec.reach or _BEYOND
    axis = torch.linspace(-beyond, 1 + beyond, spec.points, dtype=torch.float64)
    ways = [difference(first.subject.model, other.subject.model) for other in others]
    labels = [f"{first.label} (0) to {other.label} (1)" for other in others]
    return [View(label, first, [way], (axis,)) for label, way in zip(labels, ways, strict=True)]


def _across(spec: LandscapeSpec, solutions: Sequence[Solution]) -> list[View]:
    """Return the plane through the first solution that is nearest to the others: through all, if they are three."""
    first, *others = solutions
    ends = [Trajectory(other.subject.model) for other in others]
    for end in ends:
        end.record()
    plane = trajectory_plane(first.subject.model, *ends)
    marks = [Mark(label=first.label, at=(0.0, 0.0), distance=0.0)]
    for other, path in zip(others, plane.paths, strict=True):
        x, y = path.points[0].tolist()
        marks.append(Mark(label=other.label, at=(x, y), distance=float(path.distances[0])))
    label = "Plane through " + ", ".join(solution.label for solution in solutions)
    return [View(label, first, plane.directions, plane.around(spec.points), {"marks": tuple(marks)})]


def key(spec: LandscapeSpec, solution: Solution) -> str:
    """Return a name for what is kept of one solution: another one for other weights, data or directions."""
    asked = spec.model_dump_json(exclude={"weights", "points", "reach", "dimensions", "device"})
    return hashlib.sha256(f"{asked} {solution.subject.digest}".encode()).hexdigest()[:16]
