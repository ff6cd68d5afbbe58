"""The loops people really write: accumulation, mixed precision, clipping, groups, schedules, second-order bases."""

import copy
from contextlib import nullcontext

import pytest
import torch

import flatmin as fm
from methods_table import every_method, linear_methods, methods_with_radius, rows, wrapping_methods
from problems import closure_of, data, loss, mlp, same, snapshot, with_state

SGD = torch.optim.SGD


def halves(batch, parts=3):
    x, y = batch
    return list(zip(x.chunk(parts), y.chunk(parts), strict=True))


def gradients(model):
    return [p.grad.clone() for p in model.parameters()]


def big_batch(method, model, batch):
    opt = method.build(SGD(model.parameters(), lr=0.1))
    for probe in opt.probes():
        with probe:
            loss(model, batch).backward()
    return opt


@pytest.mark.loop("accumulation")
@every_method
def test_accumulating_inside_each_probe_equals_the_big_batch(method):
    model, other, batch = mlp(), mlp(), data()
    big_batch(method, model, batch)
    opt = method.build(SGD(other.parameters(), lr=0.1))
    for probe in opt.probes():
        with probe:
            for micro in halves(batch):
                (loss(other, micro) / 3).backward()
    for a, b in zip(gradients(model), gradients(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.loop("inside each micro-batch")
@linear_methods
def test_a_loop_over_probes_inside_each_micro_batch_equals_the_big_batch(method):
    model, other, batch = mlp(), mlp(), data()
    whole = big_batch(method, model, batch)
    opt = method.build(SGD(other.parameters(), lr=0.1))
    for micro in halves(batch):
        for probe in opt.probes():
            with probe:
                (loss(other, micro) / 3).backward()
    for a, b in zip(gradients(model), gradients(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)
    whole.step()
    opt.step()
    if method.traces:
        torch.testing.assert_close(whole.trace_estimate.value, opt.trace_estimate.value, rtol=1e-9, atol=0)


@every_method
def test_what_grad_holds_already_is_added_to(method):
    model, other = mlp(), mlp()
    big_batch(method, model, data())
    for p in other.parameters():
        p.grad = torch.ones_like(p)
    big_batch(method, other, data())
    for a, b in zip(gradients(model), gradients(other), strict=True):
        torch.testing.assert_close(a + 1, b, rtol=1e-12, atol=1e-13)


@pytest.mark.loop("GradScaler")
@every_method
@pytest.mark.parametrize("clip", [False, True])
def test_grad_scaler_equals_full_precision(method, clip):
    results = []
    for enabled in (False, True):
        model, batch = mlp(torch.float32), data(dtype=torch.float32)
        opt = method.build(SGD(model.parameters(), lr=0.1, momentum=0.9))
        scaler = torch.amp.GradScaler("cpu", enabled=enabled, init_scale=2.0**12, growth_interval=2)
        for _ in range(5):
            for probe in opt.probes(scaler=scaler):
                with probe:
                    scaler.scale(loss(model, batch)).backward()
            if clip:
                scaler.unscale_(opt)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(opt)
            scaler.update()
            opt.zero_grad()
        results.append((snapshot(model), opt.trace_estimate))
    for name, value in results[0][0].items():
        torch.testing.assert_close(value, results[1][0][name], rtol=1e-5, atol=1e-6)
    if method.traces:
        torch.testing.assert_close(results[0][1].value, results[1][1].value, rtol=1e-3, atol=1e-3)


@pytest.mark.loop("GradScaler")
@every_method
def test_grad_scaler_skips_a_step_that_overflows_and_the_run_goes_on(method):
    model, batch = mlp(torch.float32), data(dtype=torch.float32)
    opt = method.build(SGD(model.parameters(), lr=0.1))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before = snapshot(model)
    for probe in opt.probes(scaler=scaler):
        with probe:
            (scaler.scale(loss(model, batch)) * 4).backward()
    scaler.step(opt)
    scaler.update(2.0**10)
    assert same(snapshot(model), before)
    opt.zero_grad()
    for probe in opt.probes(scaler=scaler):
        with probe:
            scaler.scale(loss(model, batch)).backward()
    scaler.step(opt)
    assert not same(snapshot(model), before)
    if method.traces:
        assert torch.isfinite(torch.tensor(opt.trace_estimate.value))


@pytest.mark.loop("autocast")
@every_method
def test_autocast(method):
    model, batch = mlp(torch.float32), data(dtype=torch.float32)
    exact = mlp(torch.float32)
    for net, enabled in ((model, True), (exact, False)):
        opt = method.build(SGD(net.parameters(), lr=0.1))

        def closure(net=net, opt=opt, enabled=enabled):
            opt.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                value = loss(net, batch)
            value.backward()
            return value

        opt.step(closure)
    for a, b in zip(gradients(model), gradients(exact), strict=True):
        torch.testing.assert_close(a, b, rtol=0.1, atol=0.01)


@pytest.mark.loop("autocast")
@every_method
@pytest.mark.parametrize("shell", ["closure", "probes"])
def test_autocast_around_the_whole_step(method, shell):
    """Autocast keeps its copies of the weights for as long as it lasts; they must not hide the displacement."""
    results = []
    for outside in (True, False):
        model, batch = mlp(torch.float32), data(dtype=torch.float32)
        opt = method.build(SGD(model.parameters(), lr=0.1), **method.at(0.5))
        losses = []

        def evaluate(model=model, losses=losses, outside=outside, batch=batch):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not outside or torch.is_autocast_enabled("cpu")):
                value = loss(model, batch)
            losses.append(value.item())
            value.backward()
            return value

        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=outside):
            if shell == "closure":
                opt.step(lambda: opt.zero_grad() or evaluate())  # noqa: B023
            else:
                for probe in opt.probes():
                    with probe:
                        evaluate()
                opt.step()
        results.append((losses, snapshot(model)))
    assert results[0][0] == results[1][0]
    assert len(set(results[0][0])) > (1 if method.evaluations > 1 else 0)
    assert same(results[0][1], results[1][1])


@pytest.mark.loop("clipping")
@every_method
def test_clipping_sees_the_final_gradient(method):
    model, other = mlp(), mlp()
    big_batch(method, model, data())
    expected = torch.nn.utils.get_total_norm(gradients(model))
    opt = big_batch(method, other, data())
    torch.testing.assert_close(torch.nn.utils.clip_grad_norm_(other.parameters(), 1e9), expected)
    torch.nn.utils.clip_grad_value_(other.parameters(), 0.01)
    before = snapshot(other)
    opt.step()
    for (name, p), g in zip(other.named_parameters(), gradients(model), strict=True):
        if method.wraps:
            torch.testing.assert_close(before[name] - p.detach(), 0.1 * g.clamp(-0.01, 0.01), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(p.grad, g.clamp(-0.01, 0.01), rtol=1e-9, atol=1e-12)


@pytest.mark.loop("groups")
@rows(lambda m: m.radius is not None and m.off is not None)
def test_groups_have_radii_of_their_own_and_zero_leaves_a_group_where_it_is(method):
    model = mlp()
    groups = [
        {"params": list(model[0].parameters()), **method.off},
        {"params": list(model[2].parameters()), **method.at(0.3)},
    ]
    opt = method.build(SGD(groups, lr=0.1))
    start = snapshot(model)
    for probe in opt.probes():
        with probe:
            assert same([start["0.weight"], start["0.bias"]], [p.detach() for p in model[0].parameters()])
            if not isinstance(probe.displacement, fm.perturb.Stay):
                assert not torch.equal(start["2.weight"], model[2].weight)
            loss(model, data()).backward()
    opt.step()
    if method.traces:
        first, second = opt.group_trace_estimates
        assert first.value == 0
        assert second.value == opt.trace_estimate.value != 0


@pytest.mark.loop("added")
@every_method
def test_a_group_added_later_takes_part(method):
    model = mlp()
    opt = method.build(SGD(model[0].parameters(), lr=0.1, momentum=0.9))
    opt.step(closure_of(opt, model, data()))
    opt.add_param_group({"params": model[2].parameters()})
    assert opt.param_groups[1]["perturbation_step"] == 1
    before = snapshot(model)
    opt.step(closure_of(opt, model, data()))
    assert not torch.equal(before["2.weight"], model[2].weight)
    assert opt.param_groups[1]["lr"] == 0.1


@methods_with_radius
def test_a_schedule_is_asked_for_each_step(method):
    asked, model = [], mlp()
    opt = method.build(SGD(model.parameters(), lr=0.1), **method.at(lambda step: asked.append(step) or 0.05))
    for _ in range(3):
        opt.step(closure_of(opt, model, data()))
    assert sorted(set(asked)) == [0, 1, 2]


@pytest.mark.loop("LBFGS")
@wrapping_methods
def test_lbfgs_as_base(method):
    """The base evaluates as often as it likes; within a step the noise stays the same, so its line search is sound."""
    model, batch = mlp(), data()
    opt = method.build(torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=5, line_search_fn="strong_wolfe"))
    closure, calls = closure_of(opt, model, batch), []
    for _ in range(2):
        opt.step(lambda: calls.append(1) or closure())
    state = opt.state[model[0].weight]
    assert len(calls) == method.evaluations * state["func_evals"] > 2
    assert opt.param_groups[0]["perturbation_step"] == 2


def test_lbfgs_on_a_quadratic_is_not_changed_by_two_points():
    """On a quadratic the average over a pair is the gradient itself, so every line search is that of the base."""
    h = torch.diag(torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64))
    ends = []
    for wrap in (lambda b: b, lambda b: fm.NSO(b, sigma=0.1)):
        w = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
        opt = wrap(torch.optim.LBFGS([w], max_iter=4))

        def closure(w=w, opt=opt):
            opt.zero_grad()
            value = (w @ h @ w) / 2
            value.backward()
            return value

        opt.step(closure)
        ends.append(w.detach())
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-12)


@wrapping_methods
def test_step_without_closure_and_without_probes_is_a_step_of_the_base(method):
    model, other = mlp(), mlp()
    for net in (model, other):
        loss(net, data()).backward()
    opt = method.build(SGD(model.parameters(), lr=0.1))
    with nullcontext() if method.name == "Plain" else pytest.warns(UserWarning, match=r"nothing was perturbed.*probes"):
        opt.step()
    SGD(other.parameters(), lr=0.1).step()
    assert same(snapshot(model), snapshot(other))
    opt.step()  # of which it warns once


@every_method
@pytest.mark.parametrize("set_to_none", [True, False])
def test_any_way_of_clearing_gradients_in_the_closure(method, set_to_none):
    models = [mlp(), mlp()]
    for model, way in zip(models, ("optimizer", "model"), strict=True):
        opt = method.build(SGD(model.parameters(), lr=0.1))

        def closure(model=model, opt=opt, way=way):
            (opt if way == "optimizer" else model).zero_grad(set_to_none=set_to_none)
            value = loss(model, data())
            value.backward()
            return value

        for _ in range(3):
            opt.step(closure)
    assert same(snapshot(models[0]), snapshot(models[1]))


@pytest.mark.loop("checkpointing")
@every_method
def test_activation_checkpointing(method):
    from torch.utils.checkpoint import checkpoint

    model, other = mlp(), mlp()
    big_batch(method, model, data())
    x, y = data()
    opt = method.build(SGD(other.parameters(), lr=0.1))
    for probe in opt.probes():
        with probe:
            h = checkpoint(other[:2], x, use_reentrant=False)
            torch.nn.functional.cross_entropy(other[2](h), y).backward()
    assert same(gradients(model), gradients(other))


@pytest.mark.loop("compile")
@every_method
def test_a_compiled_model_is_compiled_once_and_sees_every_displacement(method):
    import torch._dynamo as dynamo

    dynamo.reset()
    dynamo.utils.counters.clear()
    model = with_state()
    model[2].p = 0.0
    compiled, eager = torch.compile(model, backend="aot_eager"), copy.deepcopy(model)
    batch = data(dtype=torch.float32)
    results = []
    for net, call in ((model, compiled), (eager, eager)):
        opt, losses = method.build(SGD(net.parameters(), lr=0.1)), []

        def closure(opt=opt, call=call, losses=losses):
            opt.zero_grad()
            value = loss(call, batch)
            value.backward()
            losses.append(value.item())
            return value

        for _ in range(3):
            opt.step(closure)
        results.append(losses)
    assert dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)
    assert int(model[1].num_batches_tracked) == 3
    dynamo.reset()
