"""Scripts for the two-call SAM class give the numbers they gave, and what went wrong with it goes right."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from torch import nn

import flatmin as fm
from flatmin.compat import SAM, disable_running_stats, enable_running_stats
from problems import closure_of, data, loss, mlp, same, snapshot, with_state

BASES = {
    "SGD": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}),
    "AdamW": (torch.optim.AdamW, {"lr": 0.01}),
}
every_base = pytest.mark.parametrize("base", BASES, ids=BASES.keys())
both_forms = pytest.mark.parametrize("adaptive", [False, True], ids=["SAM", "ASAM"])


class Twin:
    """The old class, literally: e = rho g / (|g| + 1e-12), or rho w² g / (|w g| + 1e-12), one norm over all groups."""

    def __init__(self, params, base, rho=0.05, adaptive=False, **kwargs):
        self.base = base(params, **kwargs)
        for group in self.base.param_groups:
            group.setdefault("rho", rho)
            group.setdefault("adaptive", adaptive)

    @property
    def graded(self):
        return [(g, p) for g in self.base.param_groups for p in g["params"] if p.grad is not None]

    @torch.no_grad()
    def first_step(self, zero_grad=False):
        squares = [((p.abs() if g["adaptive"] else 1.0) * p.grad).square().sum() for g, p in self.graded]
        norm = sum(squares).sqrt() + 1e-12
        self.old = {p: p.clone() for _, p in self.graded}
        for g, p in self.graded:
            p.add_(g["rho"] * (p.square() if g["adaptive"] else 1.0) * p.grad / norm)
        if zero_grad:
            self.base.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad=False):
        for p, w in self.old.items():
            p.copy_(w)
        self.base.step()
        if zero_grad:
            self.base.zero_grad()

    def step(self, closure):
        self.first_step(zero_grad=True)
        closure()
        self.second_step()


def backward(model, batch):
    value = loss(model, batch)
    value.backward()
    return value


def two_calls(opt, model, batch=None, flag=True):
    batch = data() if batch is None else batch
    backward(model, batch)
    opt.first_step(zero_grad=flag)
    backward(model, batch)
    opt.second_step(zero_grad=True)


def with_closure(opt, model, batch=None):
    batch = data() if batch is None else batch
    model.zero_grad()
    backward(model, batch)
    opt.step(lambda: backward(model, batch))


def close(a, b, tolerance=1e-10):
    a, b = snapshot(a), snapshot(b)
    return all(torch.allclose(a[k], b[k], rtol=0, atol=tolerance) for k in a)


def of_two_groups(model):
    return [
        {"params": model[0].parameters(), "rho": 0.3, "adaptive": True},
        {"params": model[2].parameters(), "lr": 0.02},
    ]


def build(model, base="SGD", **kwargs):
    cls, own = BASES[base]
    return SAM(model.parameters(), cls, **{"rho": 0.1, **own, **kwargs})


def old_checkpoint(model, scratch="old_p"):
    """What the old class saved: scratch memory, and the groups."""
    opt = torch.optim.AdamW(model.parameters(), lr=0.003)
    state = opt.state_dict()
    state["param_groups"][0].update(rho=0.7, adaptive=True)
    state["state"] = {i: {scratch: p.detach().clone()} for i, p in enumerate(model.parameters())}
    return state


@every_base
@both_forms
@pytest.mark.parametrize("how", [two_calls, with_closure, lambda *a: two_calls(*a, flag=False)])
def test_equals_the_old_class(base, adaptive, how):
    cls, own = BASES[base]
    ours, theirs = mlp(), mlp()
    opt = SAM(ours.parameters(), cls, rho=0.2, adaptive=adaptive, **own)
    twin = Twin(theirs.parameters(), cls, rho=0.2, adaptive=adaptive, **own)
    for seed in range(6):
        how(opt, ours, data(seed=seed))
        how(twin, theirs, data(seed=seed))
        assert close(ours, theirs)
    assert opt.param_groups[0]["perturbation_step"] == 6


@every_base
def test_groups_have_their_own_rho_and_adaptive(base):
    cls, own = BASES[base]
    ours, theirs = mlp(), mlp()
    opt, twin = SAM(of_two_groups(ours), cls, rho=0.05, **own), Twin(of_two_groups(theirs), cls, rho=0.05, **own)
    assert [(g["rho"], g["adaptive"]) for g in opt.param_groups] == [(0.3, True), (0.05, False)]
    for _ in range(6):
        two_calls(opt, ours)
        two_calls(twin, theirs)
    assert close(ours, theirs)


def test_an_added_group_takes_the_defaults():
    model = mlp()
    opt = SAM(model[0].parameters(), torch.optim.SGD, rho=0.3, adaptive=True, lr=0.1)
    opt.add_param_group({"params": list(model[2].parameters()), "rho": 0.1})
    assert [(g["rho"], g["adaptive"]) for g in opt.param_groups] == [(0.3, True), (0.1, True)]
    two_calls(opt, model)


@every_base
def test_equals_the_new_class(base):
    cls, own = BASES[base]
    old, new = mlp(), mlp()
    a, b = SAM(old.parameters(), cls, rho=0.2, **own), fm.SAM(cls(new.parameters(), **own), rho=0.2)
    for seed in range(4):
        two_calls(a, old, data(seed=seed))
        b.step(closure_of(b, new, data(seed=seed)))
    assert same(snapshot(old), snapshot(new))
    b.load_state_dict(a.state_dict())  # and one goes on where the other stopped
    assert b.param_groups[0]["perturbation_step"] == 4


def test_adaptive_equals_the_new_class_that_adapts_everywhere():
    old, new = mlp(), mlp()
    a = build(old, adaptive=True)
    b = fm.ASAM(torch.optim.SGD(new.parameters(), **BASES["SGD"][1]), rho=0.1, eta=0.0, adaptive={"*": True})
    for _ in range(3):
        two_calls(a, old)
        b.step(closure_of(b, new, data()))
    assert close(old, new, 1e-14)
    a.load_state_dict(copy.deepcopy(b.state_dict()))  # whose groups do not say that they are adaptive
    two_calls(a, old)
    b.step(closure_of(b, new, data()))
    assert close(old, new, 1e-14)


def test_probes_work_here_too():
    old, new = with_state(), with_state()
    a, b = build(old, adaptive=True), build(new, adaptive=True)
    for model in (old, new):
        model[2].p = 0.0  # dropout masks are common in a loop over probes, and are not between two calls
    for _ in range(3):
        two_calls(a, old, data(dtype=torch.float32))
        for probe in b.probes():
            with probe:
                backward(new, data(dtype=torch.float32))
        b.step()
        b.zero_grad()
    assert same(snapshot(old), snapshot(new))


@every_base
@both_forms
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_learning_rate_0_leaves_the_weights_alone(base, adaptive, dtype):
    model, batch = mlp(dtype), data(dtype=dtype)
    opt = build(model, base, adaptive=adaptive, rho=0.5, lr=0.0)
    before, memory = snapshot(model), [p.data_ptr() for p in model.parameters()]
    for how in (two_calls, with_closure):
        for _ in range(3):
            how(opt, model, batch)
    assert same(snapshot(model), before)
    assert [p.data_ptr() for p in model.parameters()] == memory  # and no parameter was rebound


def test_between_the_calls_the_weights_are_rho_away():
    model = mlp()
    opt, before = build(model, rho=0.3), snapshot(model)
    backward(model, data())
    opt.first_step()
    moved = sum((p - before[n]).square().sum() for n, p in model.named_parameters())
    assert moved.sqrt().item() == pytest.approx(0.3, abs=1e-12)


def test_the_zero_grad_flags():
    model = mlp()
    opt = build(model)
    first = backward(model, data()) and [p.grad.clone() for p in model.parameters()]
    opt.first_step()
    assert same([p.grad for p in model.parameters()], first)
    opt.zero_grad()
    backward(model, data())
    second = [p.grad.clone() for p in model.parameters()]
    opt.second_step()
    assert same([p.grad for p in model.parameters()], second)
    opt.zero_grad(set_to_none=False)
    backward(model, data())
    opt.first_step(zero_grad=True)
    assert all(p.grad is None for p in model.parameters())
    backward(model, data())
    opt.second_step(zero_grad=True)
    assert all(p.grad is None for p in model.parameters())


def test_accumulation_in_both_passes_is_the_large_batch():
    whole, parts = mlp(), mlp()
    a, b = build(whole), build(parts)
    x, y = data()
    for _ in range(3):
        two_calls(a, whole)
        for call in (b.first_step, b.second_step):
            for i in range(0, 24, 6):
                (loss(parts, (x[i : i + 6], y[i : i + 6])) / 4).backward()
            call(zero_grad=True)
    assert close(whole, parts, 1e-12)


@pytest.mark.parametrize("flag", [True, False])
def test_a_layer_without_gradient_in_the_second_pass_is_back(flag):
    model = mlp()
    opt = SAM(model.parameters(), torch.optim.SGD, rho=0.5, lr=0.0)
    before = snapshot(model)
    backward(model, data())
    opt.first_step(zero_grad=flag)
    assert not torch.equal(model[0].weight, before["0.weight"])
    model[2](torch.ones(1, 12, dtype=torch.float64)).sum().backward()
    opt.second_step()
    assert same(snapshot(model), before)


def test_statistics_move_once_a_step():
    model, plain = with_state(), with_state()
    opt, sgd = build(model, lr=0.0, rho=0.0), torch.optim.SGD(plain.parameters(), lr=0.0)
    for how in (two_calls, with_closure):
        how(opt, model, data(dtype=torch.float32))
        backward(plain, data(dtype=torch.float32))
        sgd.step()
    assert same(snapshot(model), snapshot(plain))
    assert model[1].num_batches_tracked == 2


@every_base
def test_resumed_equals_uninterrupted(base):
    whole = mlp()
    opt = build(whole, base, adaptive=True)
    for _ in range(3):
        two_calls(opt, whole)
    file = io.BytesIO()
    torch.save({"model": whole.state_dict(), "opt": opt.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = mlp()
    opt2 = build(resumed, base, rho=3.0)  # rho and adaptive come from the checkpoint, as lr does
    resumed.load_state_dict(saved["model"])
    opt2.load_state_dict(state_dict=saved["opt"])
    for _ in range(4):
        two_calls(opt, whole)
        two_calls(opt2, resumed)
    assert same(snapshot(whole), snapshot(resumed))


@every_base
@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_pickled_and_copied(base, how):
    model = mlp()
    opt = build(model, base, adaptive=True)
    two_calls(opt, model)
    pair = pickle.loads(pickle.dumps((model, opt))) if how == "pickle" else copy.deepcopy((model, opt))
    assert type(pair[1].base_optimizer) is BASES[base][0]
    for _ in range(3):
        two_calls(opt, model)
        two_calls(pair[1], pair[0])
    assert same(snapshot(model), snapshot(pair[0]))


@pytest.mark.parametrize("scratch", ["old_p", "e_w"])
def test_a_checkpoint_of_the_old_class_loads(scratch):
    model = mlp()
    opt = SAM(model.parameters(), torch.optim.AdamW, lr=0.1)
    with pytest.warns(UserWarning, match=r"written by the two-call SAM class.*moments of Adam, start from zero"):
        opt.load_state_dict(old_checkpoint(model, scratch))
    group = opt.param_groups[0]
    assert (group["lr"], group["rho"], group["adaptive"], len(opt.state)) == (0.003, 0.7, True, 0)
    fresh = mlp()
    opt2 = SAM(fresh.parameters(), torch.optim.AdamW, rho=0.7, adaptive=True, lr=0.003)
    for _ in range(3):
        two_calls(opt, model)
        two_calls(opt2, fresh)
    assert same(snapshot(model), snapshot(fresh))


def test_what_an_old_checkpoint_has_beside_is_kept_and_no_other_is_touched():
    model = mlp()
    opt = build(model, "AdamW")
    two_calls(opt, model)
    state = opt.state_dict()
    for i, p in enumerate(model.parameters()):
        state["state"][i]["old_p"] = p.detach().clone()
    opt2 = build(mlp(), "AdamW")
    opt2.load_state_dict(state)  # a variant that saved the moments too; warnings are errors here
    assert all(entry.keys() == {"step", "exp_avg", "exp_avg_sq"} for entry in opt2.state.values())
    unused = old_checkpoint(model)
    unused["state"] = {}  # saved before the first step: nothing is lost
    opt2.load_state_dict(unused)
    base = torch.optim.AdamW(mlp().parameters())
    opt2.load_state_dict(base.state_dict())


@pytest.mark.parametrize("attach", [lambda opt: opt, lambda opt: opt.base_optimizer], ids=["wrapper", "base"])
def test_schedulers_and_hooks_see_one_step(attach):
    model = mlp()
    opt, calls = build(model), []
    opt.register_step_post_hook(lambda *_: calls.append("wrapper"))
    opt.base_optimizer.register_step_post_hook(lambda *_: calls.append("base"))
    scheduler = torch.optim.lr_scheduler.ExponentialLR(attach(opt), gamma=0.5)
    for how in (two_calls, with_closure, two_calls):  # warnings are errors here
        how(opt, model)
        scheduler.step()
    assert calls == ["base", "wrapper"] * 3
    assert opt.param_groups[0]["lr"] == opt.base_optimizer.param_groups[0]["lr"] == 0.1 / 8


def test_calls_out_of_order():
    model = mlp()
    opt, before = build(model), snapshot(model)
    with pytest.raises(fm.ProbeError, match=r"second_step\(\) came without first_step\(\).*start the step anew"):
        opt.second_step()
    with pytest.raises(fm.ProbeError, match=r"found no gradients to climb along\. Call loss\.backward\(\) before"):
        opt.first_step()
    with pytest.raises(fm.ProbeError, match=r"found no gradients.*flatmin\.SAM has torch's step\(closure\)"):
        opt.step(closure_of(opt, model, data()))
    for again in (opt.first_step, lambda: opt.step(lambda: backward(model, data()))):
        backward(model, data())
        opt.first_step()
        with pytest.raises(fm.ProbeError, match=r"came twice.*optimizer\.undo_first_step\(\) there"):
            again()
        assert same(snapshot(model), before)
    backward(model, data())
    opt.first_step(zero_grad=True)
    with pytest.raises(fm.ProbeError, match=r"No parameter has a gradient at the displaced weights\. Between"):
        opt.second_step()
    assert same(snapshot(model), before)
    two_calls(opt, model)  # and it goes on
    assert opt.param_groups[0]["perturbation_step"] == 1


def test_steps_without_any_call_tell_of_it():
    model = mlp()
    opt = build(model)
    backward(model, data())
    with pytest.warns(UserWarning, match=r"nothing was perturbed"):
        opt.step()


def test_an_instance_as_base_is_refused():
    model = mlp()
    with pytest.raises(fm.ArgumentTypeError, match=r"is an optimizer already.*SAM\(params, torch\.optim\.SGD, rho"):
        SAM(model.parameters(), torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(fm.ArgumentError, match=r"rho is -1"):
        build(model, rho=-1)


GIVE_UP = {
    "undo": lambda opt: opt.undo_first_step(),
    "state_dict": lambda opt: opt.state_dict(),
    "load_state_dict": lambda opt: opt.load_state_dict(build(mlp()).state_dict()),
    "probes": lambda opt: next(opt.probes()),
}


@pytest.mark.parametrize("give_up", GIVE_UP.values(), ids=GIVE_UP.keys())
def test_a_first_step_is_given_up(give_up):
    model = mlp()
    opt, before = build(model), snapshot(model)
    backward(model, data())
    opt.first_step()
    assert not same(snapshot(model), before)
    give_up(opt)
    assert same(snapshot(model), before)
    with pytest.raises(fm.ProbeError, match="given up in between"):
        opt.second_step()
    assert opt.undo_first_step() is False
    two_calls(opt, model)


@pytest.mark.parametrize("fails_in", ["closure", "ascent"])
def test_an_exception_restores(fails_in, monkeypatch):
    model = mlp()
    opt, before = build(model), snapshot(model)
    backward(model, data())

    def fail(*_, **__):
        raise MemoryError

    if fails_in == "ascent":
        monkeypatch.setattr(torch, "_foreach_add_", fail)
    with pytest.raises(MemoryError):
        opt.step(fail)
    monkeypatch.undo()
    assert same(snapshot(model), before)
    two_calls(opt, model)


def test_nan_in_the_second_pass_is_refused_with_the_weights_as_they_were():
    model = mlp()
    opt, before = build(model), snapshot(model)
    backward(model, data())
    opt.first_step(zero_grad=True)
    (loss(model, data()) * torch.nan).backward()
    with pytest.raises(fm.NonFiniteError, match="gradient at step 0 is NaN"):
        opt.second_step()
    assert same(snapshot(model), before)


@pytest.mark.parametrize("is_cyclic", [False, True])
def test_an_optimizer_that_is_let_go_of_restores(is_cyclic):
    model = mlp()
    opt, before = build(model), snapshot(model)
    backward(model, data())
    opt.first_step()
    if is_cyclic:
        opt.itself = opt
    alive = weakref.ref(opt)
    gc.disable()
    try:
        del opt
        assert (alive() is not None) == is_cyclic
    finally:
        gc.enable()
    gc.collect()
    assert alive() is None
    assert same(snapshot(model), before)


def test_a_late_end_does_not_undo_the_training_of_another():
    """A notebook keeps the optimizer of a failed cell alive until the next failure, hours of training later."""
    model = mlp()
    opt = build(model)
    backward(model, data())
    opt.first_step(zero_grad=True)
    other = torch.optim.SGD(model.parameters(), lr=0.1)
    backward(model, data())
    other.step()
    trained = snapshot(model)
    del opt
    gc.collect()
    assert same(snapshot(model), trained)


@pytest.mark.parametrize("unscales", [True, False])
def test_the_grad_scaler_recipe_equals_full_precision(unscales):
    plain, scaled = mlp(torch.float32), mlp(torch.float32)
    a, b = build(plain), build(scaled)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=3)
    batch = data(dtype=torch.float32)
    for _ in range(4):
        two_calls(a, plain, batch)
        scaler.scale(loss(scaled, batch)).backward()
        if unscales:
            scaler.unscale_(b)
        b.first_step(zero_grad=True)
        if unscales:
            scaler.update()
        scaler.scale(loss(scaled, batch)).backward()
        if unscales:
            scaler.unscale_(b)
        scaler.step(b)
        scaler.update()
        b.zero_grad()
    assert close(plain, scaled, 1e-6)
    assert b.param_groups[0]["perturbation_step"] == 4


@pytest.mark.parametrize("overflows_in", ["first", "second"])
@pytest.mark.parametrize("unscales", [True, False])
def test_a_step_that_the_scaler_skips_returns_the_weights(overflows_in, unscales):
    model, batch = mlp(torch.float32), data(dtype=torch.float32)
    opt, before = build(model), snapshot(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for name, call in (("first", lambda: opt.first_step(zero_grad=True)), ("second", lambda: scaler.step(opt))):
        factor = torch.inf if name == overflows_in else 1.0
        (scaler.scale(loss(model, batch)) * factor).backward()
        if unscales:
            scaler.unscale_(opt)
        call()
        if unscales or name == "second":
            scaler.update()
    assert same(snapshot(model), before)
    assert (scaler.get_scale(), opt.param_groups[0]["perturbation_step"]) == (
        2.0 if unscales and overflows_in == "first" else 4.0,
        0,
    )


def test_a_scaler_must_not_pass_a_closure_on():
    model, batch = mlp(torch.float32), data(dtype=torch.float32)
    opt, before = build(model), snapshot(model)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss(model, batch)).backward()
    with pytest.raises(
        fm.ClosureError, match=r"GradScaler\.step\(optimizer, closure\).*first_step\(\), run the second"
    ):
        scaler.step(opt, lambda: backward(model, batch))
    assert same(snapshot(model), before)


def test_a_compiled_model_is_not_compiled_again():
    model, plain, graphs = mlp(), mlp(), []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend)
    a, b = build(model), build(plain)
    for _ in range(3):
        two_calls(a, compiled)
        two_calls(b, plain)
    assert len(graphs) == 1
    assert close(model, plain, 1e-12)


def test_the_closure_of_step():
    model = mlp()
    opt = build(model)
    backward(model, data())
    with torch.no_grad():
        value = opt.step(lambda: backward(model, data()))
    assert not value.requires_grad
    backward(model, data())
    assert opt.step(lambda: backward(model, data()) and None) is None


@pytest.mark.parametrize("momentum", [0.1, None])
def test_statistics_stand_still_while_disabled(momentum):
    model, x = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=momentum)), torch.randn(8, 3)
    model(x)
    before, expected = snapshot(model), model(x)
    model.load_state_dict(before)
    disable_running_stats(model)
    disable_running_stats(model)
    assert torch.equal(model(x), expected)  # normalised by the batch, as in training
    assert same(snapshot(model), before)
    evaluated = model.eval()(x)
    copied = pickle.loads(pickle.dumps(model))
    for net in (model, copied):
        enable_running_stats(net)
        enable_running_stats(net)
        assert torch.equal(net(x), evaluated)  # evaluation used the statistics all along
        assert net[1].momentum == momentum
        net.train()(x)
        assert net[1].num_batches_tracked == 2
    assert not same(snapshot(model), before)


def test_a_module_without_statistics_stays_without():
    model = nn.BatchNorm1d(3, track_running_stats=False)
    disable_running_stats(model)
    enable_running_stats(model)
    assert not model.track_running_stats


def test_a_script_with_the_helpers_moves_statistics_once():
    with_helpers, without = with_state(), with_state()
    for model in (with_helpers, without):
        model[2].p = 0.0
    a, b, batch = build(with_helpers), build(without), data(dtype=torch.float32)
    for _ in range(3):
        enable_running_stats(with_helpers)
        backward(with_helpers, batch)
        a.first_step(zero_grad=True)
        disable_running_stats(with_helpers)
        backward(with_helpers, batch)
        a.second_step(zero_grad=True)
        two_calls(b, without, batch)
    assert same(snapshot(with_helpers), snapshot(without))
