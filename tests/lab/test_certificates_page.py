"""The tables of docs/certificates.md are the stored records, and these are certificates that add up."""

from pathlib import Path

import pytest

from flatmin.bounds import kl_inverse, seeger_maurer
from page_scripts import page_script

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def script():
    return page_script("certificates")


@pytest.mark.parametrize("rows", ["recipe_rows", "other_rows", "sweep_rows", "coverage_rows"])
def test_the_tables_are_those_of_the_records(script, rows):
    page = (DOCS / "certificates.md").read_text(encoding="utf-8").splitlines()
    found = getattr(script, rows)()
    assert found
    assert [row for row in found if row not in page] == []


def test_every_record_adds_up(script):
    every = [*script.records(), *(record for sweep in script.sweeps() for record in sweep.records)]
    for record in every:
        again = seeger_maurer(record.monte_carlo_upper, record.kl, record.n, record.delta_inequality)
        assert record.risk == pytest.approx(again, rel=1e-9)
        assert record.delta_inequality == pytest.approx(0.8 * (1 - record.confidence))
        assert record.empirical_risk < record.monte_carlo_upper < record.risk
        assert record.monte_carlo_upper <= kl_inverse(record.empirical_risk, 1.0)
    for sweep in script.sweeps():
        shares = {round(1 - record.confidence, 12) for record in sweep.records}
        assert shares == {round((1 - sweep.confidence) / len(sweep.records), 12)}


def test_the_targets_are_met(script):
    certified = {record.what: record.risk for record in script.records() if record.confidence >= 0.95}
    assert certified["mnist-cnn"] <= 0.02
    assert certified["mnist-fcn"] <= 0.03


def test_bounds_hold_as_often_as_they_say(script):
    rows = script.CoverageTable.model_validate_json(script.COVERAGE.read_bytes()).rows
    assert all(row.repetitions >= 1000 for row in rows)
    assert all((row.share >= 0.9) == row.holds for row in rows)
