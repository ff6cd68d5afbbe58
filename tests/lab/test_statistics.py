"""Intervals and sign-flip tests against closed forms, scipy, invariances and a simulation of the null."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from flatmin.errors import ArgumentError
from flatmin_lab.statistics import MAX_EXACT, mean_interval, sign_flip_test

unhurried = settings(deadline=None)  # a loaded machine is no failure
integers = st.lists(st.integers(-50, 50), min_size=1, max_size=9)
numbers = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9)


def naive_p(differences):
    """The definition, in whole numbers: no rounding, hence no tolerance."""
    observed = abs(sum(differences))
    patterns = list(itertools.product((-1, 1), repeat=len(differences)))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in patterns]
    return sum(value >= observed for value in sums) / len(patterns)


class TestMeanInterval:
    def test_closed_form_for_two_values(self):
        # One degree of freedom is the Cauchy law: its 97.5 % quantile is tan(0.475 pi).
        half = math.tan(0.475 * math.pi) * abs(3.0 - 1.0) / 2
        interval = mean_interval([1.0, 3.0])
        assert interval.mean == 2.0
        assert interval.low == pytest.approx(2.0 - half)
        assert interval.high == pytest.approx(2.0 + half)

    def test_agrees_with_scipy(self):
        values = np.random.default_rng(0).normal(size=7)
        expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.9)
        interval = mean_interval(list(values), level=0.9)
        assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))

    def test_covers_the_mean_as_often_as_it_says(self):
        samples = np.random.default_rng(1).normal(loc=3.0, size=(4000, 5))
        covered = np.mean([mean_interval(list(row)).covers(3.0) for row in samples])
        assert covered == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 4000))

    def test_one_value_has_no_known_width(self):
        interval = mean_interval([0.9])
        assert (interval.mean, interval.low, interval.high) == (0.9, -math.inf, math.inf)
        assert not interval.is_bounded
        assert interval.covers(0.0)

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_a_diverged_value_is_not_dropped(self, bad):
        interval = mean_interval([0.9, bad, 0.8])
        assert math.isnan(interval.mean)
        assert not interval.is_bounded

    @unhurried
    @given(numbers, st.floats(-100, 100))
    def test_moves_with_its_values(self, values, shift):
        before, after = mean_interval(values), mean_interval([v + shift for v in values])
        assert after.mean == pytest.approx(before.mean + shift, abs=1e-6)
        assert after.high - after.low == pytest.approx(before.high - before.low, abs=1e-6)

    @unhurried
    @given(numbers)
    def test_grows_with_its_level(self, values):
        narrow, wide = mean_interval(values, 0.5), mean_interval(values, 0.99)
        assert wide.low <= narrow.low <= narrow.mean <= narrow.high <= wide.high

    @pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
    def test_refuses_a_level_in_percent(self, level):
        with pytest.raises(ArgumentError, match="level must lie between 0 and 1"):
            mean_interval([1.0, 2.0], level)

    @pytest.mark.parametrize("values", [[], [[1.0, 2.0]]])
    def test_refuses_what_is_no_list_of_numbers(self, values):
        with pytest.raises(ArgumentError, match="values must be a non-empty sequence"):
            mean_interval(values)


class TestSignFlip:
    @pytest.mark.parametrize("n", range(1, 12))
    def test_all_of_one_sign_gives_the_smallest_p(self, n):
        test = sign_flip_test([0.1 * (i + 1) for i in range(n)])
        assert test.p == test.reachable == 2 / 2**n

    def test_six_seeds_are_enough_and_five_are_not(self):
        assert not sign_flip_test([1.0] * 5).can_reach(0.05)
        assert sign_flip_test([1.0] * 6).can_reach(0.05)

    @unhurried
    @given(integers)
    def test_is_the_definition(self, differences):
        assert sign_flip_test([float(d) for d in differences]).p == naive_p(differences)

    @unhurried
    @given(integers, st.sampled_from([1e-3, 0.1, 1 / 3, 7e5]))
    def test_rounding_breaks_no_tie(self, differences, scale):
        # Whole numbers tie often; scaled by a fraction without binary form, the sums differ in their last digits.
        assert sign_flip_test([d * scale for d in differences]).p == naive_p(differences)

    def test_ties_of_accuracies(self):
        # 0.95 - 0.90 and 0.90 - 0.85 are both five points, but not the same floating-point number.
        differences = [0.95 - 0.90, 0.85 - 0.90, 0.90 - 0.85, 0.80 - 0.75]
        assert len(set(map(abs, differences))) > 1
        assert sign_flip_test(differences).p == naive_p([1, -1, 1, 1])

    @pytest.mark.parametrize("seed", range(5))
    def test_agrees_with_scipy(self, seed):
        differences = np.random.default_rng(seed).normal(loc=0.4, size=8)
        oracle = stats.permutation_test(
            (differences,), np.sum, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
        )
        assert sign_flip_test(list(differences)).p == pytest.approx(oracle.pvalue)

    @unhurried
    @given(integers)
    def test_neither_order_nor_direction_matters(self, differences):
        d = [float(x) for x in differences]
        assert sign_flip_test(d) == sign_flip_test(d[::-1]) == sign_flip_test([-x for x in d])

    @unhurried
    @given(integers)
    def test_p_lies_between_its_reach_and_one(self, differences):
        test = sign_flip_test([float(d) for d in differences])
        assert test.reachable <= test.p <= 1

    @unhurried
    @given(integers, st.integers(0, 5))
    def test_zeros_add_seeds_but_no_evidence(self, differences, zeros):
        d = [float(x) for x in differences]
        plain, padded = sign_flip_test(d), sign_flip_test(d + [0.0] * zeros)
        assert (padded.p, padded.reachable) == (plain.p, plain.reachable)
        assert padded.num_seeds == plain.num_seeds + zeros

    def test_no_difference_at_all(self):
        test = sign_flip_test([0.0, 0.0, 0.0])
        assert (test.p, test.reachable, test.num_seeds) == (1.0, 1.0, 3)

    def test_size_is_right_under_the_null(self):
        # Symmetric differences of different spread: P(p <= a) equals a at every multiple of 2/2^n.
        generator = np.random.default_rng(2)
        p = np.array([sign_flip_test(list(generator.normal(size=7) * np.arange(1, 8))).p for _ in range(4000)])
        for alpha in (2 / 128, 6 / 128, 0.25, 0.5):
            assert np.mean(p <= alpha) == pytest.approx(alpha, abs=4 * math.sqrt(alpha * (1 - alpha) / 4000))

    def test_more_seeds_than_can_be_enumerated(self):
        generator = np.random.default_rng(3)
        differences = list(generator.normal(loc=0.5, size=MAX_EXACT + 4))
        test = sign_flip_test(differences)
        assert test.kind == "monte-carlo"
        assert test.stderr > 0
        assert test.reachable == pytest.approx(1e-5)
        assert test == sign_flip_test(differences)
        assert test.p == pytest.approx(_p_by_convolution(differences), abs=5 * test.stderr + 2e-5)

    def test_the_largest_exact_test_takes_a_moment_only(self):
        test = sign_flip_test([float(i) for i in range(1, MAX_EXACT + 1)])
        assert (test.kind, test.p) == ("exact", 2 / 2**MAX_EXACT)

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_refuses_a_diverged_pair(self, bad):
        with pytest.raises(ArgumentError, match=r"must be finite, got (nan|inf).*diverged"):
            sign_flip_test([0.1, bad])

    def test_refuses_no_pairs_and_no_draws(self):
        with pytest.raises(ArgumentError, match="differences must be a non-empty sequence"):
            sign_flip_test([])
        with pytest.raises(ArgumentError, match="draws must be at least 1, got 0"):
            sign_flip_test([1.0], draws=0)


def _p_by_convolution(differences, cell=1e-3):
    """An independent oracle for many pairs: the law of the signed sum on a fine grid, built pair by pair."""
    law = np.ones(1)
    steps = [round(abs(d) / cell) for d in differences]
    for step in steps:
        spread = np.zeros(law.size + 2 * step)
        spread[: law.size] += law / 2
        spread[2 * step :] += law / 2
        law = spread
    centre, observed = sum(steps), abs(sum(round(d / cell) for d in differences))
    return law[: centre - observed + 1].sum() + law[centre + observed :].sum()
