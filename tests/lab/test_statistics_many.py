"""Bootstrap intervals, Holm's correction and runs of several tasks: literal twins, enumeration, coverage."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from flatmin.errors import ArgumentError
from flatmin_lab.statistics import (
    bca_interval,
    holm,
    interquartile_mean,
    mean_interval,
    min_seeds,
    probability_of_improvement,
    sign_flip_test,
)

unhurried = settings(deadline=None, max_examples=60)  # a loaded machine is no failure
probabilities = st.lists(st.floats(0, 1), min_size=1, max_size=12)
values = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9)


def every_resample(x):
    """The mean of each of the n^n resamples, in whole."""
    return np.array([np.mean(pick) for pick in itertools.product(x, repeat=len(x))])


def bca_twin(x, level):
    """Efron (1987), equations 2.3 and 6.6, from all resamples instead of some."""
    n, means = len(x), every_resample(x)
    mean = np.mean(x)
    below = np.mean(means < mean - 1e-12) + np.mean(np.abs(means - mean) <= 1e-12) / 2
    z0 = stats.norm.ppf(below)
    without = np.array([np.mean(np.delete(x, i)) for i in range(n)])
    d = without.mean() - without
    a = np.sum(d**3) / (6 * np.sum(d**2) ** 1.5)
    ends = [z0 + (z0 + z) / (1 - a * (z0 + z)) for z in stats.norm.ppf([(1 - level) / 2, (1 + level) / 2])]
    return np.sort(means), stats.norm.cdf(ends)


class TestBca:
    @pytest.mark.parametrize("x", [[1.0, 2.0, 3.5, 10.0], [0.3, 0.1, 0.7, 0.75, 0.2], [-4.0, 0.5, 1.0, 1.5, 2.0]])
    def test_is_efrons_with_all_resamples_drawn(self, x):
        # The share of all resampled means at or below each end is the level the formula asks for, up to the sampling
        # of 40 000 of them and the steps of a discrete law.
        means, shares = bca_twin(np.array(x), 0.9)
        found = bca_interval(x, 0.9, resamples=40_000)
        for end, share in zip((found.low, found.high), shares, strict=True):
            slack = 5 * math.sqrt(share * (1 - share) / 40_000) + 0.002
            assert np.mean(means < end - 1e-9) - slack <= share <= np.mean(means <= end + 1e-9) + slack

    def test_covers_as_often_as_its_docstring_says(self):
        samples = np.random.default_rng(0).normal(size=(600, 12))
        covered = np.mean([bca_interval(list(x), resamples=499).covers(0.0) for x in samples])
        assert covered == pytest.approx(0.90, abs=4 * math.sqrt(0.9 * 0.1 / 600))

    @unhurried
    @given(values)
    def test_lies_within_the_values_about_their_mean(self, x):
        found = bca_interval(x, resamples=99)
        assert min(x) - 1e-9 <= found.low <= found.high <= max(x) + 1e-9
        assert found.mean == mean_interval(x).mean
        assert found.is_point == (len(set(x)) == 1) or np.ptp(x) < 1e-6

    def test_scales_with_the_values_however_tiny(self):
        x = [0.1, 0.4, 0.2, 0.9]
        for exponent in (-1000, 900):
            found, plain = bca_interval([math.ldexp(v, exponent) for v in x]), bca_interval(x)
            assert (found.low, found.high) == (math.ldexp(plain.low, exponent), math.ldexp(plain.high, exponent))
        assert bca_interval([0.0, 2.225073858507203e-309]).is_bounded

    def test_one_seed_gives_one_interval_and_another_another(self):
        x = [0.1, 0.4, 0.2, 0.9]
        assert bca_interval(x) == bca_interval(x)
        assert bca_interval(x, resamples=50) != bca_interval(x, resamples=50, seed=1)

    def test_leaves_the_global_generator_alone(self):
        before = np.random.get_state()[1].copy()
        bca_interval([1.0, 2.0, 4.0])
        assert (np.random.get_state()[1] == before).all()

    def test_degenerate_samples_say_so(self):
        assert bca_interval([0.1] * 3).is_point
        one, lost = bca_interval([0.7]), bca_interval([0.7, math.nan])
        assert (one.mean, one.is_bounded, lost.is_bounded) == (0.7, False, False)
        assert math.isnan(lost.mean)

    def test_refuses_what_makes_no_sense(self):
        with pytest.raises(ArgumentError, match="level must lie between 0 and 1, got 95"):
            bca_interval([1.0, 2.0], 95)
        with pytest.raises(ArgumentError, match="resamples must be at least 1, got 0"):
            bca_interval([1.0, 2.0], resamples=0)
        with pytest.raises(ArgumentError, match="values must be a non-empty sequence"):
            bca_interval([])


class TestHolm:
    def test_by_hand(self):
        # Holm (1979): 4 * 0.005, then 3 * 0.01, then 2 * 0.03 and 1 * 0.04, the last raised to the one before it.
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
        assert holm([0.5, 0.6]) == (1.0, 1.0)
        assert holm([]) == ()

    @unhurried
    @given(probabilities)
    def test_lies_between_p_and_bonferroni(self, p):
        for raw, adjusted in zip(p, holm(p), strict=True):
            assert raw <= adjusted <= min(1.0, len(p) * raw) + 1e-15

    @unhurried
    @given(probabilities, st.randoms())
    def test_keeps_the_order_and_does_not_depend_on_it(self, p, random):
        adjusted = dict(zip(p, holm(p), strict=True))
        shuffled = random.sample(p, len(p))
        assert holm(shuffled) == tuple(adjusted[x] for x in shuffled)
        in_order = [adjusted[x] for x in sorted(p)]
        assert in_order == sorted(in_order)

    @unhurried
    @given(probabilities, st.floats(0.001, 0.999))
    def test_is_the_step_down_procedure(self, p, alpha):
        # Reject from the smallest on while p_(i) <= alpha / (m - i + 1).
        rejected, m = set(), len(p)
        for i, index in enumerate(sorted(range(m), key=p.__getitem__)):
            if p[index] * (m - i) > alpha:
                break
            rejected.add(index)
        assert rejected == {i for i, adjusted in enumerate(holm(p)) if adjusted <= alpha}

    def test_keeps_the_error_of_the_family(self):
        # Four true hypotheses out of six, dependent: some false rejection in at most 5 % of families.
        generator, false = np.random.default_rng(0), 0
        for _ in range(4000):
            z = generator.normal(size=6) + generator.normal() + np.array([0, 0, 0, 0, 6, 6])
            false += min(holm(list(2 * stats.norm.sf(np.abs(z) / math.sqrt(2))))[:4]) <= 0.05
        assert false / 4000 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 4000)

    @pytest.mark.parametrize("bad", [math.nan, -0.1, 1.2])
    def test_refuses_what_is_no_probability(self, bad):
        with pytest.raises(ArgumentError, match=r"p_values must be probabilities .*Leave it out of the family"):
            holm([0.1, bad])


class TestMinSeeds:
    @pytest.mark.parametrize("alpha", [0.5, 0.25, 0.1, 0.05, 0.01])
    @pytest.mark.parametrize("comparisons", [1, 2, 3, 7, 8])
    def test_one_seed_fewer_cannot_decide(self, alpha, comparisons):
        n = min_seeds(alpha, comparisons=comparisons)

        def best(seeds):
            return holm([sign_flip_test([1.0] * seeds).p] * comparisons)[0]

        assert best(n) <= alpha
        assert n == 1 or best(n - 1) > alpha

    def test_closed_form(self):
        for m, alpha in itertools.product(range(1, 30), (0.05, 0.01, 0.3)):
            assert min_seeds(alpha, comparisons=m) == max(1, math.ceil(1 + math.log2(m / alpha)))

    def test_refuses_what_makes_no_sense(self):
        with pytest.raises(ArgumentError, match="alpha must lie between 0 and 1, got 5"):
            min_seeds(5)
        with pytest.raises(ArgumentError, match="comparisons"):
            min_seeds(comparisons=0)


class TestProbabilityOfImprovement:
    scores = st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=1, max_size=7)

    @unhurried
    @given(st.lists(scores, min_size=1, max_size=3))
    def test_is_mann_whitneys_share_of_pairs(self, tasks):
        expected = []
        for task in tasks:
            x, y = zip(*task, strict=True)
            expected.append(stats.mannwhitneyu(x, y, method="asymptotic").statistic / len(task) ** 2)
        assert probability_of_improvement(tasks, resamples=10).mean == pytest.approx(np.mean(expected))

    @unhurried
    @given(st.lists(scores, min_size=1, max_size=3))
    def test_what_one_wins_the_other_loses(self, tasks):
        turned = [[(y, x) for x, y in task] for task in tasks]
        one, other = (probability_of_improvement(t, resamples=50) for t in (tasks, turned))
        assert one.mean + other.mean == pytest.approx(1)
        assert (one.low, one.high) == pytest.approx((1 - other.high, 1 - other.low))

    def test_interval_by_enumeration(self):
        # All resamples of three pairs, weighted alike: the quantiles of their law, within the error of sampling it.
        pairs = np.array([(1.0, 0.5), (2.0, 2.5), (0.0, 0.5)])

        def share(picked):
            x, y = picked.T
            return np.mean((np.sign(x[:, None] - y) + 1) / 2)

        law = np.array([share(pairs[list(i)]) for i in itertools.product(range(3), repeat=3)])
        found = probability_of_improvement([pairs.tolist()], resamples=20_000, level=0.7)
        for end, quantile in ((found.low, 0.15), (found.high, 0.85)):
            assert np.mean(law < end - 1e-9) <= quantile + 0.01
            assert np.mean(law <= end + 1e-9) >= quantile - 0.01

    def test_covers_the_probability(self):
        generator, truth, covered = np.random.default_rng(0), stats.norm.cdf(0.5 / math.sqrt(2)), 0
        for _ in range(500):
            tasks = [generator.normal((0.5, 0.0), size=(12, 2)) for _ in range(2)]
            covered += probability_of_improvement([t.tolist() for t in tasks], resamples=399).covers(truth)
        assert covered / 500 == pytest.approx(0.945, abs=4 * math.sqrt(0.945 * 0.055 / 500))

    def test_degenerate_samples_say_so(self):
        always = probability_of_improvement([[(1.0, 0.0), (2.0, 0.5)]])
        assert (always.mean, always.is_point) == (1.0, True)
        assert not probability_of_improvement([[(1.0, 0.0)]]).is_bounded
        assert math.isnan(probability_of_improvement([[(1.0, math.nan), (1.0, 0.0)]]).mean)
        with pytest.raises(ArgumentError, match=r"pairs has 2 tasks with \[1, 0\] runs"):
            probability_of_improvement([[(1.0, 0.0)], []])
        with pytest.raises(ArgumentError, match="pairs has 0 tasks"):
            probability_of_improvement([])


class TestInterquartileMean:
    @unhurried
    @given(st.lists(values, min_size=1, max_size=3))
    def test_is_the_mean_of_the_middle_half(self, tasks):
        pooled = sorted(itertools.chain(*tasks))
        cut = len(pooled) // 4
        expected = np.mean(pooled[cut : len(pooled) - cut])
        found = interquartile_mean(tasks, resamples=20)
        assert found.mean == pytest.approx(expected, abs=1e-9)
        assert found.num_values == len(pooled)

    def test_no_outlier_moves_it(self):
        calm = [[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]]
        wild = [[1.0, 2.0, 3.0, 1e9], [-1e9, 2.0, 3.0, 4.0]]
        assert interquartile_mean(calm).mean == interquartile_mean(wild).mean == 2.5

    def test_strata_are_resampled_apart(self):
        # Two tasks whose runs are all alike: mixing them would move the mean, resampling within each cannot.
        found = interquartile_mean([[0.0] * 4, [1.0] * 4])
        assert (found.mean, found.is_point) == (0.5, True)

    def test_covers_the_mean_of_a_symmetric_law(self):
        generator, covered = np.random.default_rng(1), 0
        for _ in range(500):
            covered += interquartile_mean(generator.normal(size=(2, 12)).tolist(), resamples=399).covers(0.0)
        assert covered / 500 == pytest.approx(0.93, abs=4 * math.sqrt(0.93 * 0.07 / 500))

    def test_degenerate_samples_say_so(self):
        assert not interquartile_mean([[1.0, 2.0], [1.0]]).is_bounded
        assert math.isnan(interquartile_mean([[1.0, math.inf]]).mean)
        with pytest.raises(ArgumentError, match="scores must be a non-empty sequence"):
            interquartile_mean([[]])
