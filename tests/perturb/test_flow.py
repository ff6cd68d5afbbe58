"""Plans: what a flow gives away before any gradient exists."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flatmin import Gaussian, flows
from flatmin.perturb import STAY, Draw, Step, plan
from flatmin.perturb.flow import Combination
from flatmin.streams import Stream
from flatmin.vectors import PerParameter

STREAM = Stream(0, (0,))


def draw(j, sigma):
    return sigma * Draw(Gaussian(), STREAM.child(j))


def test_nso_plans_its_pairs_in_order():
    steps = plan(flows.nso(STREAM, sigma=0.1, num_perturbations=2))
    assert steps == (
        Step(draw(0, 0.1), 0.25), Step(draw(0, -0.1), 0.25), Step(draw(1, 0.1), 0.25), Step(draw(1, -0.1), 0.25),
    )  # fmt: skip


def test_the_clean_evaluation_is_there_only_where_it_counts():
    assert [s.weight for s in plan(flows.nso(STREAM, sigma=0.1, clean_weight=0.5))] == [0.5, 0.25, 0.25]
    assert plan(flows.nso(STREAM, sigma=0.1, clean_weight=0.5))[0].displacement == STAY
    assert plan(flows.nso(STREAM, sigma=0.1, clean_weight=1.0)) == (Step(STAY, 1.0),)


@given(k=st.integers(1, 50))
def test_at_sigma_zero_one_plain_gradient_of_weight_exactly_one(k):
    for flow in (flows.nso, flows.wpsgd):
        assert plan(flow(STREAM, sigma=0.0, num_perturbations=k)) == (Step(STAY, 1.0),)
        assert plan(flow(STREAM, sigma=PerParameter((0.0, 0.0)), num_perturbations=k)) == (Step(STAY, 1.0),)


def test_a_flow_that_looks_into_a_gradient_has_no_plan():
    assert plan(flows.sam(STREAM, rho=0.1)) is None

    def scales_by_a_tensor(stream):
        g = yield STAY
        return torch.tensor(2.0) * g if False else g * torch.tensor(2.0)

    assert plan(scales_by_a_tensor(STREAM)) is None


def test_a_draw_is_scaled_once_and_mirrors_exactly():
    u = draw(0, 0.1)
    mirror = -u
    assert -mirror == u
    assert (-u).scale == -0.1
    assert (-draw(0, PerParameter((0.1, 0.2)))).scale == PerParameter((-0.1, -0.2))
    with pytest.raises(TypeError, match="scaled once"):
        2.0 * u


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(-8, 8)), max_size=12))
def test_combinations_are_exact(terms):
    total, expected = 0, {}
    for index, weight in terms:
        total += weight * Combination({index: Fraction(1)})
        expected[index] = expected.get(index, 0) + Fraction(weight)
    if terms:
        assert (total - Combination({})).weights == expected
        assert (total / 4).weights == {i: w / 4 for i, w in expected.items()}
        assert (-total).weights == {i: -w for i, w in expected.items()}
