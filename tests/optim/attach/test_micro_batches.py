"""Which noise each micro-batch gets, against the formula written out, against NSO, and over save and resume."""

import copy
import io
import math

import pytest
import torch

import flatmin as fm
from attach_cases import COUNT, SEED, STEP, attached, close, displacement, gradients, gradients_at, sgd, weights
from flatmin.optim.attach import attach
from problems import data, loss, mlp, same, snapshot


def micro_batches(parts, n=24):
    x, y = data(n)
    return list(zip(x.chunk(parts), y.chunk(parts), strict=True))


def accumulate(model, batches):
    for batch in batches:
        (loss(model, batch) / len(batches)).backward()


def train(model, optimizer, batches, *, per_step, steps):
    """``steps`` steps of ``per_step`` micro-batches each, going round ``batches``."""
    for step in range(steps):
        accumulate(model, [batches[(step * per_step + i) % len(batches)] for i in range(per_step)])
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.loop("accumulation", method="attach")
@pytest.mark.parametrize("noise", ["gaussian", "rademacher"])
def test_two_micro_batches_are_the_two_points_of_a_pair(noise):
    """[g_B1(w + u) + g_B2(w - u)] / 2, in float64 to 1e-12, for three steps of fresh noise."""
    model = mlp()
    optimizer, _ = attached(model, noise=noise, seed=3)
    law = fm.noise.resolve_law(noise)
    for step in range(3):
        batches = micro_batches(2)
        expected = [0.0] * 4
        for i, batch in enumerate(batches):
            u = displacement(model, 2 * step + i, seed=3, law=law)
            expected = [e + g / 2 for e, g in zip(expected, gradients_at(model, u, batch))]
        accumulate(model, batches)
        close(gradients(model), expected)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("per_step", [1, 2, 3, 4])
def test_pairs_go_on_over_steps_whatever_the_number_of_micro_batches(per_step):
    model, batches, number = mlp(), micro_batches(4), 0
    optimizer, _ = attached(model)
    for _ in range(3):
        expected = [0.0] * 4
        for i in range(per_step):
            u = displacement(model, number, sigma=0.05)
            expected = [e + g / per_step for e, g in zip(expected, gradients_at(model, u, batches[i]))]
            number += 1
        accumulate(model, batches[:per_step])
        close(gradients(model), expected)
        optimizer.step()
        optimizer.zero_grad()
    assert all(group[COUNT] == number and group[STEP] == 3 for group in optimizer.param_groups)


@pytest.mark.loop("accumulation", method="attach")
def test_the_same_batch_twice_is_nso():
    """Bit for bit: the addresses of the noise are those of NSO, and halving is exact."""
    one, other, batch = mlp(torch.float32), mlp(torch.float32), data(dtype=torch.float32)
    optimizer, _ = attached(one, sgd(one, momentum=0.9), seed=5)
    nso = fm.NSO(sgd(other, momentum=0.9), sigma=0.05, seed=5)
    for _ in range(4):
        for _ in range(2):
            (loss(one, batch) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
        for probe in nso.probes():
            with probe:
                loss(other, batch).backward()
        nso.step()
        nso.zero_grad()
    assert same(snapshot(one), snapshot(other))
    assert not same(snapshot(one), snapshot(mlp(torch.float32)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_two_points_are_symmetric_to_the_last_rounding(dtype):
    model = torch.nn.Linear(37, 11, bias=False).to(dtype)
    w = model.weight.detach().clone()
    attached(model, sigma=0.01)
    points = []
    model.register_forward_hook(lambda module, _, output: points.append(module.weight.detach().clone()))
    for _ in range(2):
        model(torch.ones(2, 37, dtype=dtype)).sum().backward()
    plus, minus = points
    assert not torch.equal(plus, w)
    assert torch.equal(minus, (2 * w.double() - plus.double()).to(dtype))
    assert torch.equal(model.weight.detach(), w)


@pytest.mark.loop("off", method="attach")
def test_no_noise_is_plain_training_bitwise():
    """In a schedule that starts at nothing too, whose first step is not a micro-batch."""
    ends = []
    for sigma in (None, 0.0, lambda step: 0.0):
        model = mlp(torch.float32)
        optimizer = sgd(model, momentum=0.9)
        if sigma is not None:
            attach(model, optimizer, sigma=sigma)
        train(model, optimizer, [(x.float(), y) for x, y in micro_batches(2)], per_step=2, steps=3)
        ends.append(snapshot(model))
    assert same(ends[0], ends[1])
    assert same(ends[0], ends[2])
    assert COUNT not in optimizer.param_groups[0]


def test_a_schedule_counts_optimizer_steps():
    model, seen = mlp(), []
    optimizer, _ = attached(model, sigma=lambda step: seen.append(step) or 0.01 * (step + 1))
    seen.clear()
    before = weights(model)
    for step in range(3):
        optimizer.param_groups[0]["lr"] = 0.0
        for i in range(2):
            output = model(data()[0])
            moved = [p.detach() - w for p, w in zip(model.parameters(), before)]
            close(moved, displacement(model, 2 * step + i, sigma=0.01 * (step + 1)), rtol=1e-9, atol=1e-15)
            output.sum().backward()
        optimizer.step()
    assert set(seen) == {0, 1, 2}


@pytest.mark.loop("groups", method="attach")
def test_each_group_has_its_own_sigma_and_patterns_their_own():
    model = mlp()
    groups = [{"params": model[0].parameters(), "sigma": 0.0}, {"params": model[2].parameters()}]
    _, handle = attached(model, torch.optim.SGD(groups, lr=0.1), sigma={"*.bias": 0.0, "*": 0.1})
    before = weights(model)
    output = model(data()[0])
    moved = [bool((p != w).any()) for p, w in zip(model.parameters(), before)]
    assert moved == [False, False, True, False]
    output.sum().backward()
    assert same(weights(model), before)
    handle.remove()
    assert [group.get("sigma") for group in groups] == [0.0, None]


def test_noise_may_be_relative_to_the_norm_of_a_parameter():
    model = mlp()
    attached(model, sigma=0.1, noise_scale="parameter")
    before = weights(model)
    norms = [w.norm() for w in before]
    model(data()[0])
    expected = [u * norm for u, norm in zip(displacement(model, 0, sigma=0.1), norms)]
    assert same(weights(model), before)  # the output was thrown away
    output = model(data()[0])
    close([p.detach() - w for p, w in zip(model.parameters(), before)], expected, rtol=1e-9, atol=1e-12)
    del output


@pytest.mark.loop("torch.save", method="attach")
@pytest.mark.parametrize("per_step", [1, 2, 3])
@pytest.mark.parametrize("base", ["SGD", "AdamW"])
def test_resumed_equals_uninterrupted_bitwise(per_step, base):
    def build(model):
        optimizer = {
            "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
            "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
        }[base](model.parameters())
        attach(model, optimizer, sigma=fm.schedules.linear(0.01, 0.1, 6), seed=4)
        return optimizer

    whole, batches = mlp(), micro_batches(per_step)
    optimizer = build(whole)
    train(whole, optimizer, batches, per_step=per_step, steps=3)
    file = io.BytesIO()
    torch.save({"model": whole.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = mlp()
    other = build(resumed)
    resumed.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    assert other.param_groups[0][COUNT] == 3 * per_step
    for model, o in ((whole, optimizer), (resumed, other)):
        train(model, o, batches, per_step=per_step, steps=4)
    assert same(snapshot(whole), snapshot(resumed))
    assert optimizer.param_groups[0][COUNT] == other.param_groups[0][COUNT] == 7 * per_step


def test_a_radius_that_is_code_stays_out_of_the_checkpoint_and_in_the_optimizer():
    model = mlp()
    groups = [{"params": model[0].parameters(), "sigma": lambda step: 0.2}, {"params": model[2].parameters()}]
    optimizer, handle = attached(model, torch.optim.SGD(groups, lr=0.1), sigma=0.3)
    state = optimizer.state_dict()
    assert [group.get("sigma") for group in state["param_groups"]] == [None, 0.3]
    optimizer.load_state_dict(copy.deepcopy(state))
    assert "sigma=PerParameter(values=(0.2, 0.2, 0.3, 0.3))" in repr(handle)
    number = sgd(mlp())
    number.param_groups[0]["sigma"] = 0.7
    model = mlp()
    scheduled, handle = attached(model, sigma=lambda step: 0.5)
    scheduled.load_state_dict(number.state_dict())
    assert "sigma=0.5" in repr(handle)
    plain, handle = attached(mlp_model := mlp(), sigma=0.5)
    plain.load_state_dict(number.state_dict())
    assert "sigma=0.7" in repr(handle)
    assert mlp_model is handle.model


@pytest.mark.loop("added", method="attach")
def test_a_plain_checkpoint_and_a_late_group_are_completed():
    model = mlp()
    optimizer, _ = attached(model, torch.optim.SGD(model[0].parameters(), lr=0.1))
    train(model, optimizer, micro_batches(2), per_step=2, steps=1)
    optimizer.add_param_group({"params": model[2].parameters()})
    train(model, optimizer, micro_batches(2), per_step=2, steps=1)
    assert [(g[COUNT], g[STEP], g[SEED], g["sigma"]) for g in optimizer.param_groups] == [(4, 2, 0, 0.05)] * 2
    optimizer.load_state_dict(torch.optim.SGD([{"params": g["params"]} for g in optimizer.param_groups]).state_dict())
    train(model, optimizer, micro_batches(2), per_step=2, steps=1)
    assert [(g[COUNT], g[STEP], g[SEED], g["sigma"]) for g in optimizer.param_groups] == [(2, 1, 0, 0.05)] * 2


def test_attached_anew_it_takes_the_new_sigma_and_seed_and_fresh_noise():
    model = mlp()
    optimizer, handle = attached(model, sigma=0.05, seed=1)
    train(model, optimizer, micro_batches(2), per_step=2, steps=1)
    handle.remove()
    assert optimizer.param_groups[0].keys() & {"sigma", "noise_scale", SEED} == set()
    attach(model, optimizer, sigma=0.2, seed=2)
    before = weights(model)
    output = model(data()[0])
    moved = [p.detach() - w for p, w in zip(model.parameters(), before)]
    close(moved, displacement(model, 2, sigma=0.2, seed=2), rtol=1e-9, atol=1e-15)
    del output


def test_independent_in_one_process_is_nso_of_its_rank():
    model, other, batch = mlp(), mlp(), data()
    attached(model, ranks="independent")
    nso = fm.NSO(sgd(other), sigma=0.05, ranks="independent")
    for _ in range(2):
        (loss(model, batch) / 2).backward()
    for probe in nso.probes():
        with probe:
            loss(other, batch).backward()
    close(gradients(model), gradients(other))


def test_a_pair_on_two_batches_is_unbiased_and_beats_single_points():
    r"""The finding that attach rests on, on f_b(w) = w·Hw / 2 - b·w, whose smoothed gradient is Hw - E b.

    With b of covariance s² I and Gaussian u: a pair of batches gives Hw - mean b + 0, so its error is s² d / 2 alone;
    single points on two batches add sigma² |H|² / 2; the two-point estimate on one batch has s² d.
    """
    generator = torch.Generator().manual_seed(0)
    h = torch.diag(torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64))
    model = torch.nn.Linear(3, 1, bias=False).double()
    optimizer, _ = attached(model, sgd(model, lr=0.0), sigma=0.5, trace_window=0)
    target, n, s = h @ model.weight.detach()[0], 3000, 1.0
    errors = []
    for _ in range(n):
        for _ in range(2):
            b = s * torch.randn(3, generator=generator, dtype=torch.float64)
            w = model(torch.eye(3, dtype=torch.float64))[:, 0]
            ((w @ h @ w / 2 - b @ w) / 2).backward()
        errors.append(model.weight.grad[0] - target)
        optimizer.step()
        optimizer.zero_grad()
    errors = torch.stack(errors)
    stderr = errors.std(0) / math.sqrt(n)
    assert (errors.mean(0).abs() < 4 * stderr).all()
    squares = errors.square().sum(1)
    assert abs(float(squares.mean()) - 3 * s**2 / 2) < 4 * float(squares.std()) / math.sqrt(n)
