"""The loss on lines and planes through solutions on the disk: found, evaluated, and kept point by point."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatmin.checks import positive, whole
from flatmin.errors import ArgumentError
from flatmin.landscape import surface
from flatmin_lab import lock
from flatmin_lab.data.examples import Examples, Wanted, load_examples
from flatmin_lab.environment import environment
from flatmin_lab.files import write_whole
from flatmin_lab.fit import check_fit
from flatmin_lab.landscapes.record import RECORD, Landscape, LandscapeSpec, Slice
from flatmin_lab.landscapes.views import Solution, key, views
from flatmin_lab.models.loading import folder_name, load_subject
from flatmin_lab.run import usable_device
from flatmin_lab.shelf import Shelf

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from flatmin_lab.landscapes.views import Told, View

_PARTS = "parts"


def prepare(spec: LandscapeSpec, root: Path | None) -> tuple[LandscapeSpec, list[Solution], Examples]:
    """Load the networks and the examples that ``spec`` names.

    Args:
        spec: What is asked for.
        root: The data root; None for that of the environment.

    Returns:
        The specification with everything named, the solutions, the examples.

    Raises:
        FlatminError: One of them is not there, or does not fit.
    """
    spec = _completed(spec)
    usable_device(spec.device)
    subjects = [load_subject(Path(w), kind=spec.model, head_seed=spec.head_seed) for w in spec.weights]
    names = [_name(weights) for weights in spec.weights]
    labels = [name for name, _ in names]
    labels = [weights if labels.count(n) > 1 else n for weights, n in zip(spec.weights, labels, strict=True)]
    solutions = [
        Solution(path, label, method, subject)
        for path, label, (_, method), subject in zip(spec.weights, labels, names, subjects, strict=True)
    ]
    first = subjects[0]
    data = spec.data or first.data
    examples = load_examples(
        Wanted(data, spec.split, spec.examples, spec.batch_size, root, first.seed), first.tokenizer
    )
    for subject in subjects:
        check_fit(subject, examples, data)
    return spec.model_copy(update={"data": data}), solutions, examples


def _completed(spec: LandscapeSpec) -> LandscapeSpec:
    """Return ``spec`` with dimensions and unit chosen, and what does not go together refused."""
    whole("points", spec.points, minimum=2, hint="It is the number of coordinates along each direction.")
    whole("seed", spec.seed, minimum=0, hint="It is the seed of the directions.")
    if spec.reach is not None:
        positive("reach", spec.reach, hint="It is how far the picture goes on either side.")
    is_between, others = spec.directions == "between", len(spec.weights) - 1
    if is_between and not others:
        raise ArgumentError("directions is 'between', but one solution alone was named. Name another, or more.")
    if is_between and spec.unit is not None:
        raise ArgumentError(
            "unit is given, but between solutions a line goes from 0 to 1 and a plane by distance. Leave it out."
        )
    if is_between and spec.dimensions == 2 and others < 2:
        raise ArgumentError("a plane between solutions needs three of them. Name another, or take --dimensions 1.")
    dimensions = spec.dimensions or (1 if is_between and others == 1 else 2)
    if is_between and dimensions == 2 and spec.reach is not None:
        raise ArgumentError("reach is given, but a plane between solutions goes just around them. Leave it out.")
    kind = None if is_between else spec.unit or ("filters" if spec.directions == "random" else "distance")
    return spec.model_copy(update={"dimensions": dimensions, "unit": kind})


def _name(weights: str) -> tuple[str, str | None]:
    """Return what weights are called in pictures, and the method of their run."""
    from flatmin_lab.report.text import method_label
    from flatmin_lab.spec import RunSpec

    path = Path(weights)
    if (path / "spec.json").is_file():
        run = RunSpec.model_validate_json((path / "spec.json").read_bytes())
        return f"{method_label(run.method)}, seed {run.seed}", run.method
    return path.resolve().stem if path.is_file() else path.resolve().name, None


def held(folder: Path) -> AbstractContextManager[None]:
    """Hold a folder for a landscape, as `flatmin_lab.lock.held` does."""
    return lock.held(folder, "landscape", {RECORD, _PARTS})


def survey(
    spec: LandscapeSpec,
    solutions: Sequence[Solution],
    examples: Examples,
    folder: Path,
    *,
    progress: Told = lambda *_: None,
    note: Callable[[str], object] = lambda _: None,
) -> Landscape:
    """Evaluate what is not yet evaluated, and keep it.

    Args:
        spec: What is asked for, completed by `prepare`.
        solutions: The networks.
        examples: What the loss is the mean over.
        folder: Where, held.
        progress: Told how far each part is.
        note: Told in one line about everything unusual.

    Returns:
        The numbers, which are on the disk.

    Raises:
        FlatminError: Something cannot be evaluated; the message says why.
    """
    device = usable_device(spec.device)
    for solution in solutions:
        solution.subject.model.to(device)
    looks = views(spec, solutions, examples, Shelf(folder / _PARTS, note), progress)
    found = Landscape(
        spec=spec,
        count=examples.count,
        available=examples.available,
        slices=tuple([_slice(spec, view, examples, folder, progress) for view in looks]),
        environment=environment(),
    )
    write_whole(folder / RECORD, found.model_dump_json(indent=1).encode())
    return found


def _slice(spec: LandscapeSpec, view: View, examples: Examples, folder: Path, progress: Told) -> Slice:
    """Evaluate one line or plane."""
    solution, model = view.solution, view.solution.subject.model
    what: tuple[Any, ...] = (model, examples.loss_fn, examples.batches)

    def tell(done: int, total: int | None) -> None:
        progress(view.label, done, total)

    store = Shelf(folder / _PARTS / f"{key(spec, solution)}-{hashlib.sha256(view.label.encode()).hexdigest()[:8]}")
    there = surface(*what, coordinates=[0.0], directions=view.directions[:1])
    found = surface(*what, coordinates=view.axes, directions=view.directions, progress=tell, store=store)
    return Slice(
        label=view.label,
        weights=solution.path,
        method=solution.method,
        kind=solution.subject.kind,
        digest=solution.subject.digest,
        notes=solution.subject.notes,
        loss_there=float(there.loss),
        axes=tuple(tuple(axis.tolist()) for axis in found.axes),
        lengths=found.lengths,
        loss=tuple(found.loss.flatten().tolist()),
        **view.found,
    )


def folder_for(spec: LandscapeSpec) -> Path:
    """Return where a landscape goes if nothing else is said: a folder called after the first weights."""
    return Path("runs/landscape") / f"{folder_name(Path(spec.weights[0]))}-{spec.directions}"
