"""The convergence theory: closed forms against simulation, the chain's plateaus, the bounds."""

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatmin import flows
from flatmin.errors import ArgumentError, NonFiniteError
from flatmin.perturb import Draw, realize
from flatmin.problems import PlateauChain, Quadratic, Setting, TruncatedGaussian, descent, expected_square_gradients
from flatmin.streams import Stream


def gaussian_tilt(shape, std, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda step: std * torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("rates", [[0.3] * 12, [0.9, 0.5, 0.3, 0.1, 0.05]])
def test_lemma_b6_and_the_momentum_recurrence(momentum, rates):
    """4000 runs of NSO; within 4 standard errors at every step. The perturbations cancel exactly."""
    C, D, runs, dim, std = 0.8, 1.5, 4000, 3, 0.4
    start = torch.full((runs, dim), math.sqrt(2 * D**2 / C / dim), dtype=torch.float64)
    problem, flow = Quadratic(C, dim), functools.partial(flows.nso, sigma=0.5)
    tilt = gaussian_tilt((runs, dim), std)
    path = descent(problem, flow, start, lr=rates, num_steps=len(rates), momentum=momentum, tilt=tilt)
    expected = expected_square_gradients(rates, curvature=C, distance=D, noise_variance=dim * std**2, momentum=momentum)
    for w, value in zip(path, expected, strict=True):
        squares = problem.gradient(w).square().sum(-1)
        assert abs(squares.mean() - value) <= 4 * squares.std() / runs**0.5 + 1e-12


@given(rates=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=8), variance=st.floats(0.0, 3.0))
def test_the_recurrence_is_lemma_b6_without_momentum(rates, variance):
    C, D = 1.0, 0.7
    for i, value in enumerate(expected_square_gradients(rates, curvature=C, distance=D, noise_variance=variance)):
        shrunk = 2 * C * D**2 * math.prod((1 - C * eta) ** 2 for eta in rates[:i])
        kicks = sum(rates[j] ** 2 * math.prod((1 - C * eta) ** 2 for eta in rates[j + 1 : i]) for j in range(i))
        assert value == pytest.approx(shrunk + C**2 * variance * kicks, rel=1e-9, abs=1e-12)


def test_momentum_moves_by_the_matrix_of_theorem_b5():
    eta, C, mu = 0.3, 1.2, 0.6
    X = torch.tensor([[1 - eta * C, mu], [-eta * C, mu]], dtype=torch.float64)
    roots = torch.linalg.eigvals(X)
    torch.testing.assert_close(roots**2 - (1 + mu - eta * C) * roots + mu, torch.zeros_like(roots))
    state, start = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    for w in descent(Quadratic(C, 1), flows.sgd, start, lr=eta, num_steps=6, momentum=mu):
        torch.testing.assert_close(w[0], state[0])
        state = X @ state


@given(
    num_steps=st.integers(1, 25),
    lr=st.floats(0.01, 1.0),
    noise=st.floats(0.1, 3.0),
    sigma=st.floats(0.01, 10.0),
    seed=st.integers(0, 100),
)
@settings(max_examples=25, deadline=None)
def test_no_point_looked_at_leaves_the_plateau(num_steps, lr, noise, sigma, seed):
    chain = PlateauChain([lr] * num_steps, gradient_noise=noise)
    law = chain.noise(sigma)
    flow, tilt = functools.partial(flows.nso, sigma=sigma, noise=law), functools.partial(chain.error, seed=seed)
    path = descent(chain, flow, chain.start(), lr=lr, num_steps=num_steps, tilt=tilt, seed=seed)
    plateaus = chain.plateaus * (1 + 1e-12)
    for i, w in enumerate(path):
        assert float(w[0]) == pytest.approx(float(chain.start()[0]) * (1 - lr / chain.scale) ** i, rel=1e-9)
        u = realize(sigma * Draw(law, Stream(seed, (i, 0))), {0: w}).tensors[0]  # what the flow's step i adds
        for point in (w, w + u, w - u):
            assert (point[1:].abs() <= plateaus).all()
        assert float(chain.gradient(w).square().sum()) >= 1 / (4 * chain.scale) * (1 - 1e-9)


def test_the_chain_meets_the_bound_of_theorem_4_3():
    """C = D = σ_g = 1, T = 200, η = √(8/(9T)): the budget is spent exactly, and the norm stays above (14)."""
    eta = math.sqrt(8 / (9 * 200))
    chain = PlateauChain([eta] * 200)
    assert chain.budget() == pytest.approx(1.0)
    path = descent(chain, flows.sgd, chain.start(), lr=eta, num_steps=200, tilt=chain.error)
    least = min(float(chain.gradient(w).square().sum()) for w in path)
    assert least == pytest.approx(0.01378, abs=5e-6)
    assert Setting(200).lower_bound == pytest.approx(0.0125)
    assert least > Setting(200).lower_bound > 1 / (4 * chain.scale) == pytest.approx(0.009375)


def test_the_chain_stays_above_the_lower_bound_from_three_steps_on():
    def least(T, C=0.7, D=1.3, k=2, noise=1.1):
        G = 2 * T * math.sqrt(8 * k * D**2 / (9 * C * noise**2 * T))
        bound = Setting(T, k, smoothness=C, distance=D, gradient_noise=noise).lower_bound
        return D**2 / G * (1 - 1 / (2 * T)) ** (2 * T) / bound

    ratios = [least(T) for T in range(1, 200)]
    assert max(ratios[:2]) < 1 < min(ratios[2:])
    assert ratios == sorted(ratios)
    assert least(10**7) == pytest.approx(3 * math.exp(-1), rel=1e-6)  # 4 √(9/512) √32 / e


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_the_links_are_smooth(alpha):
    """Value and slope of h meet where its pieces do, and the slope changes by at most C a unit."""
    C = 1.0
    chain = PlateauChain([alpha], smoothness=C, gradient_noise=2 / 3)
    x = torch.linspace(-3 * alpha, 3 * alpha, 6001, dtype=torch.float64)
    w = torch.stack([torch.zeros_like(x), x], -1)
    h, slope, width = chain.value(w), chain.gradient(w)[:, 1], float(x[1] - x[0])
    assert slope.diff().abs().max() <= C * width * (1 + 1e-9)
    torch.testing.assert_close(h.diff() / width, (slope[1:] + slope[:-1]) / 2, atol=C * width, rtol=0)
    pieces = chain.value(torch.tensor([[0.0, 0.5 * alpha], [0.0, 1.5 * alpha], [0.0, 2.5 * alpha]]))
    torch.testing.assert_close(pieces, torch.tensor([C * alpha**2 / 4, C * alpha**2 / 8, 0.0]))


def test_the_oracle_errs_along_one_link_with_fair_signs():
    chain = PlateauChain([0.1] * 5, gradient_noise=0.7)
    errors = chain.error(3, seed=1, num_points=1000)
    assert errors.count_nonzero() == 1000
    assert set(errors[:, 4].tolist()) == {0.7, -0.7}
    assert abs(errors[:, 4].mean()) < 4 * 0.7 / 1000**0.5
    assert torch.equal(chain.error(3, seed=1), chain.error(3, seed=1))


def test_truncated_noise_has_the_moments_of_its_law():
    """Variance 1 - 2aφ(a)/(2Φ(a) - 1), within 4 standard errors of 40,000 draws; no cut at infinity."""
    limits = torch.tensor([0.5, 1.5, math.inf], dtype=torch.float64)
    draws = TruncatedGaussian(limits).sample_(torch.empty(40_000, 3).double(), torch.Generator().manual_seed(0))
    density = torch.exp(-(limits**2) / 2) / math.sqrt(2 * math.pi)
    variance = 1 - torch.nan_to_num(2 * limits * density / torch.erf(limits / math.sqrt(2)), nan=0.0)
    squares = draws.square()
    assert ((squares.mean(0) - variance).abs() < 4 * squares.std(0) / 200).all()
    assert (draws.mean(0).abs() < 4 * draws.std(0) / 200).all()


def test_bounds_scale_as_stated():
    base = Setting(1000, gradient_noise=2.0)
    assert Setting(4000, gradient_noise=2.0).lower_bound == pytest.approx(base.lower_bound / 2)
    assert Setting(1000, 4, gradient_noise=2.0).lower_bound == pytest.approx(base.lower_bound / 2)
    assert Setting(1000, gradient_noise=4.0).lower_bound == pytest.approx(2 * base.lower_bound)
    assert Setting(10).learning_rate == pytest.approx(math.sqrt(0.2))
    assert Setting(1).learning_rate == 1.0
    assert Setting(10, gradient_noise=0.0).learning_rate == 1.0
    assert Setting(10, second_moment=3.0).upper_bound == pytest.approx(math.sqrt(8 * 4 / 10) + 0.2)


@given(st.integers(20, 400), st.integers(1, 4), st.floats(0.5, 2.0))
@settings(max_examples=30, deadline=None)
def test_quadratics_stay_between_the_bounds(T, k, noise):
    setting = Setting(T, k, gradient_noise=noise)
    rates = [setting.learning_rate] * T
    path = expected_square_gradients(rates, noise_variance=noise**2 / k)[1:]
    assert sum(path) / T <= setting.upper_bound


def test_bad_arguments():
    with pytest.raises(ArgumentError, match=r"a learning rate is 2, above 1/smoothness = 1, where the theorem ends"):
        PlateauChain([0.5, 2.0])
    with pytest.raises(ArgumentError, match="learning_rates is empty"):
        PlateauChain([])
    with pytest.raises(ArgumentError, match=r"momentum is 1\.0, but at 1 and above no move ever ends"):
        list(descent(Quadratic(1.0, 1), flows.sgd, torch.ones(1), lr=0.1, num_steps=1, momentum=1.0))
    with pytest.raises(ArgumentError, match=r"lr has 2 entries for 3 steps. Give one for each step, or one number"):
        list(descent(Quadratic(1.0, 1), flows.sgd, torch.ones(1), lr=[0.1, 0.1], num_steps=3))
    with pytest.raises(ArgumentError, match=r"curvature is 0, but it must be above 0"):
        Quadratic(0.0, 3)
    with pytest.raises(ArgumentError, match=r"curvature is 0, but it must be above 0"):
        expected_square_gradients([0.1], curvature=0.0)
    with pytest.raises(ArgumentError, match=r"noise_variance is -1, but it must be finite and at least 0"):
        expected_square_gradients([0.1], noise_variance=-1)
    with pytest.raises(ArgumentError, match=r"num_steps is 0, but it must be at least 1\. It is T"):
        Setting(0)
    with pytest.raises(ArgumentError, match=r"smoothness is -1, but it must be finite"):
        Setting(10, smoothness=-1)
    with pytest.raises(ArgumentError, match=r"step is 2, but the chain has a link for each of 2 steps"):
        PlateauChain([0.1, 0.1]).error(2)
    with pytest.raises(ArgumentError, match=r"sigma is -1, but it must be finite"):
        PlateauChain([0.1]).noise(-1)
    with pytest.raises(ArgumentError, match=r"limits has an entry that is below zero or NaN"):
        TruncatedGaussian(torch.tensor([1.0, math.nan]))
    with pytest.raises(ArgumentError, match=r"lr is -1\.0, but it must be finite and at least 0\. Give η₀"):
        list(descent(Quadratic(1.0, 1), flows.sgd, torch.ones(1), lr=[-1.0], num_steps=1))
    with pytest.raises(NonFiniteError, match=r"start is not finite, so that no step can be made"):
        list(descent(Quadratic(1.0, 1), flows.sgd, torch.full((1,), math.nan), lr=0.1, num_steps=1))


def test_iterates_are_tensors_of_their_own_without_a_graph():
    start = torch.ones(1, requires_grad=True)
    path = list(descent(Quadratic(1.0, 1), flows.sgd, start, lr=0.5, num_steps=2))
    path[0].zero_()
    assert [float(w) for w in path] == [0.0, 0.5, 0.25]
    assert start.item() == 1.0
    assert not any(w.requires_grad for w in path)
