"""Certificates from the command line: of a finished run, and of a recipe that trains for one."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from flatmin.bounds import INEQUALITIES, Certificate, binomial, certify, certify_draw, posterior_risk, zero_one
from flatmin.bounds.monte_carlo import batch_mean
from flatmin.bounds.posterior import per_parameter
from flatmin.curvature.risk import EmpiricalRisk
from flatmin_lab.environment import environment
from flatmin_lab.errors import StoreError
from flatmin_lab.files import explained, write_whole
from flatmin_lab.lock import FolderLock
from flatmin_lab.models.loading import read_weights
from flatmin_lab.recipes.certificates import Certified, Watch, num_errors, run
from flatmin_lab.recipes.registry import certificate_recipe
from flatmin_lab.spec import Value

if TYPE_CHECKING:
    from torch import Tensor

RECORD = "certificate.json"
SIGMAS = tuple(0.01 * 2.0**j for j in range(6))
"""What is tried on a run of a method without noise: 0.01, 0.02, ..., 0.32, fixed beforehand and paid for."""


class CertificateRecord(Value):
    """A certificate with what it is compared with, as it is stored."""

    what: str
    seed: int
    risk: float
    loss: str
    confidence: float
    bound: str
    other_bounds: dict[str, float]
    empirical_risk: float
    monte_carlo_upper: float
    num_draws: int
    kl: float
    n: int
    sigma: float | dict[str, float]
    tried: dict[str, float]
    cross_entropy: float
    single_draw: float
    test_error: float
    stochastic_test_error: float
    hold_out: float | None
    vacuous: bool
    paragraph: str
    environment: dict[str, str]


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
    recipe = certificate_recipe(name)
    train, test = recipe.source(root)
    asked = json.dumps({"recipe": name, "seed": seed, "settings": _settings(recipe)}, sort_keys=True)
    lock = FolderLock(folder)
    with explained(folder, "write"):
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        _require_same(folder / "recipe.json", asked)

        def keep(stage: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
            path = folder / f"{stage}.pt"
            if path.is_file():
                note(f"{path} is there; training goes on from it.")
                return read_weights(path)
            weights = make()
            content = io.BytesIO()
            torch.save(weights, content)
            write_whole(path, content.getvalue())
            return weights

        found = run(recipe, train, test, seed=seed, watch=watch, keep=keep)
        record = _record(name, seed, found)
        write_whole(folder / RECORD, record.model_dump_json(indent=2).encode())
        return record
    finally:
        lock.release()


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
    tried = list(sigmas or (way.grid if way.hyperparameter == "sigma" else SIGMAS))
    small = splits.train.batches(1)
    common: dict[str, Any] = {"prior": prior, "delta": delta, "seed": spec.seed}
    certificate = certify(subject.model, batches=small, sigma=tried, num_passes=num_passes, **common)
    best: Any = certificate.sigma
    entropy = certify(subject.model, batches=small, sigma=tried, num_passes=num_passes, loss="cross-entropy", **common)
    single, _ = certify_draw(subject.model, batches=small, sigma=best, **common)
    held = splits.test.batches(1)
    risk = EmpiricalRisk(subject.model, batch_mean(zero_one), held)
    widths = per_parameter("sigma", best, risk.parameters)
    noisy = posterior_risk(risk, widths, num_passes=num_passes, delta=delta, seed=0)
    errors = num_errors(subject.model, splits.test)
    return _as_record(
        what=spec.name,
        seed=spec.seed,
        certificate=certificate,
        cross_entropy=entropy,
        single=single,
        test_error=errors / len(splits.test),
        noisy=noisy.value,
        hold_out=binomial(errors, len(splits.test), delta),
        tried={f"{sigma:g}": bound for sigma, bound in zip(tried, certificate.tried, strict=True)},
    )


def other_bounds(certificate: Certificate) -> dict[str, float]:
    """Return what the other inequalities give for the same numbers: for comparison, each valid alone."""
    c = certificate
    return {name: f(c.empirical.upper, c.kl, c.n, c.delta_bound) for name, f in INEQUALITIES.items()}


def _record(name: str, seed: int, found: Certified) -> CertificateRecord:
    return _as_record(
        what=name,
        seed=seed,
        certificate=found.certificate,
        cross_entropy=found.cross_entropy,
        single=found.single_draw,
        test_error=found.test_error,
        noisy=found.stochastic_test_error.value,
        hold_out=found.hold_out,
        tried={},
    )


def _as_record(
    *,
    what: str,
    seed: int,
    certificate: Certificate,
    cross_entropy: Certificate,
    single: Certificate,
    test_error: float,
    noisy: float,
    hold_out: float | None,
    tried: dict[str, float],
) -> CertificateRecord:
    sigma: Any = certificate.sigma
    return CertificateRecord(
        what=what,
        seed=seed,
        risk=certificate.risk,
        loss=certificate.loss,
        confidence=1 - certificate.delta,
        bound=certificate.bound,
        other_bounds=other_bounds(certificate),
        empirical_risk=certificate.empirical.value,
        monte_carlo_upper=certificate.empirical.upper,
        num_draws=certificate.empirical.num_draws,
        kl=certificate.kl,
        n=certificate.n,
        sigma=sigma,
        tried=tried,
        cross_entropy=cross_entropy.risk,
        single_draw=single.risk,
        test_error=test_error,
        stochastic_test_error=noisy,
        hold_out=hold_out,
        vacuous=certificate.vacuous,
        paragraph=" ".join(str(certificate).split()),
        environment=environment(),
    )


def _settings(recipe: Any) -> dict[str, Any]:
    return {k: v for k, v in vars(recipe).items() if isinstance(v, (int, float, str, bool))}


def _require_same(path: Path, asked: str) -> None:
    """Take up a folder that is empty or was begun with the same settings."""
    if path.is_file():
        if path.read_text() != asked:
            raise StoreError(
                f"{path.parent} was begun with another recipe, seed or setting. Choose another folder with --out."
            )
        return
    strangers = sorted(p.name for p in path.parent.iterdir() if p.name != ".lock")
    if strangers:
        raise StoreError(
            f"{path.parent} holds other files ({', '.join(strangers[:3])}, ...). Choose a new or empty folder with "
            "--out."
        )
    write_whole(path, asked.encode())
