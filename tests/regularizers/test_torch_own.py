"""Regularizers that are torch's own, combined with NSO: each acts as the loop written by hand says."""

import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax
from torch.optim.swa_utils import SWALR, AveragedModel, update_bn

import flatmin as fm
from problems import closure_of, data, mlp, same, seeded, snapshot, with_state
from reference.draws import noise

SIGMA, LR = 0.05, 0.1


def gradient_at(weights, criterion=cross_entropy):
    twin, (x, y) = mlp(), data()
    twin.load_state_dict(dict(zip((name for name, _ in twin.named_parameters()), weights)))
    return torch.autograd.grad(criterion(twin(x), y), list(twin.parameters()))


def two_point(W, step, criterion=cross_entropy):
    U = [SIGMA * u for u in noise(fm.Gaussian(), W, seed=0, step=step, draw=0)]
    plus, minus = (gradient_at([w + s * u for w, u in zip(W, U)], criterion) for s in (1, -1))
    return [(a + b) / 2 for a, b in zip(plus, minus)]


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def step_once(opt, model, shell, criterion=cross_entropy):
    x, y = data()

    def closure():
        opt.zero_grad()
        value = criterion(model(x), y)
        value.backward()
        return value

    if shell == "closure":
        opt.step(closure)
        return
    for probe in opt.probes():
        with probe:
            criterion(model(x), y).backward()
    opt.step()
    opt.zero_grad()


every_shell = pytest.mark.parametrize("shell", ["closure", "probes"])


@every_shell
def test_weight_decay_in_the_gradient_acts_once_at_the_weights(shell):
    """SGD: W <- W - lr (G + decay W), G the two-point gradient without decay."""
    model = mlp()
    W = weights(model)
    for step in range(4):
        W = [w - LR * (g + 0.3 * w) for w, g in zip(W, two_point(W, step))]
    opt = fm.NSO(torch.optim.SGD(model.parameters(), lr=LR, weight_decay=0.3), sigma=SIGMA)
    for _ in range(4):
        step_once(opt, model, shell)
    torch.testing.assert_close(weights(model), W, rtol=1e-12, atol=1e-13)


@every_shell
def test_decoupled_weight_decay_acts_once_at_the_weights(shell):
    """AdamW: W <- (1 - lr decay) W - lr m̂ / (√v̂ + eps), from the two-point gradient without decay."""
    model = mlp()
    W = weights(model)
    m, v = [w * 0 for w in W], [w * 0 for w in W]
    for step in range(4):
        G = two_point(W, step)
        m = [0.9 * a + 0.1 * g for a, g in zip(m, G)]
        v = [0.999 * a + 0.001 * g * g for a, g in zip(v, G)]
        ups = [(a / (1 - 0.9 ** (step + 1))) / ((b / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8) for a, b in zip(m, v)]
        W = [(1 - LR * 0.3) * w - LR * up for w, up in zip(W, ups)]
    opt = fm.NSO(torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.3), sigma=SIGMA)
    for _ in range(4):
        step_once(opt, model, shell)
    torch.testing.assert_close(weights(model), W, rtol=1e-10, atol=1e-12)


@every_shell
def test_label_smoothing_equals_the_formula_at_every_point(shell):
    """(1 - a) CE + a times the mean over all classes of -log p."""

    def by_hand(logits, labels):
        log_p = log_softmax(logits, 1)
        return (0.8 * -log_p[torch.arange(len(labels)), labels] + 0.2 * -log_p.mean(1)).mean()

    model = mlp()
    W = weights(model)
    for step in range(4):
        W = [w - LR * g for w, g in zip(W, two_point(W, step, by_hand))]
    opt = fm.NSO(torch.optim.SGD(model.parameters(), lr=LR), sigma=SIGMA)
    for _ in range(4):
        step_once(opt, model, shell, torch.nn.CrossEntropyLoss(label_smoothing=0.2))
    torch.testing.assert_close(weights(model), W, rtol=1e-12, atol=1e-13)


@every_shell
def test_weight_averaging_averages_the_clean_iterates(shell):
    model = mlp()
    W, iterates = weights(model), []
    for step in range(5):
        W = [w - LR * g for w, g in zip(W, two_point(W, step))]
        iterates.append(W)
    opt, average = fm.NSO(torch.optim.SGD(model.parameters(), lr=LR), sigma=SIGMA), AveragedModel(model)
    for _ in range(5):
        step_once(opt, model, shell)
        average.update_parameters(model)
    mean = [torch.stack(several).mean(0) for several in zip(*iterates)]
    torch.testing.assert_close(weights(average.module), mean, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(weights(model), W, rtol=1e-12, atol=1e-13)  # and training does not notice


def test_the_average_and_its_schedule_leave_training_bitwise_alone():
    def train(averaged):
        model = with_state()
        opt = fm.NSO(torch.optim.SGD(model.parameters(), lr=LR), sigma=SIGMA)
        average = AveragedModel(model) if averaged else None
        seeded(lambda: run(model, opt, average))
        return snapshot(model)

    def run(model, opt, average):
        for _ in range(4):
            opt.step(closure_of(opt, model, data(dtype=torch.float32)))
            if average is not None:
                average.update_parameters(model)

    assert same(train(averaged=False), train(averaged=True))


def test_the_schedule_of_averaging_attaches_to_the_wrapper():
    model = mlp()
    opt = fm.NSO(torch.optim.SGD(model.parameters(), lr=LR), sigma=SIGMA)
    schedule = SWALR(opt, swa_lr=0.01, anneal_epochs=2)
    for _ in range(3):
        opt.step(closure_of(opt, model, data()))
        schedule.step()
    assert opt.base.param_groups[0]["lr"] == pytest.approx(0.01)


def test_batch_statistics_of_the_average_are_those_of_its_own_forward_passes():
    model, x = with_state(torch.float64), data()[0]
    opt, average = fm.NSO(torch.optim.SGD(model.parameters(), lr=LR), sigma=SIGMA), AveragedModel(model)
    for _ in range(3):
        opt.step(closure_of(opt, model, data()))
        average.update_parameters(model)
    update_bn([x], average)
    inputs = average.module[0](x)  # what the batch norm of the averaged weights sees
    torch.testing.assert_close(average.module[1].running_mean, inputs.mean(0), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(average.module[1].running_var, inputs.var(0), rtol=1e-12, atol=1e-13)


def test_at_sigma_zero_weight_decay_is_bitwise_that_of_the_base():
    runs = []
    for wrap in (lambda base: base, lambda base: fm.NSO(base, sigma=0.0)):
        model = mlp()
        opt = wrap(torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.3))
        for _ in range(3):
            opt.step(closure_of(opt, model, data()))
        runs.append(snapshot(model))
    assert same(*runs)
