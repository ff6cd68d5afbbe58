"""Every method on every problem: the optimizer, the pure driver and the literal twin of the paper take one path."""

import pytest
import torch

from flatmin.problems import descent
from methods_table import METHODS, every_method, methods_that_turn_off, rows
from problems_table import every_problem

ETA, STEPS, SEED = 1e-3, 4, 7
PLAIN = METHODS[0]  # the base alone

is_stated_by_its_flow = rows(lambda method: method.wraps)  # BSAM has an update rule of its own beside its flow


def start(problem):
    return torch.randn(problem.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def trained(method, problem, *, lr=ETA, momentum=0.0, **changes):
    w = torch.nn.Parameter(start(problem))
    changes |= {"seed": SEED} if method.seeded else {}
    model = torch.nn.ParameterDict({"weight": w})  # given, so that it need not be looked for among all live objects
    optimizer = method.build(torch.optim.SGD([w], lr=lr, momentum=momentum), model=model, **changes)

    def closure():
        optimizer.zero_grad()
        value = problem.value(w)
        value.backward()
        return value

    for _ in range(STEPS):
        optimizer.step(closure)
    return w.detach()


def twin(method, problem, **settings):
    seed = {"seed": SEED}
    return method.reference(
        [start(problem)], lambda w: [problem.gradient(w[0])], eta=ETA, steps=STEPS, **seed, **settings
    )


@every_problem
@every_method
def test_the_optimizer_is_the_papers_pseudocode(problem, method):
    [expected] = twin(method, problem, mu=0.0)
    torch.testing.assert_close(trained(method, problem), expected, rtol=1e-10, atol=1e-12)


@every_problem
@is_stated_by_its_flow
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_pure_driver_takes_the_same_path(problem, method, momentum):
    options = {"lr": ETA, "num_steps": STEPS, "momentum": momentum, "seed": SEED}
    *_, last = descent(problem, method.bound_flow(), start(problem), **options)
    torch.testing.assert_close(last, trained(method, problem, momentum=momentum), rtol=1e-10, atol=1e-12)


@every_problem
@every_method
def test_learning_rate_zero_stays(problem, method):
    weight_decay = {"weight_decay": 0.0} if "weight_decay" in method.arguments else {}
    assert torch.equal(trained(method, problem, lr=0.0, **weight_decay), start(problem))


@every_problem
@methods_that_turn_off
def test_turned_off_it_is_gradient_descent(problem, method):
    expected = trained(PLAIN, problem)
    torch.testing.assert_close(trained(method, problem, **method.off), expected, rtol=1e-12, atol=1e-14)
