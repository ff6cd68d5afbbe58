"""How estimates print, and their intervals."""

import math
import pickle

import pytest
import torch
from scipy.stats import norm, t

from flatmin.curvature import EigenPairs, TraceEstimate
from flatmin.curvature.results import plus_minus, student_quantile
from flatmin.errors import ArgumentError


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (10.7912, 0.1234, "10.79 ± 0.12"),
        (-0.00123, 0.00045, "-0.00123 ± 0.00045"),
        (123456.0, 789.0, "123460 ± 790"),
        (0.0, 0.5, "0.00 ± 0.50"),
        (3e-7, 2e-8, "3.00e-07 ± 2.0e-08"),
        (1.5e9, 2e6, "1.5000e+09 ± 2.0e+06"),
        (2.5, 0.0, "2.5 ± 0"),
        (2.5, math.nan, "2.5 ± nan"),
        (math.nan, 1.0, "nan ± 1"),
    ],
)
def test_two_digits_of_the_error(value, stderr, text):
    assert plus_minus(value, stderr) == text


@pytest.mark.parametrize("degrees", [6, 10, 31, 99, 1000])
@pytest.mark.parametrize("probability", [0.9, 0.95, 0.975, 0.995])
def test_students_law(probability, degrees):
    assert student_quantile(probability, degrees) == pytest.approx(t.ppf(probability, degrees), rel=1e-3)


def test_intervals():
    samples = torch.arange(20.0)
    estimate = TraceEstimate(value=9.5, stderr=1.0, num_matvecs=20, samples=samples)
    low, high = estimate.interval(0.95)
    assert (high - low) / 2 == pytest.approx(t.ppf(0.975, 19), rel=1e-3)
    low, high = TraceEstimate(value=9.5, stderr=1.0, num_matvecs=20).interval(0.9)
    assert (high - low) / 2 == pytest.approx(norm.ppf(0.95), rel=1e-9)
    with pytest.raises(ArgumentError, match=r"confidence is 95, but it must lie between 0 and 1"):
        estimate.interval(95)


def test_estimates_are_plain_values():
    estimate = TraceEstimate(value=2.0, stderr=0.5, num_matvecs=7)
    assert estimate == TraceEstimate(value=2.0, stderr=0.5, num_matvecs=7, samples=torch.ones(3))
    assert hash(estimate) == hash(pickle.loads(pickle.dumps(estimate)))
    assert estimate.converged
    assert estimate.relative_stderr == 0.25
    assert TraceEstimate(value=0.0, stderr=0.5, num_matvecs=7).relative_stderr == math.inf
    with pytest.raises(AttributeError):
        estimate.value = 3.0


def test_eigenpairs_print():
    pairs = EigenPairs(
        values=torch.tensor([3.0, -1.25]),
        vectors=torch.eye(2),
        residuals=torch.tensor([0.1, 0.0]),
        errors=torch.tensor([0.01, 0.0]),
        num_matvecs=9,
        converged=False,
    )
    assert repr(pairs) == "EigenPairs([3 ± 0.01, -1.25 ± 0], 9 matvecs, not converged)"
