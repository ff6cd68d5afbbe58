"""Steps whose points are evaluated in one pass are those of the closure, which visits them in turn."""

import copy
import warnings

import pytest
import torch
from torch import nn

import flatmin as fm
from flatmin.flows import nso
from flatmin.perturb import Displacer, plan
from flatmin.perturb.stacked import stack
from flatmin.streams import Stream
from problems import closure_of, data, loss, mlp, seeded, snapshot

SGD = torch.optim.SGD


def convolutional():
    layers = lambda: nn.Sequential(  # noqa: E731
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)
    )
    return seeded(layers).double()


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.layer(x.unsqueeze(0)).squeeze(0))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.outer.weight = self.inner.weight

    def forward(self, x):
        return self.head(torch.tanh(self.outer(torch.tanh(self.inner(x)))))


def with_dropout():
    return seeded(lambda: nn.Sequential(nn.Linear(6, 40), nn.Dropout(0.5), nn.Tanh(), nn.Linear(40, 3))).double()


def evaluated_batch_norm():
    return seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))).double().eval()


NETWORKS = {
    "mlp": mlp,
    "convolutional": convolutional,
    "attention": lambda: seeded(Attention).double(),
    "tied": lambda: seeded(Tied).double(),
    "dropout": with_dropout,
    "batch norm, evaluated": evaluated_batch_norm,
}
METHODS = {
    "nso": lambda base: fm.NSO(base, sigma=0.05),
    "nso, k = 3": lambda base: fm.NSO(base, sigma=0.05, num_perturbations=3, noise="rademacher"),
    "nso, clean": lambda base: fm.NSO(base, sigma=0.05, clean_weight=0.25),
    "nso, by name": lambda base: fm.NSO(base, sigma={"*.bias": 0.0, "*": 0.05}, noise="laplace"),
    "nso, by filter": lambda base: fm.NSO(base, sigma=0.05, noise_scale="filter"),
    "nso, without noise": lambda base: fm.NSO(base, sigma=0.0),
    "wpsgd": lambda base: fm.WPSGD(base, sigma=0.05),
    "wpsgd, k = 2": lambda base: fm.WPSGD(base, sigma=0.05, num_perturbations=2),
    "plain": fm.Plain,
}


def trained(network, method, *, batched, steps=3):
    model, batch = NETWORKS[network](), data(6)
    opt = METHODS[method](SGD(model.parameters(), lr=0.1, momentum=0.9))
    losses = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for _ in range(steps):
            if batched:
                losses.append(opt.step_batched(model, lambda net: loss(net, batch)))
            else:
                losses.append(opt.step(closure_of(opt, model, batch)))
        state = torch.get_rng_state()
    return model, opt, losses, state


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("network", NETWORKS)
def test_steps_are_those_of_the_closure(network, method):
    model, opt, losses, state = trained(network, method, batched=True)
    other, turn, expected, expected_state = trained(network, method, batched=False)
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-13, msg=name)
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(torch.stack(losses), torch.stack(expected), rtol=1e-12, atol=0)
    assert not losses[0].requires_grad
    assert opt.gradient_evaluations == turn.gradient_evaluations
    assert torch.equal(state, expected_state)
    trace, turned = opt.trace_estimate, turn.trace_estimate
    assert (trace is None) == (turned is None)
    if trace is not None:
        torch.testing.assert_close(trace.samples, turned.samples, rtol=1e-6, atol=1e-9)
    assert [g["fm_step"] for g in opt.param_groups if "fm_step" in g] == [
        g["fm_step"] for g in turn.param_groups if "fm_step" in g
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_points_are_bit_for_bit_those_that_weights_are_moved_to(dtype):
    w = {0: seeded(lambda: torch.randn(300, 300)).to(dtype), 1: seeded(lambda: torch.randn(7)).to(dtype)}
    steps = plan(nso(Stream(5), sigma=0.1, num_perturbations=2, clean_weight=0.5))
    points = stack(steps, w)
    displacer = Displacer({i: t.clone() for i, t in w.items()})
    for number, step in enumerate(steps):
        displacer.displace(step.displacement)
        for i, stacked in points.items():
            assert torch.equal(stacked[number], displacer._parameters[i])


def test_frozen_parameters_and_buffers_are_left_alone():
    model, batch = evaluated_batch_norm(), data(6)
    model[0].weight.requires_grad_(False)
    before = snapshot(model)
    opt = fm.NSO(SGD([p for p in model.parameters() if p.requires_grad], lr=0.1), sigma=0.05)
    opt.step_batched(model, lambda net: loss(net, batch))
    after = snapshot(model)
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still == {"0.weight", "1.running_mean", "1.running_var", "1.num_batches_tracked"}


def test_a_part_of_the_network_without_gradient_keeps_none():
    model = nn.ModuleDict({"used": nn.Linear(6, 3), "idle": nn.Linear(2, 2)})
    opt = fm.NSO(SGD(model.parameters(), lr=0.1), sigma=0.05)
    network = seeded(lambda: model)

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = network

        def forward(self, x):
            return self.parts["used"](x)

    opt.step_batched(Around(), lambda net: net(torch.ones(4, 6)).square().mean())
    assert model["idle"].weight.grad is None
    assert model["used"].weight.grad is not None


def test_a_checkpoint_resumes_bit_for_bit():
    model, batch = mlp(), data(6)
    opt = fm.NSO(SGD(model.parameters(), lr=0.1, momentum=0.9), sigma=0.05)
    opt.step_batched(model, lambda net: loss(net, batch))
    weights, state = snapshot(model), copy.deepcopy(opt.state_dict())
    opt.step_batched(model, lambda net: loss(net, batch))
    again = mlp()
    again.load_state_dict(weights)
    other = fm.NSO(SGD(again.parameters(), lr=0.1, momentum=0.9), sigma=0.05)
    other.load_state_dict(state)
    other.step_batched(again, lambda net: loss(net, batch))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))


def test_schedulers_and_hooks_see_the_step():
    model, batch = mlp(), data(6)
    opt = fm.NSO(SGD(model.parameters(), lr=0.1), sigma=0.05)
    scheduler, seen = torch.optim.lr_scheduler.StepLR(opt, 1), []
    opt.register_step_post_hook(lambda *_: seen.append(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.step_batched(model, lambda net: loss(net, batch))
        scheduler.step()
    assert seen == [1]


def test_a_base_that_evaluates_several_times_does_so():
    model, batch = mlp(), data(6)
    opt = fm.NSO(torch.optim.LBFGS(model.parameters(), max_iter=3), sigma=0.05)
    first = opt.step_batched(model, lambda net: loss(net, batch))
    assert opt.gradient_evaluations > 2
    assert float(opt.step_batched(model, lambda net: loss(net, batch))) < float(first)


REFUSED = {
    "sam": (fm.ProbeError, "SAM uses the gradient at one point", lambda m, b: (fm.SAM, {"rho": 0.1}, m, None)),
    "no module": (fm.ArgumentTypeError, "network is a function", lambda m, b: (fm.NSO, {"sigma": 0.1}, loss, None)),
    "no function": (fm.ArgumentTypeError, "loss is a int", lambda m, b: (fm.NSO, {"sigma": 0.1}, m, 3)),
    "another network": (
        fm.ArgumentError,
        "holds 0 of the 4 parameters",
        lambda m, b: (fm.NSO, {"sigma": 0.1}, mlp(), None),
    ),
    "vector": (fm.ClosureError, "tensor of shape", lambda m, b: (fm.NSO, {"sigma": 0.1}, m, lambda net: net(b[0]))),
    "number": (fm.ClosureError, "must be one number", lambda m, b: (fm.NSO, {"sigma": 0.1}, m, lambda net: 0.5)),
    "item": (
        fm.ProbeError,
        "does what torch.func.vmap does not know",
        lambda m, b: (fm.NSO, {"sigma": 0.1}, m, lambda net: net(b[0]).sum() * net(b[0]).sum().item()),
    ),
    "no gradient": (
        fm.ClosureError,
        "left no gradient",
        lambda m, b: (fm.NSO, {"sigma": 0.1}, m, lambda net: torch.ones((), requires_grad=True) * 2),
    ),
    "nan": (fm.NonFiniteError, "loss at step 0", lambda m, b: (fm.NSO, {"sigma": 0.1}, m, lambda n: n(b[0]).sum() / 0)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_refused_and_leaves_the_weights(name):
    model, batch = mlp(), data(6)
    error, text, case = REFUSED[name]
    method, arguments, network, function = case(model, batch)
    opt = method(SGD(model.parameters(), lr=0.1), **arguments)
    before = snapshot(model)
    with pytest.raises(error, match=text):
        opt.step_batched(network, function or (lambda net: loss(net, batch)))
    assert all(torch.equal(before[n], t) for n, t in snapshot(model).items())
    opt.zero_grad()
    opt.step(closure_of(opt, model, batch))


def test_batch_norm_in_training_mode_is_named():
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)))
    opt = fm.NSO(SGD(model.parameters(), lr=0.1), sigma=0.05)
    with pytest.raises(fm.ArgumentError, match=r"^1 is a BatchNorm1d in training mode.*GroupNorm"):
        opt.step_batched(model, lambda net: net(torch.ones(4, 6)).sum())
