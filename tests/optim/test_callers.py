"""Callers whose loops would train wrongly without a word: refused, with what to do instead."""

import sys
import types

import pytest
import torch

import flatmin as fm
from flatmin import ArgumentError, ArgumentTypeError, ClosureError, ProbeError
from methods_table import every_method, rows
from problems import closure_of, data, loss, mlp, same, snapshot

SGD = torch.optim.SGD


def without_clearing(model, batch):
    def closure():
        value = loss(model, batch)
        value.backward()
        return value

    return closure


@every_method
def test_a_closure_over_accumulated_gradients_that_does_not_clear_them_is_refused(method):
    """So Lightning calls under accumulation: the last micro-batch's closure, over the gradients of the earlier ones."""
    model = mlp()
    opt = method.build(SGD(model.parameters(), lr=0.1))
    for number in range(2):
        before = snapshot(model)
        loss(model, data()).backward()
        with pytest.raises(ClosureError, match=r"had been accumulated.*does not clear.*opt\.probes.*attach.*compat"):
            opt.step(without_clearing(model, data()))
        assert same(snapshot(model), before)
        opt.zero_grad()
        opt.step(without_clearing(model, data()))  # nothing accumulated: nothing to refuse
        opt.zero_grad(set_to_none=number == 0)


@every_method
@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("way", ["optimizer", "model"])
def test_a_closure_that_clears_accumulated_gradients_is_right(method, way, set_to_none):
    model, other = mlp(), mlp()
    for net, first in ((model, True), (other, False)):
        opt = method.build(SGD(net.parameters(), lr=0.1))
        if first:
            loss(net, data(seed=9)).backward()  # of another loss, and not wanted

        def closure(net=net, opt=opt):
            (opt if way == "optimizer" else net).zero_grad(set_to_none=set_to_none)
            return without_clearing(net, data())()

        for _ in range(2):
            opt.step(closure)
    assert same(snapshot(model), snapshot(other))


@every_method
def test_gradients_left_from_the_last_step_are_no_accumulation(method):
    model, other = mlp(), mlp()
    for net, clears in ((model, False), (other, True)):
        opt = method.build(SGD(net.parameters(), lr=0.1))
        for _ in range(3):
            opt.step(without_clearing(net, data()))
            if clears:
                opt.zero_grad()
    assert same(snapshot(model), snapshot(other))


@every_method
def test_a_closure_given_to_grad_scaler_is_refused(method):
    """torch passes a positional closure on, whose gradients are then 65536 times too large."""
    model, batch = mlp(torch.float32), data(dtype=torch.float32)
    opt = method.build(SGD(model.parameters(), lr=0.1))
    scaler = torch.amp.GradScaler("cpu")

    def closure():
        opt.zero_grad()
        scaler.scale(loss(model, batch)).backward()
        return loss(model, batch)

    closure()
    before = snapshot(model)
    with pytest.raises(ClosureError, match=r"GradScaler\.step\(opt, closure\).*scaler=scaler"):
        scaler.step(opt, closure)
    assert same(snapshot(model), before)


@rows(lambda m: not m.linear)
def test_a_loop_that_does_not_tell_of_its_grad_scaler(method):
    """Refused where the method looks at the size of gradients; SAM's ascent has the same length at every scale."""
    model, batch = mlp(torch.float32), data(dtype=torch.float32)
    opt = method.build(SGD(model.parameters(), lr=0.1))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**6)
    before = snapshot(model)
    for probe in opt.probes():
        with probe:
            scaler.scale(loss(model, batch)).backward()
    if method.cls in (fm.SAM, fm.ASAM):
        scaler.step(opt)
    else:
        with pytest.raises(ProbeError, match=r"was not told of it.*probes\(scaler=scaler\)"):
            scaler.step(opt)
        assert same(snapshot(model), before)


class GradientState:
    """The part of Accelerate's that is asked for."""

    _shared_state = {"num_steps": 4}
    num_steps = 4


def test_a_closure_under_accelerates_accumulation_is_refused(monkeypatch):
    module = types.ModuleType("accelerate.state")
    module.GradientState = GradientState
    monkeypatch.setitem(sys.modules, "accelerate.state", module)
    model = mlp()
    opt = fm.NSO(SGD(model.parameters(), lr=0.1), sigma=0.1)
    before = snapshot(model)
    with pytest.raises(ClosureError, match=r"accumulate with 4 micro-batches.*last of them alone.*probes.*attach"):
        opt.step(closure_of(opt, model, data()))
    assert same(snapshot(model), before)
    monkeypatch.setattr(GradientState, "num_steps", 1)
    opt.step(closure_of(opt, model, data()))


def foreign(name, base, module):
    return type(name, (base,), {"__module__": module})


def test_deepspeed_is_refused_as_optimizer_and_as_engine():
    zero = foreign("DeepSpeedZeroOptimizer", object, "deepspeed.runtime.zero.stage_1_and_2")()
    with pytest.raises(ArgumentTypeError, match=r"DeepSpeedZeroOptimizer of DeepSpeed.*FSDP2"):
        fm.NSO(zero, sigma=0.1)

    class Engine(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    model = foreign("DeepSpeedEngine", Engine, "deepspeed.runtime.engine")(mlp())
    opt = fm.NSO(SGD(model.parameters(), lr=0.1), sigma=0.1)
    with pytest.raises(ArgumentError, match=r"DeepSpeedEngine of DeepSpeed.*would not be seen.*FSDP2"):
        next(opt.probes())


def test_offloaded_gradients_are_refused():
    base = foreign("CPUOffloadOptimizer", SGD, "torchao.optim.cpu_offload")(mlp().parameters(), lr=0.1)
    with pytest.raises(ArgumentTypeError, match=r"copies each gradient away.*flatmin\.attach"):
        fm.NSO(base, sigma=0.1)


@every_method
def test_gradients_cleared_in_place_or_kept_over_a_load_are_no_accumulation(method):
    model = mlp()
    opt = method.build(SGD(model.parameters(), lr=0.1))
    for _ in range(3):
        opt.zero_grad(set_to_none=False)
        opt.step(without_clearing(model, data()))
    opt.load_state_dict(opt.state_dict())
    opt.step(without_clearing(model, data()))


@every_method
@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)])
def test_a_look_at_the_state_before_the_first_step_changes_nothing(method, lr):
    """torch makes the state by a step at learning rate 0, which is none."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    models = [mlp(), mlp()]
    for model, looks in zip(models, (True, False), strict=True):
        opt = method.build(SGD(model.parameters(), lr=lr))
        if looks:
            get_optimizer_state_dict(model, opt)
            assert opt.param_groups[0]["perturbation_step"] == 0
        for _ in range(2):
            opt.step(closure_of(opt, model, data()))
    assert same(snapshot(models[0]), snapshot(models[1]))


@every_method
def test_a_look_at_the_state_ends_a_loop_that_was_left_and_is_still_held(method):
    model = mlp()
    before = snapshot(model)
    opt = method.build(SGD(model.parameters(), lr=0.1))
    held = opt.probes()
    with next(held):
        loss(model, data()).backward()
    opt.state_dict()
    assert same(snapshot(model), before)
