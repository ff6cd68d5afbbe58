"""Saved and loaded, pickled and copied: the run goes on as if nothing had happened, bit for bit."""

import copy
import inspect
import io
import pickle

import numpy as np
import pytest
import torch
from torch.optim import Optimizer

import flatmin as fm
from methods_table import every_method, methods_with_radius, wrapping_methods
from problems import closure_of, data, mlp, same, snapshot

BASES = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
}
every_base = pytest.mark.parametrize("base", BASES.values(), ids=BASES.keys())


def train(opt, model, steps):
    for _ in range(steps):
        opt.step(closure_of(opt, model, data()))


def through_a_file(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.loop("torch.save")
@every_method
@every_base
def test_resumed_equals_uninterrupted(method, base):
    whole = mlp()
    opt = method.build(base(whole.parameters()), **method.at(fm.schedules.linear(0.01, 0.1, 6)))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 8)
    for _ in range(3):
        train(opt, whole, 1)
        scheduler.step()
    saved = through_a_file({"model": whole.state_dict(), "opt": opt.state_dict(), "lr": scheduler.state_dict()})

    resumed = mlp()
    opt2 = method.build(base(resumed.parameters()), **method.at(fm.schedules.linear(0.01, 0.1, 6)))
    scheduler2 = torch.optim.lr_scheduler.CosineAnnealingLR(opt2, 8)
    resumed.load_state_dict(saved["model"])
    opt2.load_state_dict(saved["opt"])
    scheduler2.load_state_dict(saved["lr"])
    for _ in range(4):
        for o, m, s in ((opt, whole, scheduler), (opt2, resumed, scheduler2)):
            train(o, m, 1)
            s.step()
    assert same(snapshot(whole), snapshot(resumed))
    assert opt2.param_groups[0]["perturbation_step"] == 7
    if method.traces:
        assert opt.trace_estimate.value == opt2.trace_estimate.value
        assert opt2.trace_estimate.num_matvecs == 7


@pytest.mark.loop("pickle, deepcopy")
@every_method
@every_base
@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_pickled_and_copied(method, base, how):
    model = mlp()
    opt = method.build(base(model.parameters()))
    torch.optim.lr_scheduler.ConstantLR(opt)  # puts a step of its own into the optimizer, which must not travel
    torch.optim.lr_scheduler.ConstantLR(opt.base)
    train(opt, model, 3)
    pair = pickle.loads(pickle.dumps((model, opt))) if how == "pickle" else copy.deepcopy((model, opt))
    assert type(pair[1]) is type(opt)
    train(opt, model, 3)
    train(pair[1], pair[0], 3)
    assert same(snapshot(model), snapshot(pair[0]))


@every_method
@every_base
def test_nothing_the_size_of_the_model_but_what_the_base_keeps(method, base):
    def volume(state):
        if isinstance(state, torch.Tensor):
            return state.numel()
        if isinstance(state, dict):
            return sum(map(volume, state.values()))
        return sum(map(volume, state)) if isinstance(state, (list, tuple)) else 0

    model = mlp()
    opt = method.build(base(model.parameters()), trace_window=10)
    train(opt, model, 2)
    samples = 10 * len(list(model.parameters()))  # of the live trace: a number for each step and parameter tensor
    assert volume(opt.state_dict()) <= volume(opt.base.state_dict()) + samples
    assert all(isinstance(key, torch.Tensor) for key in opt.state)  # no string keys, which break other libraries


@every_method
def test_a_load_leaves_wrapper_and_base_joined(method):
    """Accelerate loads the state once at the start; elsewhere that unlinks the groups, and the wrapper's lr is dead."""
    model = mlp()
    opt = method.build(torch.optim.SGD(model.parameters(), lr=0.1))
    opt.load_state_dict(opt.state_dict())
    assert opt.param_groups is opt.base.param_groups
    for group in opt.param_groups:
        group["lr"] = 0.0
    before = snapshot(model)
    train(opt, model, 2)
    assert same(snapshot(model), before)


@every_method
def test_schedulers_attach_to_either_object(method):
    for attach_to_base in (False, True):
        model = mlp()
        opt = method.build(torch.optim.SGD(model.parameters(), lr=1.0))
        scheduler = torch.optim.lr_scheduler.ExponentialLR(opt.base if attach_to_base else opt, gamma=0.5)
        for step in range(3):  # warnings are errors here: torch must see that step() came before scheduler.step()
            train(opt, model, 1)
            scheduler.step()
            assert opt.param_groups[0]["lr"] == opt.base.param_groups[0]["lr"] == 0.5 ** (step + 1)


@wrapping_methods
def test_a_plain_checkpoint_of_the_base_loads(method):
    model = mlp()
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        base.step(closure_of(base, model, data()))
    opt = method.build(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    opt.load_state_dict(base.state_dict())
    assert len(opt.state) == 4
    for name in method.at(0):
        assert opt.param_groups[0][name] == method.arguments[name]
    train(opt, model, 1)


@wrapping_methods
def test_a_base_that_has_trained_already_keeps_its_state(method):
    model = mlp()
    base = torch.optim.AdamW(model.parameters())
    base.step(closure_of(base, model, data()))
    opt = method.build(base)
    assert opt.state is base.state
    assert len(opt.state) == 4


def test_signatures_are_torchs():
    """A renamed parameter of load_state_dict once kept a library's users from resuming under sharding."""
    for name in ("step", "zero_grad", "state_dict", "load_state_dict", "add_param_group", "register_step_pre_hook",
                 "register_state_dict_pre_hook", "register_state_dict_post_hook",
                 "register_load_state_dict_pre_hook", "register_load_state_dict_post_hook"):  # fmt: skip
        ours = inspect.signature(getattr(fm.NSO, name)).parameters.values()
        theirs = inspect.signature(getattr(Optimizer, name)).parameters.values()
        assert [(p.name, p.kind, p.default) for p in ours] == [(p.name, p.kind, p.default) for p in theirs], name


@every_method
def test_hooks(method):
    model, seen = mlp(), []
    opt = method.build(torch.optim.SGD(model.parameters(), lr=0.1))
    opt.register_step_pre_hook(lambda *_: seen.append("before"))
    opt.register_step_post_hook(lambda *_: seen.append("after"))
    opt.register_state_dict_pre_hook(lambda *_: seen.append("saving"))
    opt.register_state_dict_post_hook(lambda *_: seen.append("saved"))
    opt.register_load_state_dict_pre_hook(lambda *_: seen.append("loading"))
    opt.register_load_state_dict_post_hook(lambda *_: seen.append("loaded"))
    train(opt, model, 1)
    opt.load_state_dict(opt.state_dict())
    assert seen == ["before", "after", "saving", "saved", "loading", "loaded"]


def test_functions_as_radii_stay_out_of_the_checkpoint_and_in_the_optimizer():
    model = mlp()
    opt = fm.NSO(torch.optim.SGD(model.parameters(), lr=0.1), sigma=lambda step: 0.01)
    state = opt.state_dict()
    assert "sigma" not in state["param_groups"][0]
    opt.load_state_dict(through_a_file(state))
    assert opt._groups.radii()["sigma"] == 0.01
    number = fm.NSO(torch.optim.SGD(model.parameters(), lr=0.1), sigma=0.3)
    assert number.state_dict()["param_groups"][0]["sigma"] == 0.3
    opt.load_state_dict(number.state_dict())  # a function here stays, whatever the checkpoint had
    assert opt._groups.radii()["sigma"] == 0.01
    number.load_state_dict(opt.state_dict())  # and where the checkpoint has none, the number here
    assert number._groups.radii()["sigma"] == 0.3


def test_a_function_of_one_group_stays_too():
    model = mlp()
    groups = [{"params": model[0].parameters(), "sigma": lambda step: 0.2}, {"params": model[2].parameters()}]
    opt = fm.NSO(torch.optim.SGD(groups, lr=0.1), sigma=0.3)
    opt.load_state_dict(through_a_file(opt.state_dict()))
    assert opt._groups.radii()["sigma"].values == (0.2, 0.2, 0.3, 0.3)


def test_a_number_of_one_group_stays_beside_a_function_for_the_others():
    model = mlp()
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "sigma": 0.0}]
    opt = fm.NSO(torch.optim.SGD(groups, lr=0.1), sigma=fm.schedules.linear(0.1, 0.2, 10))
    opt.load_state_dict(through_a_file(opt.state_dict()))
    assert opt._groups.radii()["sigma"].values == (0.1, 0.1, 0.0, 0.0)


@methods_with_radius
def test_numbers_of_numpy_load_with_weights_only(method):
    opt = method.build(torch.optim.SGD(mlp().parameters(), lr=0.1), **method.at(np.float64(0.05)))
    assert through_a_file(opt.state_dict())["param_groups"][0][method.radius] == 0.05


def test_a_checkpoint_without_samples_or_with_another_window_starts_the_trace_anew():
    model = mlp()
    opt = fm.NSO(torch.optim.SGD(model.parameters(), lr=0.1), sigma=0.05, trace_window=4)
    train(opt, model, 2)
    for state in (opt.base.state_dict(), fm.NSO(torch.optim.SGD(model.parameters()), sigma=0.1).state_dict()):
        train(opt, model, 1)
        assert opt.trace_estimate is not None
        opt.load_state_dict(state)
        assert opt.trace_estimate is None
    train(opt, model, 1)
    assert opt.trace_estimate.num_matvecs == 1


@every_method
def test_groups_given_to_the_base_itself_take_part(method):
    model = mlp()
    opt = method.build(torch.optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9))
    train(opt, model, 2)
    opt.base.add_param_group({"params": model[2].parameters()})
    train(opt, model, 1)
    assert opt.param_groups[1]["perturbation_step"] == 3
    opt.base.load_state_dict(torch.optim.SGD(opt.param_groups, lr=0.1).state_dict())
    train(opt, model, 1)


@pytest.mark.loop("safetensors")
@every_method
@every_base
def test_weights_in_safetensors(method, base, tmp_path):
    from safetensors.torch import load_model, save_model

    whole, resumed = mlp(), mlp()
    opt, opt2 = (method.build(base(model.parameters())) for model in (whole, resumed))
    train(opt, whole, 3)
    save_model(whole, str(tmp_path / "weights.safetensors"))
    load_model(resumed, str(tmp_path / "weights.safetensors"))
    opt2.load_state_dict(through_a_file(opt.state_dict()))
    for o, m in ((opt, whole), (opt2, resumed)):
        train(o, m, 3)
    assert same(snapshot(whole), snapshot(resumed))


@pytest.mark.loop("DCP")
@every_method
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("scheduled", [False, True])
def test_distributed_checkpoint_round_trip(method, flat, scheduled):
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    model = mlp()
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    radius = method.at(fm.schedules.linear(0.01, 0.1, 5) if scheduled else 0.05)
    opt = method.build(torch.optim.AdamW(model.parameters()), **radius)
    train(opt, model, 3)
    state, weights = get_optimizer_state_dict(model, opt, options=options), copy.deepcopy(model.state_dict())
    assert ("exp_avg" if method.wraps else "precision") in str(state.keys() if flat else state["state"])
    resumed = mlp()
    opt2 = method.build(torch.optim.AdamW(resumed.parameters()), **radius)
    resumed.load_state_dict(weights)
    set_optimizer_state_dict(resumed, opt2, copy.deepcopy(state), options=options)
    assert opt2.param_groups[0]["perturbation_step"] == 3
    train(opt, model, 2)
    train(opt2, resumed, 2)
    assert same(snapshot(model), snapshot(resumed))
