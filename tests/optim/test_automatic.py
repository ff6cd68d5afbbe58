"""The automatic sigma: the formula at every update, one run resumed, and what it refuses."""

import copy
import io
import math
import pickle
import weakref

import pytest
import torch
from torch import nn

from flatmin.curvature.results import TraceEstimate
from flatmin.errors import ArgumentError, ArgumentTypeError
from flatmin.noise import optimal_sigma
from flatmin.optim import NSO, WPSGD
from flatmin.optim.automatic import AutoSigma
from launch import require_success

N, C, BETA = 50, 2.0, 0.3


class Diagonal(nn.Module):
    """f(w) = Σ h_i (w_i - 1)² / 2 over two parameters: with signs as noise every trace sample is exact."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.second = nn.Parameter(torch.full((2,), 5.0, dtype=torch.float64))
        self.h = torch.tensor([1.0, 2.0, 3.0, 0.5, 0.25], dtype=torch.float64)

    def forward(self):
        return (self.h * (torch.cat([self.first, self.second]) - 1) ** 2).sum() / 2


def automatic(**changes):
    given = {"loss_bound": C, "beta": BETA, "initial": 0.1, "minimum": 1e-3, "maximum": 10.0, "every": 5}
    return AutoSigma(N, **(given | changes))


def optimizer(model, sigma, method=NSO, **options):
    return method(
        torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.5), sigma=sigma, noise="rademacher", **options
    )


def train(opt, model, steps):
    def closure():
        opt.zero_grad()
        loss = model()
        loss.backward()
        return loss

    for _ in range(steps):
        opt.step(closure)


def flat(model):
    return torch.cat([p.detach().clone() for p in model.parameters()])


class Known:
    """A source whose trace is known."""

    def __init__(self, parameters, trace):
        self.param_groups = [{"params": list(parameters)}]
        self.trace = trace
        self.reads = 0

    @property
    def trace_estimate(self):
        self.reads += 1
        return None if self.trace is None else TraceEstimate(value=self.trace, stderr=0.0, num_matvecs=1)


def away(trace=4.0, by=2.0, **changes):
    """An automatic sigma and its source, ``by`` away from the start."""
    w = nn.Parameter(torch.zeros(4))
    source, sigma = Known([w], trace), automatic(**changes)
    sigma.bind(source)
    w.data.add_(by / 2)
    return sigma, source, w


@pytest.mark.parametrize("method", [NSO, WPSGD])
def test_is_the_formula_at_every_update(method):
    model, sigma = Diagonal(), automatic()
    start, opt, expected = flat(model), optimizer(model, sigma, method, num_perturbations=1), 0.1
    for step in range(23):
        if step and step % 5 == 0:
            trace = float(model.h.sum()) if method is NSO else opt.trace_estimate.value
            if trace > 0:  # of single points it may come out negative
                expected = optimal_sigma(float((flat(model) - start).norm()), trace, N, loss_bound=C, beta=BETA)
        train(opt, model, 1)
        assert sigma.value == pytest.approx(expected, rel=1e-12)
    assert sigma.value != 0.1
    assert "every 5 steps within 0.001 to 10" in repr(sigma)


def test_the_noise_has_this_size():
    """Signs displace every weight by sigma itself."""
    model, sigma = Diagonal(), automatic()
    opt = optimizer(model, sigma)
    for _ in range(7):
        rest, moved = flat(model), []
        for probe in opt.probes():
            with probe:
                moved.append(flat(model) - rest)
                model().backward()
        torch.testing.assert_close(moved[0].abs(), torch.full((5,), sigma.value, dtype=torch.float64))
        opt.step()
        opt.zero_grad()
    assert sigma.value != 0.1


@pytest.mark.parametrize("steps", [3, 5, 12, 15])
def test_a_resumed_run_is_the_uninterrupted_one(steps):
    model = Diagonal()
    opt = optimizer(model, automatic())
    train(opt, model, 20)

    half = Diagonal()
    first = optimizer(half, automatic())
    train(first, half, steps)
    buffer = io.BytesIO()
    torch.save({"model": half.state_dict(), "opt": first.state_dict()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)

    other = Diagonal()
    other.load_state_dict(saved["model"])
    sigma = automatic()
    second = optimizer(other, sigma)
    second.load_state_dict(saved["opt"])
    train(second, other, 20 - steps)
    assert torch.equal(flat(other), flat(model))
    assert sigma.value == opt._groups.schedules()[0].value


def test_going_back_to_a_checkpoint_in_the_same_objects():
    model, sigma = Diagonal(), automatic()
    opt = optimizer(model, sigma)
    train(opt, model, 10)
    saved = copy.deepcopy((model.state_dict(), opt.state_dict()))
    train(opt, model, 8)
    end = (flat(model), sigma.value)
    model.load_state_dict(saved[0])
    opt.load_state_dict(saved[1])
    train(opt, model, 8)
    assert torch.equal(flat(model), end[0])
    assert sigma.value == end[1]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_go_on_like_the_original(copied):
    model, sigma = Diagonal(), automatic()
    opt = optimizer(model, sigma)
    train(opt, model, 7)
    twin, other = copied((model, opt))
    train(opt, model, 8)
    train(other, twin, 8)
    assert torch.equal(flat(model), flat(twin))
    copy_of_sigma = other._groups.schedules()[0]
    assert copy_of_sigma is not sigma
    assert copy_of_sigma.value == sigma.value != 0.1


def test_a_shallow_copy_of_the_optimizer_shares_it():
    model = Diagonal()
    opt = optimizer(model, automatic())
    train(copy.copy(opt), model, 6)


def test_its_state_loads_safely_and_a_copy_without_optimizer_keeps_it():
    sigma, source, _w = away()
    sigma(5)
    buffer = io.BytesIO()
    torch.save(sigma.state_dict(), buffer)
    buffer.seek(0)
    other = automatic()
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert repr(other) == repr(sigma) == repr(pickle.loads(pickle.dumps(sigma)))
    other.bind(source)
    assert other(10) == sigma(10)


def test_updates_come_at_multiples_and_only_then_is_the_trace_read():
    sigma, source, w = away()
    found = optimal_sigma(2.0, 4.0, N, loss_bound=C, beta=BETA)
    assert [sigma(step) for step in range(5)] == [0.1] * 5
    assert source.reads == 0
    assert [sigma(step) for step in range(5, 10)] == [found] * 5
    assert source.reads == 1
    w.data.mul_(2)
    assert sigma(10) == pytest.approx(math.sqrt(2) * found)


def test_calls_within_a_step_agree_though_the_weights_are_displaced_meanwhile():
    sigma, _source, w = away()
    first = sigma(5)
    w.data.add_(1.0)
    assert sigma(5) == first
    assert sigma(0) == first  # what a check of the argument asks for
    assert sigma(5) == first


@pytest.mark.parametrize("trace", [None, 0.0, -3.0, math.nan, math.inf])
def test_without_a_usable_trace_it_stays(trace):
    sigma, source, _ = away(trace=trace)
    assert sigma(5) == 0.1
    source.trace = 4.0
    assert sigma(10) == optimal_sigma(2.0, 4.0, N, loss_bound=C, beta=BETA)


def test_at_its_start_it_stays():
    sigma, *_kept = away(by=0.0)
    assert sigma(5) == 0.1


@pytest.mark.parametrize(("limits", "expected"), [({"maximum": 0.2}, 0.2), ({"initial": 5.0, "minimum": 4.0}, 4.0)])
def test_limits(limits, expected):
    sigma, *_kept = away(**limits)
    assert sigma(5) == expected


def test_by_default_it_does_not_exceed_where_it_began():
    sigma = AutoSigma(N, loss_bound=1.0, initial=0.02)
    assert repr(sigma) == "AutoSigma(0.02, at the start, every 100 steps within 0.002 to 0.02)"


def test_a_given_start():
    w = nn.Parameter(torch.ones(4))
    given = [torch.zeros(4)]
    sigma, source = automatic(start=given), Known([w], 4.0)
    given[0].fill_(100.0)  # it has been copied
    sigma.bind(source)
    assert sigma(5) == optimal_sigma(2.0, 4.0, N, loss_bound=C, beta=BETA)


def test_frozen_parameters_do_not_count_until_they_thaw():
    moves, rests = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4), requires_grad=False)
    sigma, source = automatic(), Known([rests, moves], 4.0)
    sigma.bind(source)
    assert list(sigma.state_dict()["start"]) == [1]
    moves.data.add_(1.0)
    rests.data.add_(7.0)
    assert sigma(5) == optimal_sigma(2.0, 4.0, N, loss_bound=C, beta=BETA)
    rests.requires_grad_()
    sigma(10)
    rests.data.add_(1.0)
    assert sigma(15) == pytest.approx(optimal_sigma(math.sqrt(8), 4.0, N, loss_bound=C, beta=BETA))


def test_a_group_that_is_added():
    model, extra, sigma = Diagonal(), nn.Parameter(torch.ones(1, dtype=torch.float64)), automatic()
    opt = optimizer(model, sigma)
    train(opt, model, 3)
    opt.add_param_group({"params": [extra]})
    assert sorted(sigma.state_dict()["start"]) == [0, 1, 2]


def test_a_group_of_its_own():
    model, sigma = Diagonal(), automatic()
    groups = [{"params": [model.first], "sigma": sigma}, {"params": [model.second]}]
    opt = NSO(torch.optim.SGD(groups, lr=0.03), sigma=0.05, noise="rademacher")
    train(opt, model, 6)
    assert sigma.value != 0.1


def test_what_it_looks_at_is_not_kept_alive():
    sigma, source, _w = away()
    gone = weakref.ref(source)
    del source
    assert gone() is None
    assert sigma(5) == 0.1


def test_complex_and_scalar_parameters():
    z, s = nn.Parameter(torch.zeros(2, dtype=torch.complex64)), nn.Parameter(torch.zeros(()))
    sigma, source = automatic(), Known([z, s], 4.0)
    sigma.bind(source)
    z.data.add_(1 + 1j)
    s.data.add_(2.0)
    assert sigma(5) == pytest.approx(optimal_sigma(math.sqrt(8), 4.0, N, loss_bound=C, beta=BETA))


def test_one_for_each_optimizer():
    sigma = automatic()
    model = Diagonal()
    optimizer(model, sigma)
    with pytest.raises(ArgumentError, match=r"belongs to another optimizer.*Make a new one"):
        optimizer(Diagonal(), sigma)
    optimizer(model, sigma)  # the same parameters have the same start


def test_inside_another_schedule_it_says_that_it_knows_nothing():
    model, hidden = Diagonal(), automatic()
    opt = NSO(torch.optim.SGD(model.parameters(), lr=0.03), sigma=lambda step: hidden(step) / 2)
    train(opt, model, 2)
    with pytest.raises(ArgumentError, match=r"steps 1 and 2, but no optimizer has bound it.*sigma= itself"):
        train(opt, model, 1)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"initial": 0.0}, ArgumentError, "initial is 0, but it must be above 0.*no trace to learn from"),
        ({"minimum": -1.0}, ArgumentError, "minimum is -1.0.*units of the weights"),
        ({"maximum": "a"}, ArgumentTypeError, "maximum is 'a'"),
        ({"minimum": 0.2}, ArgumentError, "initial is 0.1, but it must lie between minimum, 0.2, and maximum, 10"),
        ({"every": 0}, ArgumentError, "every is 0.*one update to the next"),
        ({"beta": 2.0}, ArgumentError, "beta is 2.0"),
        ({"loss_bound": -1}, ArgumentError, "loss_bound is -1"),
    ],
)
def test_messages(changes, error, message):
    with pytest.raises(error, match=message):
        automatic(**changes)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ([torch.zeros(3)], "start has 1 tensors, but the optimizer has 2 parameters.*list"),
        ([torch.zeros(2), torch.zeros(3)], r"start has shape \(2,\) at position 0, where .* is \(3,\).*another order"),
    ],
)
def test_a_start_that_does_not_fit(start, message):
    with pytest.raises(ArgumentError, match=message):
        optimizer(Diagonal(), automatic(start=start))


def test_a_state_that_does_not_fit():
    sigma, *_kept = away()
    with pytest.raises(ArgumentError, match=r"at position 1, where the optimizer's parameter is missing"):
        sigma.load_state_dict({"value": 0.1, "updated": None, "start": {1: torch.zeros(2)}})


def test_shards_on_two_ranks_have_the_distance_of_the_whole(tmp_path):
    require_success("automatic_ranks.py", tmp_path)


@pytest.mark.parametrize("options", [{"noise_scale": "filter"}, {"ranks": "independent"}, {"trace_window": 0}])
def test_where_there_is_no_live_trace_it_is_refused(options):
    model = Diagonal()
    with pytest.raises(ArgumentError, match=r"follows the live Hessian trace.*stay where it starts"):
        NSO(torch.optim.SGD(model.parameters(), lr=0.1), sigma=AutoSigma(N, loss_bound=C, initial=0.1), **options)
