"""What a method computes, against the base optimizer, the pure driver, and the paper's pseudocode."""

import functools

import pytest
import torch

import flatmin as fm
from methods_table import METHODS, every_method, methods_that_turn_off
from problems import closure_of, data, loss, mlp, same, snapshot, with_state

SGD = torch.optim.SGD
BASES = {
    "SGD": lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
}


def run_probes(opt, model, batch):
    for probe in opt.probes():
        with probe:
            loss(model, batch).backward()
    opt.step()
    opt.zero_grad()


@pytest.mark.loop("lr = 0")
@every_method
@pytest.mark.parametrize("shell", ["closure", "probes"])
def test_learning_rate_zero_leaves_the_weights_bitwise_alone(method, shell):
    for dtype in (torch.float32, torch.bfloat16):
        model, batch = mlp(dtype), data(dtype=dtype)
        before = snapshot(model)
        opt = method.build(SGD(model.parameters(), lr=0.0, momentum=0.9))
        for _ in range(3):
            opt.step(closure_of(opt, model, batch)) if shell == "closure" else run_probes(opt, model, batch)
        assert same(snapshot(model), before)


@pytest.mark.loop("off")
@methods_that_turn_off
@pytest.mark.parametrize("shell", ["closure", "probes"])
@pytest.mark.parametrize("base", BASES.values(), ids=BASES.keys())
def test_radius_zero_is_the_base_optimizer_bitwise(method, shell, base):
    """Batch-norm statistics, dropout masks and the state of the global generator included."""
    batch = data(dtype=torch.float32)
    results = []
    for perturbed in (False, True):
        model = with_state()
        opt = base(model.parameters())
        if perturbed:
            opt = method.build(opt, **method.off)
        with torch.random.fork_rng():
            torch.manual_seed(7)
            for _ in range(4):
                if perturbed and shell == "probes":
                    run_probes(opt, model, batch)
                else:
                    opt.step(closure_of(opt, model, batch))
            results.append((snapshot(model), torch.get_rng_state()))
    assert same(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.loop("closure")
@every_method
def test_in_place_equals_pure_driver(method):
    model, batch = mlp(), data()
    opt = method.build(SGD(model.parameters(), lr=0.1), seed=5)
    for step in range(3):
        weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        expected = fm.gradient(
            functools.partial(opt._flow, **opt._arguments()),
            lambda w: torch.nn.functional.cross_entropy(torch.func.functional_call(model, w, batch[0]), batch[1]),
            weights,
            seed=5,
            step=step,
        )
        opt.step(closure_of(opt, model, batch))
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.grad, expected[name], rtol=1e-12, atol=1e-14)


@pytest.mark.loop("closure")
@every_method
def test_equals_the_pseudocode_of_its_paper(method):
    model, batch = mlp(), data()

    def gradient(weights):
        named = dict(zip((n for n, _ in model.named_parameters()), weights, strict=True))
        named = {n: w.clone().requires_grad_() for n, w in named.items()}
        value = torch.nn.functional.cross_entropy(torch.func.functional_call(model, named, batch[0]), batch[1])
        return torch.autograd.grad(value, list(named.values()))

    start = [p.detach().clone() for p in model.parameters()]
    expected = method.reference(start, gradient, eta=0.1, mu=0.9, steps=6, seed=3)
    seed = {"seed": 3} if method.seeded else {}
    opt = method.build(SGD(model.parameters(), lr=0.1, momentum=0.9), **seed)
    for _ in range(6):
        opt.step(closure_of(opt, model, batch))
    for p, e, s in zip(model.parameters(), expected, start, strict=True):
        torch.testing.assert_close(p.detach(), e, rtol=1e-11, atol=1e-12)
        assert (p - s).abs().max() > 1e-3  # it moved


@every_method
def test_a_plan_is_what_the_flow_does_live(method):
    """Linear flows are planned on symbols; running the same text on real gradients gives the same direction."""
    from flatmin.perturb import Draw, Realized, Stay, Weights, plan, realize
    from flatmin.perturb.functional import run_live
    from flatmin.streams import Stream
    from flatmin.vectors import Vector

    w = {0: torch.linspace(-1, 1, 5, dtype=torch.float64), 1: torch.tensor(0.3, dtype=torch.float64)}

    def evaluate(u):
        if isinstance(u, Weights):
            return Vector(w)
        if isinstance(u, Realized):
            return realize(u.draw, w)
        at = Vector(w) + (Vector({}) if isinstance(u, Stay) else realize(u, w) if isinstance(u, Draw) else u)
        return Vector({i: t**3 - t for i, t in at.tensors.items()})

    stream, flow = Stream(1, (4,)), method.bound_flow()
    live, _ = run_live(flow(stream), evaluate)
    steps = plan(flow(stream))
    assert (steps is not None) == method.linear
    if steps is not None:
        assert len(steps) == method.evaluations
        planned = sum((evaluate(s.displacement) * s.weight for s in steps), start=Vector({}))
        for i in w:
            torch.testing.assert_close(planned.tensors[i], live.tensors[i], rtol=1e-13, atol=1e-14)


@pytest.mark.loop("probes")
@every_method
def test_both_shells_take_the_same_steps_bitwise(method):
    batch = data(dtype=torch.float32)
    models = [with_state(), with_state()]
    for model, shell in zip(models, ("closure", "probes"), strict=True):
        opt = method.build(SGD(model.parameters(), lr=0.1, momentum=0.9))
        with torch.random.fork_rng():
            torch.manual_seed(3)
            for _ in range(3):
                opt.step(closure_of(opt, model, batch)) if shell == "closure" else run_probes(opt, model, batch)
    assert same(snapshot(models[0]), snapshot(models[1]))


@every_method
def test_number_of_evaluations(method):
    cases = [({}, method.evaluations)] + ([] if method.off is None else [(method.off, method.at_rest)])
    for changes, expected in cases:
        model, batch = mlp(), data()
        opt = method.build(SGD(model.parameters(), lr=0.1), **changes)
        closure, calls = closure_of(opt, model, batch), []
        opt.step(lambda: calls.append(1) or closure())  # noqa: B023
        assert len(calls) == expected


@every_method
def test_the_loss_that_step_returns(method):
    """A method that is linear in the gradients returns the average over its points, the others that of the first."""
    model, batch = mlp(), data()
    opt = method.build(SGD(model.parameters(), lr=0.1))
    losses, weights, closure = [], [], closure_of(opt, model, batch)

    def recording():
        value = closure()
        losses.append(value.item())
        weights.append(opt.probe.weight)
        return value

    returned = opt.step(recording)
    assert not returned.requires_grad
    expected = sum(w * v for w, v in zip(weights, losses, strict=True)) if method.linear else losses[0]
    torch.testing.assert_close(float(returned), expected, rtol=1e-12, atol=0)
    assert isinstance(opt.step(lambda: closure().item()), float)


def test_zero_perturbation_noise_is_drawn_anew_each_step_and_from_the_seed_alone():
    def displacement(seed, steps):
        model = mlp()
        opt = fm.NSO(SGD(model.parameters(), lr=0.0), sigma=0.1, seed=seed)
        for _ in range(steps):
            w = model[0].weight.detach().clone()
            for number, probe in enumerate(opt.probes()):
                with probe:
                    if number == 0:
                        u = model[0].weight.detach() - w
                    loss(model, data()).backward()
            opt.step()
        return u

    torch.testing.assert_close(displacement(0, 2), displacement(0, 2), rtol=0, atol=0)
    assert not torch.equal(displacement(0, 1), displacement(0, 2))
    assert not torch.equal(displacement(0, 1), displacement(1, 1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_pair_is_symmetric_to_the_last_rounding(dtype):
    w = torch.nn.Parameter(torch.linspace(-2, 2, 1001).to(dtype))
    w0 = w.detach().clone()
    opt = fm.NSO(SGD([w], lr=0.0), sigma=0.01)
    points = []
    for probe in opt.probes():
        with probe:
            points.append(w.detach().clone())
            w.sum().backward()
    plus, minus = points
    assert torch.equal(minus, (2 * w0.double() - plus.double()).to(dtype))
    assert torch.equal(w.detach(), w0)


def test_the_table_names_every_method_of_the_public_face():
    from flatmin.optim import Perturbed

    public = {obj for name in fm.__all__ if isinstance(obj := getattr(fm, name), type) and issubclass(obj, Perturbed)}
    assert {m.cls for m in METHODS} == public
