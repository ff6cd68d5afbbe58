"""Certificates from the command line: of a finished run, and of a recipe that trains for one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatmin.bounds import binomial, certify, certify_draw
from flatmin.checks import positive
from flatmin_lab.certificate_record import CertificateRecord, CertificateSweep, as_record
from flatmin_lab.errors import StoreError
from flatmin_lab.files import write_whole
from flatmin_lab.lock import kept_for
from flatmin_lab.recipes.certificates import CertificateRecipe, Certified, noisy_error, num_errors, run
from flatmin_lab.recipes.registry import certificate_recipe
from flatmin_lab.shelf import Shelf

if TYPE_CHECKING:
    from torch import Tensor

    from flatmin_lab.recipes.outcome import Watch

RECORD = "certificate.json"
SWEEP = "certificates.json"
_LABELS = (
    "The certificates are about labels as the run was trained with, spoilt ones included where its task spoils some; "
    "the labels of the test data are clean."
)
SIGMAS = tuple(0.01 * 2.0**j for j in range(6))
"""What is tried on a run of a method without noise: 0.01, 0.02, ..., 0.32, fixed beforehand and paid for."""


def certify_recipe(
    name: str, folder: Path, *, root: Path | None, seed: int, watch: Watch, note: Callable[[str], object]
) -> CertificateRecord:
    """Train by a recipe and certify, or go on where an earlier call was interrupted.

    Args:
        name: A key of ``CERTIFICATES``.
        folder: Where weights and certificate are kept.
        root: The data root.
        seed: Seed of everything random.
        watch: Told of the progress.
        note: Told in one line about everything unusual.

    Raises:
        ArgumentError: There is no such recipe.
        DataError: The data are not there.
        StoreError: The folder holds something else, or cannot be written.
    """
    return _of_recipe(certificate_recipe(name), folder, root=root, seed=seed, watch=watch, note=note)


def certify_sweep(
    name: str,
    sigmas: Sequence[float],
    folder: Path,
    *,
    root: Path | None,
    seed: int,
    watch: Watch,
    note: Callable[[str], object],
) -> CertificateSweep:
    """Train by a recipe and certify at each of several σ; δ is shared, so that all certificates hold at once.

    Args:
        name: A key of ``CERTIFICATES``.
        sigmas: Standard deviations of prior and posterior, in the units of the recipe.
        folder: Where everything is kept, a folder for each σ.
        root: The data root.
        seed: Seed of everything random.
        watch: Told of the progress.
        note: Told in one line about everything unusual.

    Raises:
        ArgumentError: There is no such recipe, or a σ is not above 0.
        DataError: The data are not there.
        StoreError: A folder holds something else, or cannot be written.
    """
    recipe = certificate_recipe(name)
    hint = "It is the standard deviation of the noise."
    tried = tuple(sorted({positive("sigma", sigma, hint=hint) for sigma in sigmas}))
    records = []
    for sigma in tried:
        here = replace(recipe, sigma=sigma, delta=recipe.delta / len(tried))
        place = folder / f"sigma-{_name(sigma)}"

        def watched(what: str, done: int, total: int, sigma: float = sigma) -> None:
            watch(f"sigma {sigma:g}, {what}", done, total)

        records.append(_of_recipe(here, place, root=root, seed=seed, watch=watched, note=note))
    sweep = CertificateSweep(what=name, seed=seed, confidence=1 - recipe.delta, sigmas=tried, records=tuple(records))
    write_whole(folder / SWEEP, sweep.model_dump_json(indent=2).encode())
    return sweep


def _of_recipe(
    recipe: CertificateRecipe,
    folder: Path,
    *,
    root: Path | None,
    seed: int,
    watch: Watch,
    note: Callable[[str], object],
) -> CertificateRecord:
    train, test = recipe.source(root)
    asked = {"recipe": recipe.name, "seed": seed, "settings": _settings(recipe), "data": train.digest}
    with kept_for(folder, asked):
        shelf = Shelf(folder, note)

        def keep(stage: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
            weights = shelf.get(stage)
            if weights is not None:
                note(f"{folder / stage}.pt is there; training goes on from it.")
                return weights
            shelf[stage] = weights = make()
            return weights

        found = run(recipe, train, test, seed=seed, watch=watch, keep=keep)
        record = _record(recipe.name, seed, found)
        write_whole(folder / RECORD, record.model_dump_json(indent=2).encode())
        return record


def certify_run(path: Path, *, sigmas: Sequence[float] | None, delta: float, num_passes: int) -> CertificateRecord:
    """Certify a finished run of ``flatmin compare``: its prior is the network as it was initialised.

    The labels that it was trained with count, spoilt ones too. All σ of the method's grid are tried, and paid for: the
    one of the run was chosen by validation images, among which other seeds have images of this run. A method without
    noise tries `SIGMAS`.

    Args:
        path: Folder of the run.
        sigmas: What to try instead.
        delta: One minus the confidence.
        num_passes: Passes over the data for the empirical risk.

    Raises:
        WeightsError: There is no finished run.
    """
    from flatmin_lab.methods import method
    from flatmin_lab.models.loading import load_subject
    from flatmin_lab.run import network
    from flatmin_lab.spec import RunSpec
    from flatmin_lab.tasks import task

    subject = load_subject(path)
    if not (path / "spec.json").is_file():
        raise StoreError(
            f"{path} is no run of flatmin compare, so the weights that training started from are not known, and they "
            "are the prior. From Python, flatmin.certify takes them."
        )
    spec = RunSpec.model_validate_json((path / "spec.json").read_bytes())
    prior = network(spec.model_copy(update={"device": "cpu"})).state_dict()
    splits = task(spec.task).load(spec.seed)
    way = method(spec.method)
    tried = list(dict.fromkeys(sigmas or (task(spec.task).grid(way) if way.hyperparameter == "sigma" else SIGMAS)))
    small = splits.train.batches(1)
    common: dict[str, Any] = {"prior": prior, "delta": delta, "seed": spec.seed}
    certificate = certify(subject.model, batches=small, sigma=tried, num_passes=num_passes, **common)
    best: Any = certificate.sigma
    entropy = certify(subject.model, batches=small, sigma=tried, num_passes=num_passes, loss="cross-entropy", **common)
    # These examples chose sigma for the single draw too, which pays for the search as the others do.
    single, _ = certify_draw(subject.model, batches=small, sigma=best, num_searched=len(tried), **common)
    noisy = noisy_error(subject.model, splits.test, best, batch_size=1, num_passes=num_passes, seed=0)
    errors = num_errors(subject.model, splits.test)
    return as_record(
        certificate,
        what=spec.name,
        seed=spec.seed,
        cross_entropy=entropy,
        single=single,
        test_error=errors / len(splits.test),
        noisy=noisy,
        hold_out=(binomial(errors, len(splits.test), delta), "the network itself on the test data"),
        tried={_name(sigma): bound for sigma, bound in zip(tried, certificate.tried, strict=True)},
        remarks=(_LABELS,),
    )


def _record(name: str, seed: int, found: Certified) -> CertificateRecord:
    return as_record(
        found.certificate,
        what=name,
        seed=seed,
        cross_entropy=found.cross_entropy,
        single=found.single_draw,
        test_error=found.test_error,
        noisy=found.stochastic_test_error,
        hold_out=(found.hold_out, "the prior's network on the certified examples"),
        tried={},
    )


def _name(sigma: float) -> str:
    return f"{sigma:.12g}"  # in which two values that differ are two names


def _settings(recipe: Any) -> dict[str, Any]:
    return {k: v for k, v in vars(recipe).items() if isinstance(v, (int, float, str, bool))}
