"""L2-SP: its value and gradient by hand, under two-point noise, and what it makes of unusual parameters."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import flatmin as fm
from flatmin import ArgumentError, ArgumentTypeError
from flatmin.regularizers import DistancePenalty
from problems import data, loss, mlp, same, seeded, snapshot
from reference import nso_algorithm1


def elsewhere(seed=3):
    """Another network of the same shapes."""
    return seeded(lambda: nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)), seed).double()


def body(model):
    """The weights of a pretrained network without its head."""
    return {name: w for name, w in snapshot(model).items() if name.startswith("0.")}


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_value_and_gradient_by_hand():
    model, pretrained = mlp(), elsewhere()
    penalty = DistancePenalty(model, alpha=0.3, beta=0.02, start=body(pretrained))
    value = penalty()
    value.backward()
    w = {name: p.detach().numpy() for name, p in model.named_parameters()}
    w0 = {name: p.detach().numpy() for name, p in pretrained.named_parameters()}
    known, new = ("0.weight", "0.bias"), ("2.weight", "2.bias")
    expected = 0.15 * sum(np.sum((w[n] - w0[n]) ** 2) for n in known) + 0.01 * sum(np.sum(w[n] ** 2) for n in new)
    assert value.shape == ()
    assert value.dtype == torch.float64
    np.testing.assert_allclose(value.detach().numpy(), expected, rtol=1e-13)
    for name, g in gradients(model).items():
        by_hand = 0.3 * (w[name] - w0[name]) if name in known else 0.02 * w[name]
        np.testing.assert_allclose(g.numpy(), by_hand, rtol=1e-14, atol=0)


def test_it_vanishes_at_the_start_with_its_gradient():
    model = mlp()
    value = DistancePenalty(model, alpha=0.3, beta=0.1)()
    value.backward()
    assert value == 0
    assert all(not g.any() for g in gradients(model).values())


def test_its_curvature_is_alpha_times_the_identity():
    layer = nn.Linear(2, 1, bias=False).double()
    penalty = DistancePenalty(layer, alpha=0.3)
    (g,) = torch.autograd.grad(penalty(), layer.weight, create_graph=True)
    rows = [torch.autograd.grad(g[0, i], layer.weight, retain_graph=True)[0].flatten() for i in range(2)]
    torch.testing.assert_close(torch.stack(rows), 0.3 * torch.eye(2, dtype=torch.float64), rtol=1e-15, atol=0)


@pytest.mark.parametrize("noise", ["gaussian", "rademacher"])
@pytest.mark.parametrize("k", [1, 3])
def test_under_two_point_noise_the_gradient_is_that_without_noise(noise, k):
    model, pretrained = mlp(), snapshot(elsewhere())
    penalty = DistancePenalty(model, alpha=0.3, start=pretrained)
    opt = fm.NSO(torch.optim.SGD(model.parameters(), lr=0.1), sigma=0.5, num_perturbations=k, noise=noise)
    for probe in opt.probes():
        with probe:
            penalty().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, 0.3 * (p.detach() - pretrained[name]), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("shell", ["closure", "probes"])
def test_training_equals_the_pseudocode_with_the_gradient_by_hand(shell):
    """Hand-written: the two-point gradient of the data alone, and alpha (w - w0) once, at w."""
    model, pretrained, steps, alpha, beta = mlp(), body(elsewhere()), 5, 0.3, 0.1
    names = [name for name, _ in model.named_parameters()]
    W = [p.detach().clone() for p in model.parameters()]
    M = [w * 0 for w in W]

    def data_gradient(weights):
        twin = mlp()
        twin.load_state_dict(dict(zip(names, weights)))
        return torch.autograd.grad(loss(twin, data()), list(twin.parameters()))

    for step in range(steps):
        U = [0.05 * u for u in nso_algorithm1.noise(fm.Gaussian(), W, seed=0, step=step, draw=0)]
        plus, minus = (data_gradient([w + s * u for w, u in zip(W, U)]) for s in (1, -1))
        pull = [alpha * (w - pretrained[n]) if n in pretrained else beta * w for n, w in zip(names, W)]
        M = [0.9 * m - 0.1 * ((a + b) / 2 + c) for m, a, b, c in zip(M, plus, minus, pull)]
        W = [w + m for w, m in zip(W, M)]

    penalty = DistancePenalty(model, alpha=alpha, beta=beta, start=pretrained)
    opt = fm.NSO(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), sigma=0.05)

    def closure():
        opt.zero_grad()
        value = loss(model, data()) + penalty()
        value.backward()
        return value

    for _ in range(steps):
        if shell == "closure":
            opt.step(closure)
        else:
            for probe in opt.probes():
                with probe:
                    (loss(model, data()) + penalty()).backward()
            opt.step()
            opt.zero_grad()
    torch.testing.assert_close([p.detach() for p in model.parameters()], W, rtol=1e-12, atol=1e-12)


def test_the_live_trace_gains_alpha_for_each_weight():
    """On a quadratic, with signs as noise, every sample of the trace is exact."""
    model = mlp()
    penalty = DistancePenalty(model, alpha=0.3, beta=0.1, start=body(elsewhere()))
    opt = fm.NSO(torch.optim.SGD(model.parameters(), lr=0.1), sigma=0.05, noise="rademacher")
    for probe in opt.probes():
        with probe:
            penalty().backward()
    opt.step()
    assert opt.trace_estimate.value == pytest.approx(0.3 * (12 * 6 + 12) + 0.1 * (3 * 12 + 3), rel=1e-10)


def test_frozen_parameters_are_left_out_while_they_are_frozen():
    model, pretrained = mlp(), snapshot(elsewhere())
    penalty = DistancePenalty(model, alpha=2.0, start=pretrained)
    model[0].requires_grad_(False)
    head = sum((model[2].get_parameter(n) - pretrained[f"2.{n}"]).square().sum() for n in ("weight", "bias"))
    torch.testing.assert_close(penalty(), head, rtol=1e-13, atol=0)
    model.requires_grad_(False)
    assert penalty() == 0
    model.requires_grad_(True)
    penalty().backward()
    assert len(gradients(model)) == 4


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(4, 3)
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.embedding.weight


@pytest.mark.parametrize("name", ["embedding.weight", "head.weight"])
def test_tied_parameters_count_once_and_are_found_by_either_name(name):
    model = seeded(Tied)
    start = torch.ones(4, 3)
    penalty = DistancePenalty(model, alpha=2.0, start={name: start})
    torch.testing.assert_close(penalty(), (model.head.weight - start).square().sum(), rtol=1e-6, atol=0)
    penalty().backward()
    torch.testing.assert_close(model.head.weight.grad, 2 * (model.head.weight - start).detach(), rtol=1e-6, atol=0)
    assert DistancePenalty(model, alpha=2.0, beta=1.0, exclude=name)() == 0


def test_sparse_gradients_become_dense():
    layer = seeded(lambda: nn.Embedding(5, 2, sparse=True)).double()
    start, w = torch.ones(5, 2, dtype=torch.float64), layer.weight.detach().clone()
    penalty = DistancePenalty(layer, alpha=0.3, start={"weight": start})
    (layer(torch.tensor([1, 1, 3])).sum() + penalty()).backward()
    counts = torch.tensor([0.0, 2, 0, 1, 0], dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(layer.weight.grad, counts + 0.3 * (w - start), rtol=1e-14, atol=1e-15)
    torch.optim.SGD(layer.parameters(), lr=0.1).step()


@pytest.mark.parametrize(("dtype", "eps"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-10)])
def test_parameters_of_16_bits(dtype, eps):
    model, pretrained = mlp(dtype), elsewhere().to(dtype)
    penalty = DistancePenalty(model, alpha=0.5, start=snapshot(pretrained))
    value = penalty()
    assert value.dtype == torch.float32
    exact = [(p.double() - q.double()).detach() for p, q in zip(model.parameters(), pretrained.parameters())]
    torch.testing.assert_close(value.double(), 0.25 * sum(d.square().sum() for d in exact), rtol=1e-6, atol=0)
    value.backward()
    for p, d in zip(model.parameters(), exact):
        assert p.grad.dtype == dtype
        torch.testing.assert_close(p.grad.double(), 0.5 * d, rtol=eps, atol=0)


def test_long_sums_are_taken_in_double_precision():
    layer = nn.Linear(2**11, 2**11, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1 / 3)
    value = DistancePenalty(layer, alpha=2.0, start={"weight": torch.zeros(2**11, 2**11)})()
    exact = 2**22 * layer.weight[0, 0].double() ** 2
    torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=0)  # in float32 alone: 7e-4


def test_complex_parameters_have_their_modulus_squared():
    layer = nn.Linear(3, 2, bias=False, dtype=torch.complex128)
    start = torch.ones(2, 3, dtype=torch.complex128)
    value = DistancePenalty(layer, alpha=2.0, start={"weight": start})()
    value.backward()
    torch.testing.assert_close(value, (layer.weight - start).abs().square().sum(), rtol=1e-13, atol=0)
    torch.testing.assert_close(layer.weight.grad, 2 * (layer.weight - start).detach(), rtol=1e-14, atol=0)


def test_nothing_waits_for_a_value():
    """On the meta device no tensor has one: whatever asks for it raises."""
    model = mlp().to("meta")
    value = DistancePenalty(model, alpha=0.3, beta=0.1, start=body(mlp().to("meta")))()
    value.backward()
    assert value.is_meta
    assert len(gradients(model)) == 4


def test_patterns_leave_parameters_out():
    model, pretrained = mlp(), snapshot(elsewhere())
    for exclude in ("*.bias", ["0.bias", "2.bias"]):
        value = DistancePenalty(model, alpha=2.0, start=pretrained, exclude=exclude)()
        expected = sum((model[i].weight - pretrained[f"{i}.weight"]).square().sum() for i in (0, 2))
        torch.testing.assert_close(value, expected, rtol=1e-13, atol=0)


def test_it_follows_its_model_to_another_type():
    model = mlp(torch.float32)
    penalty = DistancePenalty(model, alpha=2.0)
    model.double()
    with torch.no_grad():
        model[0].bias.add_(1.0)
    assert penalty().dtype == torch.float64
    assert float(penalty().detach()) == pytest.approx(12.0)


def test_the_start_is_a_copy():
    model, pretrained = mlp(), elsewhere()
    given = dict(pretrained.state_dict())
    own, others = DistancePenalty(model, alpha=2.0), DistancePenalty(model, alpha=2.0, start=given)
    before = others().detach()
    with torch.no_grad():
        for p in (*model.parameters(), *pretrained.parameters()):
            p.add_(1.0)
    assert float(own().detach()) == pytest.approx(sum(p.numel() for p in model.parameters()))
    with torch.no_grad():
        for p in model.parameters():
            p.sub_(1.0)
    torch.testing.assert_close(others().detach(), before, rtol=1e-12, atol=0)


def through_a_file(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def train(model, penalty, opt, steps):
    for _ in range(steps):
        for probe in opt.probes():
            with probe:
                (loss(model, data()) + penalty()).backward()
        opt.step()
        opt.zero_grad()


def fresh(**options):
    model = mlp()
    return (
        model,
        DistancePenalty(model, alpha=0.3, beta=0.1, **options),
        fm.NSO(torch.optim.AdamW(model.parameters(), lr=0.01), sigma=0.05),
    )


@pytest.mark.parametrize("options", [{}, {"start": body(elsewhere())}])
def test_resumed_equals_uninterrupted(options):
    whole = fresh(**options)
    train(*whole, 3)
    model, _, opt = fresh()
    states = [through_a_file(part.state_dict()) for part in whole]
    model.load_state_dict(states[0])
    penalty = DistancePenalty(model, alpha=0.3, beta=0.1)  # made of the weights half-way, which are not the start
    for part, state in zip((penalty, opt), states[1:]):
        part.load_state_dict(state)
    train(*whole, 3)
    train(model, penalty, opt, 3)
    assert same(snapshot(whole[0]), snapshot(model))


@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_copied_with_its_model_it_penalises_the_copy(how):
    whole = fresh(start=body(elsewhere()))
    train(*whole, 2)
    copies = pickle.loads(pickle.dumps(whole)) if how == "pickle" else copy.deepcopy(whole)
    train(*whole, 2)
    train(*copies, 2)
    assert same(snapshot(whole[0]), snapshot(copies[0]))


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: DistancePenalty(mlp(), alpha=-1.0), ArgumentError, r"alpha is -1\.0, but it must be finite and at"),
        (lambda: DistancePenalty(mlp(), alpha="1"), ArgumentTypeError, "alpha is '1', which is no number"),
        (lambda: DistancePenalty(mlp(), alpha=1, beta=float("nan")), ArgumentError, "beta is nan.*new parameters"),
        (lambda: DistancePenalty(mlp().parameters(), alpha=1), ArgumentTypeError, "model is a generator, but a torch"),
        (
            lambda: DistancePenalty(nn.LazyLinear(2), alpha=1),
            ArgumentError,
            "'weight' is not initialised.*forward pass",
        ),
        (
            lambda: DistancePenalty(mlp(), alpha=1, exclude="*.biases"),
            ArgumentError,
            r"exclude holds '\*\.biases', which matches no parameter.*'0\.weight', '0\.bias'",
        ),
        (lambda: DistancePenalty(mlp(), alpha=1, exclude=[3]), ArgumentTypeError, "exclude holds 3, but names"),
        (lambda: DistancePenalty(mlp(), alpha=1, start=mlp()), ArgumentTypeError, "start is a Sequential.*state_dict"),
        (
            lambda: DistancePenalty(mlp(), alpha=1, start={"0.bias": 1}),
            ArgumentTypeError,
            "start holds things that are",
        ),
        (
            lambda: DistancePenalty(mlp(), alpha=1, start={f"module.{n}": w for n, w in snapshot(mlp()).items()}),
            ArgumentError,
            r"start names none of the model's parameters: it has 'module\.0\.weight'.*wrapped",
        ),
        (
            lambda: DistancePenalty(mlp(), alpha=1, start={**snapshot(mlp()), "2.bias": torch.zeros(7)}),
            ArgumentError,
            r"'2\.bias' of shape \(7,\), but the parameter's is \(3,\).*new head.*leave it out",
        ),
        (
            lambda: DistancePenalty(mlp(), alpha=1).load_state_dict({"seed": 1}),
            ArgumentError,
            r"holds \['seed'\], but the state of a distance has one entry, 'start'",
        ),
        (lambda: DistancePenalty(mlp(), alpha=1).load_state_dict([]), ArgumentError, "holds a list, but"),
        (
            lambda: DistancePenalty(mlp(), alpha=1, exclude="*.bias").load_state_dict({"start": snapshot(mlp())}),
            ArgumentError,
            r"the start of '0\.bias', '2\.bias', for which no distance is measured here",
        ),
    ],
)
def test_bad_arguments(build, error, message):
    with pytest.raises(error, match=message):
        build()
