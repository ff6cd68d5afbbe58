"""Schedules: their ends, their shape between, and what they refuse."""

import itertools
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatmin import schedules
from flatmin.errors import ArgumentError, ArgumentTypeError
from flatmin.noise import value_at

SHAPES = [schedules.linear, schedules.exponential, schedules.cosine]
sizes = st.floats(1e-6, 10.0)


@given(shape=st.sampled_from(SHAPES), start=sizes, end=sizes, n=st.integers(1, 1000), step=st.integers(0, 3000))
def test_ramps_start_end_and_stay_between(shape, start, end, n, step):
    schedule = shape(start, end, n)
    assert abs(schedule(0) - start) < 1e-12
    assert schedule(n) == schedule(n + 5) == end
    slack = 1e-9 * max(start, end)
    assert min(start, end) - slack <= schedule(step) <= max(start, end) + slack


@given(shape=st.sampled_from(SHAPES), n=st.integers(2, 200))
def test_ramps_are_monotone(shape, n):
    values = [shape(0.001, 0.1, n)(step) for step in range(n + 1)]
    assert all(a <= b for a, b in itertools.pairwise(values))


def test_their_middles():
    assert schedules.linear(0.0, 1.0, 10)(5) == pytest.approx(0.5)
    assert schedules.exponential(0.01, 1.0, 10)(5) == pytest.approx(0.1)
    assert schedules.cosine(1.0, 0.0, 10)(5) == pytest.approx(0.5)
    assert schedules.cosine(1.0, 0.0, 100)(1) > schedules.linear(1.0, 0.0, 100)(1)


def test_warmup_of_a_number_and_of_a_schedule():
    assert [schedules.warmup(0.1, 2)(s) for s in range(4)] == [0.0, 0.05, 0.1, 0.1]
    assert schedules.warmup(schedules.linear(1.0, 0.0, 4), 2)(2) == pytest.approx(0.5)


@pytest.mark.parametrize("schedule", [schedules.linear(0, 1, 3), schedules.warmup(schedules.cosine(1, 0, 3), 2)])
def test_they_are_plain_values(schedule):
    assert pickle.loads(pickle.dumps(schedule)) == schedule


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: schedules.linear(-1, 1, 3), ArgumentError, "start is -1"),
        (lambda: schedules.exponential(0.0, 1, 3), ArgumentError, "start is 0, but it must be above 0"),
        (lambda: schedules.cosine(0, float("inf"), 3), ArgumentError, "end is inf"),
        (lambda: schedules.linear(0, 1, 0), ArgumentError, "num_steps is 0"),
        (lambda: schedules.linear(0, 1, 2.5), ArgumentTypeError, "no whole number"),
        (lambda: schedules.warmup(-0.1, 3), ArgumentError, "schedule is -0.1"),
        (lambda: value_at(float, 0, name="sigma"), ArgumentTypeError, "sigma is the class float"),
        (lambda: value_at(lambda s: "x", 3, name="sigma"), ArgumentTypeError, "sigma at step 3 is 'x'"),
    ],
)
def test_what_they_refuse(make, error, message):
    with pytest.raises(error, match=message):
        make()
