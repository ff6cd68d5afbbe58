"""Every problem: its closed forms against autograd, its minima, its forms of weights, many points at once."""

import functools

import pytest
import torch

import flatmin as fm
from flatmin.errors import ArgumentError, ArgumentTypeError
from flatmin.problems import Problem
from problems_table import every_problem


def points(problem, count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *problem.shape, generator=generator, dtype=torch.float64)


@every_problem
def test_closed_forms_are_what_autograd_finds(problem):
    w, v = points(problem), points(problem, seed=1)
    torch.testing.assert_close(problem.gradient(w), Problem._gradient(problem, w), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        problem.hessian_product(w, v), Problem._hessian_product(problem, w, v), rtol=1e-10, atol=1e-10
    )
    torch.testing.assert_close(problem.trace(w), Problem._trace(problem, w), rtol=1e-10, atol=1e-10)
    exact = torch.func.hessian(problem.value)(w[0]).reshape(problem.dim, problem.dim)
    torch.testing.assert_close(problem.hessian(w)[0], exact, rtol=1e-10, atol=1e-10)


@every_problem
def test_minima_are_minima(problem):
    minima = problem.minima.double()
    lowest = problem.value(minima)
    assert problem.gradient(minima).abs().max() < 1e-10
    assert torch.linalg.eigvalsh(problem.hessian(minima)).min() > -1e-10
    assert (problem.value(points(problem, 50)) >= lowest.max()).all()


@every_problem
def test_many_points_are_each_by_themselves(problem):
    w = points(problem, 4)
    for name in ("value", "gradient", "trace", "hessian"):
        together = getattr(problem, name)(w.reshape(2, 2, *problem.shape)).flatten(0, 1)
        alone = torch.stack([getattr(problem, name)(one) for one in w])
        torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


@every_problem
def test_named_weights_are_the_same(problem):
    w, v = points(problem, 2)
    named = problem.named(w)
    assert torch.equal(problem.value(named), problem.value(w))
    assert torch.equal(problem.gradient(named)[problem.name], problem.gradient(w))
    product = problem.hessian_product(named, problem.named(v))
    assert torch.equal(product[problem.name], problem.hessian_product(w, v))
    torch.testing.assert_close(
        fm.gradient(fm.flows.sgd, problem.value, named)[problem.name], problem.gradient(w), rtol=1e-10, atol=1e-10
    )


@every_problem
def test_a_torch_optimizer_takes_the_value(problem):
    w = torch.nn.Parameter(points(problem, 1)[0])
    expected = w.detach() - 1e-3 * problem.gradient(w.detach())
    problem.value(w).backward()
    torch.optim.SGD([w], lr=1e-3).step()
    torch.testing.assert_close(w.detach(), expected, rtol=1e-10, atol=1e-12)


@every_problem
def test_weights_that_do_not_fit(problem):
    w = points(problem, 1)[0]
    with pytest.raises(
        ArgumentError, match=r"the weights are named 'b', but this problem has one tensor.*named\(tensor"
    ):
        problem.value({"b": w})
    with pytest.raises(ArgumentTypeError, match="the weights are of the type list, but must be a tensor"):
        problem.value([1.0])
    with pytest.raises(ArgumentError, match=r"the weights have the shape .*but one point of this problem has"):
        problem.value(torch.zeros(problem.shape[0] + 1, dtype=torch.float64))
    with pytest.raises(ArgumentTypeError, match=r"the weights are of torch.int64, but derivatives need .*double\(\)"):
        problem.gradient(w.long())


@every_problem
def test_no_points_at_all(problem):
    for batch in ((0,), (2, 0)):
        w = torch.zeros(*batch, *problem.shape, dtype=torch.float64)
        assert problem.value(w).shape == problem.trace(w).shape == batch
        assert problem.gradient(w).shape == w.shape
        assert problem.hessian(w).shape == (*batch, problem.dim, problem.dim)


@every_problem
def test_smoothing_adds_half_the_variance_times_the_trace(problem):
    """Equation (4), with the noise one fair sign of one coordinate after the other."""
    sigma, w = 1e-3, points(problem, 1)[0]
    steps = sigma * torch.eye(problem.dim, dtype=torch.float64).reshape(problem.dim, *problem.shape)
    rise = (problem.value(w + steps) + problem.value(w - steps)).sum() / 2 - problem.dim * problem.value(w)
    assert float(rise) == pytest.approx(sigma**2 / 2 * float(problem.trace(w)), rel=1e-4)


def test_the_default_derivatives_need_only_the_value():
    class Rosenbrock(Problem):
        minima = torch.ones(1, 2)

        def _value(self, w):
            return (1 - w[..., 0]) ** 2 + 100 * (w[..., 1] - w[..., 0] ** 2) ** 2

    banana = Rosenbrock((2,))
    assert float(banana.trace(torch.ones(2))) == 802 + 200  # [[802, -400], [-400, 200]]
    flow = functools.partial(fm.flows.nso, sigma=0.0)
    assert fm.gradient(flow, banana.value, banana.named(torch.zeros(2)))["w"].tolist() == [-2.0, 0.0]
