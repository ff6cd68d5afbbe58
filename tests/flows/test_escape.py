"""Both escapes of Ahn, Jadbabaie, Sra, against their algorithms line by line and their identities."""

import functools

import pytest
import torch

import flatmin as fm
from flatmin.flows import randomly_smoothed, sharpness_aware
from flatmin.perturb import FULL_BATCH, plan
from flatmin.streams import Stream
from reference import escape

SGD = torch.optim.SGD


def example1(w):
    """f(x) = (x1 x2 - 1)^2, whose minima are flattest at (1, 1) and (-1, -1)."""
    x = w["x"]
    return (x[0] * x[1] - 1) ** 2


def point(*x):
    return {"x": torch.tensor(x, dtype=torch.float64)}


def descend(opt, w, value, steps):
    for _ in range(steps):
        for probe in opt.probes():
            with probe:
                value(probe).backward()
        opt.step()
        opt.zero_grad()
    return w.detach()


@pytest.mark.parametrize("threshold", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("name", ["smoothed", "sharpness_aware"])
def test_the_threshold_tells_far_from_near(name, threshold):
    """Steps of gradient descent, eta prime long, take turns with perturbed ones, eta long, as in the algorithms."""
    cls = {"smoothed": fm.RandomlySmoothed, "sharpness_aware": fm.SharpnessAware}[name]
    w = torch.nn.Parameter(torch.tensor([4.0, 0.3], dtype=torch.float64))
    far_steps = []
    opt = cls(SGD([w], lr=0.01), rho=0.1, threshold=threshold, descent_scale=2.0, seed=3)

    def value(probe):
        far_steps.append(probe)
        return example1({"x": w})

    def gradient(x):
        leaf = x[0].clone().requires_grad_()
        return torch.autograd.grad(example1({"x": leaf}), [leaf])

    start = [w.detach().clone()]
    end = descend(opt, w, value, 60)
    twin = getattr(escape, name)
    expected = twin(start, gradient, rho=0.1, eta=0.01, eta_far=0.02, threshold=threshold, steps=60, seed=3)
    torch.testing.assert_close(end, expected[0], rtol=1e-9, atol=1e-11)
    assert 60 < len(far_steps) < 120  # some steps were near, some far


def test_the_exact_form_tells_the_full_batch_from_the_example():
    a = torch.tensor([[1.0, 2.0], [0.5, -1.0], [-2.0, 0.3], [1.5, 1.0]], dtype=torch.float64)
    order = torch.randint(0, 4, (12,), generator=torch.Generator().manual_seed(0))

    def losses(x):
        return (torch.tanh(a @ x) - 0.3).square()

    def grad(value, x):
        leaf = x[0].clone().requires_grad_()
        return torch.autograd.grad(value(leaf), [leaf])

    w = torch.nn.Parameter(torch.tensor([0.4, -0.7], dtype=torch.float64))
    start, asked = [w.detach().clone()], []
    opt = fm.SharpnessAware(SGD([w], lr=0.05), rho=0.2, exact=True, seed=5)

    def closure():
        opt.zero_grad()
        asked.append(opt.probe.full_batch)
        step = opt.param_groups[0]["perturbation_step"]
        value = losses(w).mean() if opt.probe.full_batch else losses(w)[order[step]]
        value.backward()
        return value

    for _ in range(12):
        opt.step(closure)
    assert opt.probe is None
    assert asked == [True, False, False] * 12
    expected = escape.sharpness_aware(
        start,
        lambda x: grad(lambda leaf: losses(leaf).mean(), x),
        of_example=lambda x, t: grad(lambda leaf: losses(leaf)[order[t]], x),
        rho=0.2,
        eta=0.05,
        steps=12,
        seed=5,
    )
    torch.testing.assert_close(w.detach(), expected[0], rtol=1e-11, atol=1e-12)


def test_the_pure_driver_takes_both_losses():
    w = point(2.0, 0.7)
    flow = functools.partial(sharpness_aware, rho=0.1, exact=True)
    other = lambda w: (w["x"] ** 4).sum()  # noqa: E731
    got = fm.gradient(flow, example1, w, full_loss=other)["x"]
    g, h = (torch.func.grad(f)(w)["x"] for f in (other, example1))
    up = {"x": w["x"] + 0.1 * Stream(0, (0,)).sign() * h / h.norm()}
    v = torch.func.grad(example1)(up)["x"]
    torch.testing.assert_close(got, g + v - (v @ g) / (g @ g) * g, rtol=1e-12, atol=0)


def test_where_the_gradient_of_the_example_vanishes_a_tiny_random_step_is_taken_first():
    w = point(4.0, 0.25)  # a minimum: Remark 2
    evaluations = []

    def counted(w):
        evaluations.append(w["x"].detach().clone())
        return example1(w)

    flow = functools.partial(sharpness_aware, rho=0.1, exact=True, restart=1e-3)
    direction = fm.gradient(flow, counted, w)["x"]
    assert len(evaluations) == 4
    assert torch.isfinite(direction).all()
    top = torch.tensor([0.25, 4.0], dtype=torch.float64)
    top = top / top.norm()  # the only curved direction, along which the gradient of a nearby point lies
    up = {"x": w["x"] + 0.1 * top}, {"x": w["x"] - 0.1 * top}
    expected = [torch.func.grad(example1)(u)["x"] for u in up]
    assert min((direction - e).norm() / e.norm() for e in expected) < 1e-2


def test_the_expected_perturbation_is_the_gradient_of_the_normalized_trace():
    """At a minimum E grad f(x + rho g) = (rho^2 / 2) grad trbar + O(rho^3), with trbar = x1^2 + x2^2 on Example 1."""
    w, rho, draws = point(4.0, 0.25), 0.1, 4000
    flow = functools.partial(randomly_smoothed, rho=rho)
    samples = torch.stack([fm.gradient(flow, example1, w, step=step)["x"] for step in range(draws)])
    expected = rho**2 / 2 * 2 * w["x"]
    error = samples.std(0) / draws**0.5
    assert ((samples.mean(0) - expected).abs() < 4 * error + rho**3).all()
    assert (samples.mean(0)[0] > 3 * error[0]).all()  # the larger coordinate is seen to be pushed down


def test_nothing_along_the_gradient_is_left_of_the_perturbation():
    w = point(1.7, -0.4)
    g = torch.func.grad(example1)(w)["x"]
    for flow in (randomly_smoothed, sharpness_aware):
        direction = fm.gradient(functools.partial(flow, rho=0.3), example1, w, seed=2)["x"]
        torch.testing.assert_close((direction - g) @ g, torch.zeros((), dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_sphere_is_that_of_all_parameters_together():
    found = []

    def loss(w):
        found.append(torch.cat([w["a"].detach().reshape(-1), w["b"].detach().reshape(-1)]))
        return w["a"].sum() + w["b"].sum()

    w = {"a": torch.zeros(3, 4, dtype=torch.float64), "b": torch.zeros(5, dtype=torch.float64)}
    fm.gradient(functools.partial(randomly_smoothed, rho=0.7), loss, w)
    torch.testing.assert_close(found[1].norm(), torch.tensor(0.7, dtype=torch.float64))


def test_the_final_phase_is_gradient_descent():
    rho = fm.schedules.cutoff(0.3, 3)
    w = torch.nn.Parameter(torch.tensor([4.0, 0.3], dtype=torch.float64))
    opt, calls = fm.RandomlySmoothed(SGD([w], lr=0.01), rho=rho, descent_scale=3.0), []

    def value(probe):
        calls.append(probe)
        return example1({"x": w})

    descend(opt, w, value, 3)
    assert len(calls) == 6
    before = w.detach().clone()
    expected = before - 0.03 * torch.func.grad(example1)({"x": before})["x"]
    torch.testing.assert_close(descend(opt, w, value, 1), expected, rtol=1e-12, atol=0)
    assert len(calls) == 7


def test_plans_at_rest():
    assert len(plan(randomly_smoothed(Stream(0), rho=0.0, descent_scale=2.0))) == 1
    assert plan(sharpness_aware(Stream(0), rho=0.0, exact=True)) is None  # the full batch is asked for, live
    assert next(sharpness_aware(Stream(0), rho=0.1, exact=True)) == FULL_BATCH


def test_signs_are_fair_and_their_own():
    signs = torch.tensor([float(Stream(seed, (step,)).sign()) for seed in range(4) for step in range(500)])
    assert signs.abs().eq(1).all()
    assert abs(float(signs.mean())) < 4 / 2000**0.5
