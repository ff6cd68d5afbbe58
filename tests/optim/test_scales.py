"""The scale of the loss, micro-batches that climb by themselves, and batches spread over points."""

import copy
import functools
from typing import NamedTuple

import pytest
import torch

import flatmin as fm
from methods_table import noise_methods, rows
from problems import data, loss, mlp, same, seeded, snapshot

SGD = torch.optim.SGD


def direction(opt, model, batch, step=0):
    """The method's direction by the pure driver."""

    def value(w):
        return torch.nn.functional.cross_entropy(torch.func.functional_call(model, w, batch[0]), batch[1])

    flow = functools.partial(opt._flow, **opt._arguments())
    return fm.gradient(flow, value, {n: p.detach() for n, p in model.named_parameters()}, step=step)


@pytest.mark.loop("inside each micro-batch")
@rows(lambda m: not m.linear)
def test_a_loop_inside_each_micro_batch_is_m_sharpness(method):
    """Each micro-batch climbs its own gradient; told of its weight, at the size that the gradient alone has."""
    model, (x, y) = mlp(), data()
    micro = list(zip(x.chunk(3), y.chunk(3), strict=True))
    opt = method.build(SGD(model.parameters(), lr=0.1))
    alone = [direction(opt, model, batch) for batch in micro]
    for batch in micro:
        for probe in opt.probes(loss_scale=1 / 3):
            with probe:
                (loss(model, batch) / 3).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, sum(g[name] for g in alone) / 3, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("scale", [-1.0, 0.0, float("nan")])
def test_a_loss_scale_that_cannot_be(scale):
    opt = fm.SAM(SGD(mlp().parameters(), lr=0.1), rho=0.1)
    with pytest.raises(fm.ArgumentError, match=r"loss_scale is .*1 / 4"):
        opt.probes(loss_scale=scale)


@rows(lambda m: not m.linear and not m.name.startswith("SAM"))
def test_an_overflow_in_the_ascent_alone_is_not_lost(method):
    """An infinite ascent can end where gradients vanish: the step must be skipped all the same."""
    model, batch = mlp(torch.float32), data(dtype=torch.float32)
    opt = method.build(SGD(model.parameters(), lr=0.1))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before = snapshot(model)
    for number, probe in enumerate(opt.probes(scaler=scaler)):
        with probe:
            scaler.scale(loss(model, batch)).backward()
            if number == 0:
                model[0].bias.grad[0] = float("inf")
    scaler.step(opt)
    assert same(snapshot(model), before)


def test_bayesian_sam_is_skipped_and_goes_on_as_if_nothing_had_happened():
    """What a skipped step has left behind must not enter the next one's precision."""
    models = [mlp(torch.float32), mlp(torch.float32)]
    for model, overflows in zip(models, (True, False), strict=True):
        opt, batch = fm.BSAM(model.parameters(), lr=0.1, rho=0.05, num_examples=50), data(dtype=torch.float32)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for bad in (True, False) if overflows else (False,):
            for probe in opt.probes(scaler=scaler):
                with probe:
                    scaler.scale(loss(model, batch) * (float("inf") if bad else 1)).backward()
            scaler.step(opt)
            scaler.update(2.0**10)
            opt.zero_grad()
    assert same(snapshot(models[0]), snapshot(models[1]))


def test_bayesian_sam_forgets_a_skipped_step_however_gradients_are_cleared():
    model, batch = mlp(torch.float32), data(dtype=torch.float32)
    opt, scaler = fm.BSAM(model.parameters(), lr=0.1, rho=0.01, num_examples=50), torch.amp.GradScaler("cpu")
    for number in range(3):
        for probe in opt.probes(scaler=scaler):
            with probe:
                scaler.scale(loss(model, batch) * (float("inf") if number == 0 else 1)).backward()
        scaler.step(opt)
        scaler.update(2.0**10)
        opt.zero_grad(set_to_none=False)
    assert all(torch.isfinite(opt.state[p]["precision"]).all() for p in model.parameters())


def test_bayesian_sam_learns_its_precision_in_16_bits_and_resumes_bitwise():
    model, wide = mlp(torch.bfloat16), mlp(torch.bfloat16).float()
    found = []
    for net in (model, wide):
        opt = fm.BSAM(net.parameters(), lr=0.01, rho=0.01, num_examples=50)
        for _ in range(50):
            for probe in opt.probes():
                with probe:
                    loss(net, data(dtype=net[0].weight.dtype)).backward()
            opt.step()
            opt.zero_grad()
        found.append([opt.state[p]["precision"] for p in net.parameters()])
        if net is model:
            again = fm.BSAM(copy.deepcopy(net).parameters(), lr=0.01, rho=0.01, num_examples=50)
            again.load_state_dict(copy.deepcopy(opt.state_dict()))
            kept = [again.state[p]["precision"] for p in again.param_groups[0]["params"]]
            assert same(kept, found[0])
    for low, high in zip(*found, strict=True):
        assert low.dtype == torch.float32
        torch.testing.assert_close(low, high, rtol=1e-2, atol=0)


def test_bayesian_sam_says_so_if_a_checkpoint_is_another_methods():
    model = mlp()
    opt = fm.BSAM(model.parameters(), lr=0.1, rho=0.01, num_examples=50)
    other = fm.SAM(SGD(model.parameters(), lr=0.1), rho=0.1)
    with pytest.raises(fm.ArgumentError, match=r"that of another optimizer.*'initial_precision'"):
        opt.load_state_dict(other.state_dict())


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


class TestSpread:
    @noise_methods
    def test_each_point_takes_its_part_at_the_price_of_one_gradient(self, method):
        model, batch = mlp(), data()
        opt, found, start = method.build(SGD(model.parameters(), lr=0.1)), [], copy.deepcopy(model)
        for probe, part in fm.spread(opt.probes(), batch):
            with probe:
                there = copy.deepcopy(model)
                found.append((probe.weight, part, torch.autograd.grad(loss(there, part), list(there.parameters()))))
                loss(model, part).backward()
        assert len(found) == method.evaluations
        assert torch.equal(torch.cat([part[0] for _, part, _ in found]), batch[0])
        for i, p in enumerate(model.parameters()):
            torch.testing.assert_close(p.grad, sum(w * g[i] for w, _, g in found), rtol=1e-11, atol=1e-13)
        assert same(snapshot(start), snapshot(model))

    def test_the_linear_term_of_the_noise_cancels_where_the_halves_agree(self):
        """On a quadratic whose halves are the same, the direction is the gradient, whatever the noise."""
        w = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        opt = fm.NSO(SGD([w], lr=0.1), sigma=0.5)
        h = torch.tensor([3.0, 5.0], dtype=torch.float64).repeat(4, 1)
        for probe, part in fm.spread(opt.probes(), h):
            with probe:
                (part * w.square() / 2).sum(1).mean().backward()
        torch.testing.assert_close(w.grad, torch.tensor([3.0, -10.0], dtype=torch.float64), rtol=1e-12, atol=0)

    def test_a_step_without_noise_takes_the_whole_batch(self):
        model, other, batch = mlp(), mlp(), data()
        opt = fm.NSO(SGD(model.parameters(), lr=0.1), sigma=0.0)
        for probe, part in fm.spread(opt.probes(), batch):
            with probe:
                loss(model, part).backward()
        loss(other, batch).backward()
        assert same([p.grad for p in model.parameters()], [p.grad for p in other.parameters()])

    def test_forms_of_batches(self):
        x, y = torch.arange(10).reshape(5, 2), torch.arange(5)
        opt = fm.NSO(SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1), sigma=0.1)

        def parts(batch):
            found = []
            for probe, part in fm.spread(opt.probes(), batch):
                with probe:
                    opt.param_groups[0]["params"][0].sum().backward()
                found.append(part)
            return found

        first, second = parts({"x": x, "more": [y, (y, "name")], "n": 3})
        assert torch.equal(torch.cat([first["x"], second["x"]]), x)
        assert len(first["x"]) == 3
        assert torch.equal(second["more"][1][0], y[3:])
        assert second["more"][1][1] == "name"
        assert first["n"] == second["n"] == 3
        assert [(type(half), len(half.y)) for half in parts(Pair(x, y))] == [(Pair, 3), (Pair, 2)]

    @pytest.mark.parametrize(
        ("batch", "found"),
        [("text", "holds no tensor.*by hand"), (torch.ones(1, 3), "has 1 examples for 2 points.*larger batches"),
         ((torch.ones(4), torch.ones(3)), "holds tensors of 3, 4 examples"), (torch.tensor(1.0), "0 examples for 2")],
    )  # fmt: skip
    def test_what_has_no_parts(self, batch, found):
        model = mlp()
        opt = fm.NSO(SGD(model.parameters(), lr=0.1), sigma=0.1)
        with pytest.raises(fm.DataError, match=found):
            next(fm.spread(opt.probes(), batch))

    @rows(lambda m: not m.linear)
    def test_methods_whose_points_need_the_same_examples(self, method):
        model = mlp()
        opt = method.build(SGD(model.parameters(), lr=0.1))
        with pytest.raises(fm.ProbeError, match=r"need the same examples.*NSO or WPSGD"):
            next(fm.spread(opt.probes(), data()))

    def test_a_bf16_pair_is_still_a_reflection(self):
        model = seeded(lambda: torch.nn.Linear(6, 3)).bfloat16()
        before = snapshot(model)
        opt, points = fm.NSO(SGD(model.parameters(), lr=0.0), sigma=0.05), []
        for probe, part in fm.spread(opt.probes(), data(dtype=torch.bfloat16)):
            with probe:
                points.append(model.weight.detach().double())
                loss(model, part).backward()
        opt.step()
        mirrored = (2 * before["weight"].double() - points[0]).bfloat16()
        assert torch.equal(mirrored.double(), points[1])
        assert same(snapshot(model), before)

    def test_left_early_it_puts_the_weights_back(self):
        model = mlp()
        before = snapshot(model)
        opt = fm.NSO(SGD(model.parameters(), lr=0.1), sigma=0.1)
        for probe, part in fm.spread(opt.probes(), data()):
            with probe:
                loss(model, part).backward()
            break
        assert same(snapshot(model), before)
