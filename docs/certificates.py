"""Makes what certificates.md shows, from results/: python docs/certificates.py prints its tables and draws its figure.

``python docs/certificates.py coverage`` simulates anew before (three minutes on one core). The certificates are what
``flatmin certify RECIPE [--sigma ...]`` leaves as certificate.json and certificates.json.
"""

# ruff: noqa: T201 (a script: what it prints is what it is for)

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl

from flatmin.bounds.certificate import rounded_up
from flatmin_lab.certificate_record import CertificateRecord, CertificateSweep
from flatmin_lab.recipes.coverage import CoverageTable, coverage
from flatmin_lab.report.certified import certified_figure, in_percent
from flatmin_lab.report.style import PAPER
from flatmin_lab.report.svg import RC

DOCS = Path(__file__).resolve().parent
COVERAGE = DOCS / "results" / "coverage.json"
CERTIFICATES = DOCS / "results" / "certificates"
RECIPES = ("mnist-cnn", "mnist-cnn-per-layer", "mnist-fcn", "fashion-cnn", "fashion-fcn", "digits-fcn")
SWEEPS = ("digits-fcn",)


def records() -> list[CertificateRecord]:
    """Return the stored certificates of the recipes."""
    return [CertificateRecord.model_validate_json((CERTIFICATES / f"{r}.json").read_bytes()) for r in RECIPES]


def sweeps() -> list[CertificateSweep]:
    """Return the stored certificates over sigma."""
    return [CertificateSweep.model_validate_json((CERTIFICATES / f"{r}-sigmas.json").read_bytes()) for r in SWEEPS]


def recipe_rows() -> list[str]:
    """Return a row for each recipe, errors in per cent."""
    rows = []
    for r in records():
        parts = (r.empirical_risk, r.monte_carlo_upper - r.empirical_risk, r.risk - r.monte_carlo_upper)
        tests = (r.stochastic_test_error, r.test_error)
        beside = (f"{r.kl:.2g}", *_percent(tests), *_bounds(r.single_draw, r.hold_out))
        rows.append(_row(f"`{r.what}`", f"{r.n:,}", *_bounds(r.risk), *_percent(parts), *beside))
    return rows


def other_rows() -> list[str]:
    """Return a row for each recipe with what every inequality gives, in per cent."""
    return [_row(f"`{r.what}`", *_bounds(*r.other_bounds.values())) for r in records()]


def sweep_rows() -> list[str]:
    """Return a row for each sigma of each sweep, errors in per cent."""
    rows = []
    for sweep in sweeps():
        for sigma, r in zip(sweep.sigmas, sweep.records, strict=True):
            rows.append(_row(f"`{sweep.what}`", f"{sigma:g}", *in_percent(r), f"{r.kl:.2g}"))
    return rows


def coverage_rows() -> list[str]:
    """Return a row for each bound on each simulated problem."""
    rows = []
    for r in CoverageTable.model_validate_json(COVERAGE.read_bytes()).rows:
        share = f"{100 * r.share:.2f} ± {100 * r.stderr:.2f}" if 0 < r.share < 1 else f"{100 * r.share:.0f}"
        rows.append(_row(r.problem, r.bound, f"{r.repetitions:,}", share, f"{r.truth:.3f}", f"{r.value:.3f}"))
    return rows


def _bounds(*errors: float) -> list[str]:
    return [rounded_up(100 * error, decimals=2) for error in errors]


def _percent(errors: tuple[float, ...]) -> list[str]:
    return [f"{100 * error:.2f}" for error in errors]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def draw() -> None:
    """Draw the figure."""
    with mpl.rc_context(RC):
        certified_figure(sweeps()).savefig(DOCS / "certificates.png", dpi=150, facecolor=PAPER.light)


if __name__ == "__main__":
    if sys.argv[1:] == ["coverage"]:
        COVERAGE.write_text(coverage(1000).model_dump_json(indent=1) + "\n", encoding="utf-8")
    for row in [*recipe_rows(), "", *other_rows(), "", *sweep_rows(), "", *coverage_rows()]:
        print(row)
    draw()
