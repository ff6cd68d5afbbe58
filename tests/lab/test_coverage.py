"""The simulation of coverage: bounds hold as often as they say, and its true risks are true."""

import pytest
import torch

from flatmin_lab.recipes.coverage import CoverageTable, Line, coverage, true_risk, true_risk_of


@pytest.fixture(scope="module")
def table():
    return coverage(40)


def test_bounds_hold_as_often_as_they_say(table):
    assert table.confidence == 0.9
    bounds = [row for row in table.rows if row.holds]
    assert len({(row.problem, row.bound) for row in bounds}) == 29
    for row in bounds:
        assert row.share >= 0.9 - 3 * (0.9 * 0.1 / row.repetitions) ** 0.5, (row.problem, row.bound)


def test_the_simulation_can_fail(table):
    """Without the price of choosing, the bound on the luckiest coin fails: a share of 0 for one of 0.9."""
    (blind,) = (row for row in table.rows if not row.holds)
    assert blind.share < 0.1


def test_the_binomial_bound_is_hardly_wider_than_it_must_be(table):
    (row,) = (r for r in table.rows if r.bound == "hold-out (binomial)" and r.truth == 0.2)
    assert row.share < 0.95
    assert row.stderr == pytest.approx((row.share * (1 - row.share) / row.repetitions) ** 0.5)


def test_true_risks_are_those_of_many_new_examples():
    weight, sigma, sample = 2.0, 1.5, Line.drawn(200_000, seed=7)
    g = torch.Generator().manual_seed(0)
    mean = torch.tensor([-weight, weight]).double()
    weights, biases = (sigma * torch.randn(len(sample.x), 2, generator=g).double() for _ in range(2))
    outputs = (mean + weights) * sample.x + biases
    wrong = (outputs.argmax(1) != sample.y).double()
    assert abs(wrong.mean() - true_risk(weight, sigma)) < 4 * wrong.std() / len(wrong) ** 0.5
    assert sample.risk(weight, sigma) == pytest.approx(true_risk(weight, sigma), abs=0.002)
    for weight, bias in (([-1.0, 2.0], [0.3, -0.4]), ([2.0, -1.0], [0.1, 0.0]), ([0.1, 0.2], [5.0, 0.0])):
        one = {"weight": torch.tensor(weight)[:, None].double(), "bias": torch.tensor(bias).double()}
        wrong = ((sample.x @ one["weight"].T + one["bias"]).argmax(1) != sample.y).double()
        assert abs(wrong.mean() - true_risk_of(one)) < 4 * wrong.std() / len(wrong) ** 0.5


def test_a_table_is_stored_and_read_again(table):
    assert CoverageTable.model_validate_json(table.model_dump_json()) == table
