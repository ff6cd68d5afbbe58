"""A monitor waits for the device when it reads, and at no other time: what waits has an operator of its own."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import flatmin as fm
from problems import data, loss, mlp

WAITS = "aten._local_scalar_dense.default"  # float(tensor), tensor.item(), bool(tensor)


class Operators(TorchDispatchMode):
    """Counts what torch is asked to do."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.seen[str(function)] += 1
        return function(*arguments, **(options or {}))


def operators(do):
    with Operators() as counted:
        do()
    return counted.seen


@pytest.fixture(params=["probes", "attach"])
def course(request):
    """A monitor that reads every third step, and one step of its loop."""
    model, batch = mlp(), data()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    if request.param == "attach":
        source = fm.attach(model, base, 0.05)

        def step():
            for _ in range(2):
                (loss(model, batch) / 2).backward()
            base.step()
            base.zero_grad()
    else:
        source = fm.NSO(base, sigma=0.05, check_finite=False)

        def step():
            for probe in source.probes():
                with probe:
                    loss(model, batch).backward()
            source.step()
            source.zero_grad()

    return fm.Monitor(source, model, every=3), step


def test_between_readings_nothing_is_computed(course):
    monitor, step = course
    value = torch.ones(())
    for number in range(1, 6):
        step()
        seen = operators(lambda number=number: monitor.log(number, loss=value))
        assert bool(seen) == (number == 3)
        assert bool(seen[WAITS]) == (number == 3)


def test_the_step_before_a_reading_computes_more_and_waits_no_more(course):
    monitor, step = course
    seen = []
    for number in range(1, 7):
        seen.append(operators(step))
        monitor.log(number)
    plain, compared = seen[4], seen[5]
    assert compared.total() > plain.total()
    assert compared[WAITS] == plain[WAITS]
