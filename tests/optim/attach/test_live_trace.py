"""The live trace from the gradients of a loop of the user's own."""

import math

import pytest
import torch
from torch import nn

from attach_cases import attached, sgd
from flatmin.optim.attach import attach
from problems import data, loss, mlp

H = torch.diag(torch.tensor([3.0, -1.0, 0.5, 10.0], dtype=torch.float64))


class Quadratic(nn.Module):
    """f(w) = w·Hw / 2, the loss computed inside as in transformers."""

    def __init__(self, h=H, dtype=torch.float64):
        super().__init__()
        self.w, self.h = nn.Parameter(torch.ones(len(h), dtype=dtype)), h.to(dtype)

    def forward(self):
        return {"loss": self.w @ self.h @ self.w / 2}


def train(model, optimizer, steps, per_step=2, before_step=lambda: None):
    for _ in range(steps):
        for _ in range(per_step):
            (model()["loss"] / per_step).backward()
        before_step()
        optimizer.step()
        optimizer.zero_grad()


def test_a_pair_is_exact_with_signs_on_a_diagonal():
    model = Quadratic()
    optimizer, handle = attached(model, sgd(model, lr=0.0), noise="rademacher")
    train(model, optimizer, 5)
    torch.testing.assert_close(handle.trace_estimate.value, 12.5, rtol=1e-12, atol=0)
    assert handle.trace_estimate.stderr < 1e-12
    assert handle.trace_estimate.num_matvecs == 5


@pytest.mark.parametrize("per_step", [1, 2, 3])
def test_it_is_unbiased_with_the_standard_error_it_says(per_step):
    """Where a point has no partner in its step, the gradient stays in: |g|²/sigma² more for each single point."""
    n, model = 1500, Quadratic()
    optimizer, handle = attached(model, sgd(model, lr=0.0), sigma=0.5, trace_window=n)
    train(model, optimizer, n, per_step)
    estimate = handle.trace_estimate
    assert abs(estimate.value - 12.5) < 4 * estimate.stderr
    curvature, slope = float(2 * H.square().sum()), float((H @ model.w).square().sum().detach()) / 0.5**2
    variance = {1: curvature + slope, 2: curvature, 3: (5 * curvature + slope) / 9}[per_step]
    assert abs(estimate.stderr / math.sqrt(variance / n) - 1) < 0.12


def test_a_network_and_its_groups():
    model, batch = mlp(), data()
    names = dict(model.named_parameters())

    def f(*tensors):
        return nn.functional.cross_entropy(
            torch.func.functional_call(model, dict(zip(names, tensors)), batch[0]), batch[1]
        )

    model.eval()
    values = tuple(p.detach() for p in names.values())
    blocks = torch.func.hessian(f, argnums=(0, 1, 2, 3))(*values)
    exact = [float(blocks[i][i].reshape(v.numel(), v.numel()).trace()) for i, v in enumerate(values)]
    model.train()
    groups = [{"params": model[0].parameters(), "sigma": 0.002}, {"params": model[2].parameters()}]
    optimizer, handle = attached(model, torch.optim.SGD(groups, lr=0.0), sigma=0.004, trace_window=400)
    for _ in range(400):
        for _ in range(2):
            (loss(model, batch) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    first, second = handle.group_trace_estimates
    assert abs(first.value - sum(exact[:2])) < 4 * first.stderr
    assert abs(second.value - sum(exact[2:])) < 4 * second.stderr
    torch.testing.assert_close(first.value + second.value, handle.trace_estimate.value, rtol=1e-9, atol=0)


def clear_grad(model, optimizer):
    for p in model.parameters():
        p.grad = None


@pytest.mark.parametrize("clear", [lambda model, optimizer: optimizer.zero_grad(), clear_grad])
def test_what_was_thrown_away_is_not_counted(clear):
    """Whenever it is cleared: after the step, or between forward and backward, as many loops do."""
    model = Quadratic()
    optimizer, handle = attached(model, sgd(model, lr=0.0), noise="rademacher")
    for scale in (float("inf"), 1.0, 1.0):
        for half in range(2):
            value = model()["loss"]
            if half == 0:
                clear(model, optimizer)
            (scale * value / 2).backward()
        if scale == 1.0:
            optimizer.step()
    torch.testing.assert_close(handle.trace_estimate.value, 12.5)
    assert handle.trace_estimate.num_matvecs == 2


def test_two_backward_passes_at_one_displacement_add_up():
    model = Quadratic()
    optimizer, handle = attached(model, sgd(model, lr=0.0), noise="rademacher")
    for _ in range(2):
        value = model()["loss"]
        (value / 4).backward(retain_graph=True)
        (value / 4).backward()
    optimizer.step()
    torch.testing.assert_close(handle.trace_estimate.value, 12.5)


def test_a_scaler_is_undone_if_it_is_named_and_makes_no_sample_if_not():
    for named in (True, False):
        model = Quadratic(dtype=torch.float32)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        optimizer, handle = attached(model, sgd(model), sigma=0.5, noise="rademacher", scaler=scaler if named else None)
        for _ in range(2):
            scaler.scale(model()["loss"] / 2).backward()
        scaler.step(optimizer)
        scaler.update()
        if named:
            torch.testing.assert_close(handle.trace_estimate.value, 12.5, rtol=1e-4, atol=0)
        else:
            assert handle.trace_estimate is None


@pytest.mark.parametrize("options", [{"sigma": 0.0}, {"trace_window": 0}, {"ranks": "independent"}])
def test_there_is_none_without_noise_when_turned_off_or_where_ranks_differ(options):
    model = Quadratic()
    optimizer, handle = attached(model, sgd(model, lr=0.0), **options)
    assert handle.trace_estimate is None
    train(model, optimizer, 2)
    assert handle.trace_estimate is None
    assert handle.group_trace_estimates is None


def test_there_is_none_for_parameters_of_16_bits():
    model = Quadratic(dtype=torch.bfloat16)
    optimizer, handle = attached(model)
    train(model, optimizer, 2)
    assert handle.trace_estimate is None


def test_there_is_none_for_noise_of_unequal_size():
    model = Quadratic()
    optimizer, handle = attached(model, noise_scale="filter")
    train(model, optimizer, 2)
    assert handle.trace_estimate is None


def test_the_window_forgets():
    model = Quadratic()
    optimizer, handle = attached(model, sgd(model, lr=0.0), noise="rademacher", trace_window=3)
    train(model, optimizer, 2)
    model.h = 5 * H
    train(model, optimizer, 3)
    torch.testing.assert_close(handle.trace_estimate.value, 62.5)
    assert handle.trace_estimate.num_matvecs == 3


class Following:
    """A schedule that looks at the run, and has a state."""

    def __init__(self):
        self.value, self.source = 0.1, None

    def bind(self, source):
        self.source = source

    def __call__(self, step):
        if self.source is not None and self.source.trace_estimate is not None:
            self.value = 0.01 * self.source.trace_estimate.num_matvecs * self.source.param_groups[0]["lr"]
        return self.value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def test_a_schedule_may_look_at_the_run_and_is_saved_with_the_samples():
    model, sigma = Quadratic(), Following()
    optimizer = sgd(model, lr=1e-3)
    handle = attach(model, optimizer, sigma=sigma, noise="rademacher")
    train(model, optimizer, 5)
    assert sigma.value == 0.01 * 4 * 1e-3
    state, other = handle.state_dict(), Following()
    fresh = Quadratic()
    resumed = attach(fresh, sgd(fresh, lr=1e-3), sigma=other)
    resumed.load_state_dict(state)
    assert other.value == sigma.value
    assert resumed.trace_estimate.value == handle.trace_estimate.value
