"""The live trace against traces that are known."""

import math

import pytest
import torch

import flatmin as fm
from problems import closure_of, data, loss, mlp

SGD = torch.optim.SGD


def dense_hessian(model, batch):
    names = [n for n, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])

    def f(w):
        parts = torch.split(w, [s.numel() for s in shapes])
        named = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return torch.nn.functional.cross_entropy(torch.func.functional_call(model, named, batch[0]), batch[1])

    return torch.func.hessian(f)(flat)


def quadratic(opt_of, h, steps, w=None):
    """Run ``steps`` steps of learning rate zero on f(w) = w·Hw / 2."""
    w = torch.nn.Parameter(torch.ones(len(h), dtype=torch.float64) if w is None else w)
    opt = opt_of(SGD([w], lr=0.0))
    for _ in range(steps):
        for probe in opt.probes():
            with probe:
                (w @ h @ w / 2).backward()
        opt.step()
        opt.zero_grad()
    return opt.trace_estimate


def test_rademacher_on_a_diagonal_quadratic_is_exact_in_every_sample():
    h = torch.diag(torch.tensor([3.0, -1.0, 0.5, 10.0], dtype=torch.float64))
    estimate = quadratic(lambda b: fm.NSO(b, sigma=0.1, noise="rademacher"), h, steps=5)
    torch.testing.assert_close(estimate.value, 12.5, rtol=1e-12, atol=0)
    assert estimate.stderr < 1e-12
    assert estimate.num_matvecs == 5


@pytest.mark.parametrize("noise", ["gaussian", "laplace", "uniform", "rademacher", "binomial"])
def test_the_standard_error_has_its_closed_form(noise):
    """Var[u·Hu] = 2 |H|_F² + (kappa - 3) sum_i H_ii² for independent coordinates of kurtosis kappa."""
    kurtosis = {"gaussian": 3.0, "laplace": 6.0, "uniform": 1.8, "rademacher": 1.0, "binomial": 2.5}[noise]
    a = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    h, n = a + a.T, 1500
    estimate = quadratic(lambda b: fm.NSO(b, sigma=0.3, noise=noise, trace_window=n), h, steps=n)
    variance = float(2 * h.square().sum() + (kurtosis - 3) * h.diagonal().square().sum())
    assert abs(estimate.value - float(h.trace())) < 4 * estimate.stderr
    assert abs(estimate.stderr / math.sqrt(variance / n) - 1) < 0.15


def test_one_sided_noise_estimates_the_same_with_the_larger_error_that_theory_gives():
    """Var = Var[u·Hu] + |grad|²/sigma² for one point; the pair has cancelled the second term."""
    h, n, sigma = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)), 1500, 0.05
    one = quadratic(lambda b: fm.WPSGD(b, sigma=sigma, noise="rademacher", trace_window=n), h, steps=n)
    gradient = h @ torch.ones(3, dtype=torch.float64)
    assert abs(one.value - 6.0) < 4 * one.stderr
    assert abs(one.stderr / math.sqrt(float(gradient @ gradient) / sigma**2 / n) - 1) < 0.1


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("shell", ["closure", "probes"])
def test_on_a_network_it_is_the_trace_of_the_exact_hessian(k, shell):
    model, batch = mlp(), data()
    exact = float(dense_hessian(model, batch).trace())
    opt = fm.NSO(SGD(model.parameters(), lr=0.0), sigma=0.003, num_perturbations=k, trace_window=250)
    for _ in range(250):
        if shell == "closure":
            opt.step(closure_of(opt, model, batch))
        else:
            for probe in opt.probes():
                with probe:
                    loss(model, batch).backward()
            opt.step()
            opt.zero_grad()
    estimate = opt.trace_estimate
    assert abs(estimate.value - exact) < 4 * estimate.stderr
    assert estimate.stderr < 0.15 * exact


def test_both_shells_and_a_used_grad_give_the_same_samples():
    values = []
    for shell in ("closure", "probes", "with gradients already there"):
        model, batch = mlp(), data()
        opt = fm.NSO(SGD(model.parameters(), lr=0.0), sigma=0.01, num_perturbations=2)
        if shell == "closure":
            opt.step(closure_of(opt, model, batch))
        else:
            if shell != "probes":
                for p in model.parameters():
                    p.grad = torch.ones_like(p)
            for probe in opt.probes():
                with probe:
                    loss(model, batch).backward()
            opt.step()
        values.append(opt.trace_estimate.value)
    torch.testing.assert_close(values, [values[0]] * 3, rtol=1e-9, atol=0)


def test_groups_add_up_each_with_its_own_sigma():
    model, batch = mlp(), data()
    h = dense_hessian(model, batch)
    split = sum(p.numel() for p in model[0].parameters())
    groups = [{"params": model[0].parameters(), "sigma": 0.002}, {"params": model[2].parameters(), "sigma": 0.004}]
    opt = fm.NSO(SGD(groups, lr=0.0), sigma=0.1, trace_window=600)
    for _ in range(600):
        opt.step(closure_of(opt, model, batch))
    first, second = opt.group_trace_estimates
    assert abs(first.value - float(h[:split, :split].trace())) < 4 * first.stderr
    assert abs(second.value - float(h[split:, split:].trace())) < 4 * second.stderr
    torch.testing.assert_close(first.value + second.value, opt.trace_estimate.value, rtol=1e-9, atol=0)


def test_there_is_none_before_the_first_step_without_noise_or_when_turned_off():
    model = mlp()
    for opt in (
        fm.NSO(SGD(model.parameters(), lr=0.0), sigma=0.0),
        fm.SAM(SGD(model.parameters(), lr=0.0), rho=0.1),
        fm.NSO(SGD(model.parameters(), lr=0.0), sigma=0.1, trace_window=0),
    ):
        assert opt.trace_estimate is None
        opt.step(closure_of(opt, model, data()))
        assert opt.trace_estimate is None
        assert opt.group_trace_estimates is None


def test_the_window_forgets():
    h = torch.eye(2, dtype=torch.float64)
    w = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    opt = fm.NSO(SGD([w], lr=0.0), sigma=0.1, noise="rademacher", trace_window=3)
    for scale in (1.0, 1.0, 5.0, 5.0, 5.0):
        for probe in opt.probes():
            with probe:
                (scale * w @ h @ w / 2).backward()
        opt.step()
        opt.zero_grad()
    torch.testing.assert_close(opt.trace_estimate.value, 10.0)
    assert opt.trace_estimate.num_matvecs == 3


@pytest.mark.parametrize("clear", [lambda opt, w: opt.zero_grad(), lambda opt, w: setattr(w, "grad", None)])
def test_what_was_thrown_away_is_not_counted(clear):
    w = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    opt = fm.NSO(SGD([w], lr=0.0), sigma=0.1, noise="rademacher")
    for scale in (float("inf"), 3.0):  # an overflow that a GradScaler would skip, and the step after it
        for probe in opt.probes():
            with probe:
                (scale * w @ w / 2).backward()
        if scale != 3.0:
            clear(opt, w)
    opt.step()
    torch.testing.assert_close(opt.trace_estimate.value, 6.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_there_is_none_for_parameters_of_16_bits(dtype):
    """Rounding makes a pair as unequal as the noise is large: what came out would be a number, but no trace."""
    w = torch.nn.Parameter(torch.ones(8, dtype=dtype))
    opt = fm.NSO(SGD([w], lr=0.0), sigma=0.003)
    for probe in opt.probes():
        with probe:
            (w.float() @ w.float() / 2).backward()
    opt.step()
    assert opt.trace_estimate is None
