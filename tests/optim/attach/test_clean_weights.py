"""Whoever looks at the weights finds them clean: evaluations, checkpoints, copies, averages, optimizers."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from torch import nn

from attach_cases import COUNT, attached, close, displacement, gradients, gradients_at, sgd, weights
from problems import closure_of, data, loss, mlp, same, snapshot


def outstanding(model):
    """Return a loss whose backward pass is still to come."""
    value = loss(model, data())
    assert not same(weights(model), weights(mlp()))
    return value


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_training_mode_without_gradients_is_an_evaluation(context):
    model = mlp()
    attached(model)
    with context():
        assert torch.equal(model(data()[0]), mlp()(data()[0]))
    assert same(snapshot(model), snapshot(mlp()))


def test_training_and_evaluation_in_turns():
    """Evaluations change nothing in a run: neither its noise nor its weights."""
    ends = []
    for evaluates in (False, True):
        model = mlp()
        optimizer, _ = attached(model)
        for _ in range(3):
            for half in range(2):
                if evaluates:
                    clean = copy.deepcopy(model).eval()
                    with torch.no_grad():
                        assert torch.equal(model.eval()(data()[0]), clean(data()[0]))
                    model.train()
                value = loss(model, data()) / 2
                if evaluates and half:
                    with torch.no_grad():
                        assert torch.equal(model(data()[0]), clean(data()[0]))
                value.backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append(snapshot(model))
    assert same(*ends)
    assert optimizer.param_groups[0][COUNT] == 6


LOOKS = {
    "state_dict": lambda model: model.state_dict(),
    "state_dict of a part": lambda model: (
        {f"0.{k}": v for k, v in model[0].state_dict().items()}
        | {f"2.{k}": v for k, v in model[2].state_dict().items()}
    ),
    "state_dict of what contains it": lambda model: {
        k.removeprefix("0."): v for k, v in nn.Sequential(model).state_dict().items()
    },
    "deepcopy": lambda model: copy.deepcopy(model).state_dict(),
    "deepcopy of what contains it": lambda model: copy.deepcopy(nn.ModuleList([model]))[0].state_dict(),
    "pickle": lambda model: pickle.loads(pickle.dumps(model)).state_dict(),
    "torch.save": lambda model: through_a_file(model).state_dict(),
    "averaged": lambda model: torch.optim.swa_utils.AveragedModel(model).module.state_dict(),
}


def through_a_file(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("look", LOOKS)
def test_a_look_between_forward_and_backward(look):
    model = mlp()
    attached(model)
    value = outstanding(model)
    assert same(LOOKS[look](model), snapshot(mlp()))
    assert same(snapshot(model), snapshot(mlp()))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()
    model.zero_grad()
    loss(model, data()).backward()  # and on it goes, with the same noise
    close(gradients(model), gradients_at(mlp(), displacement(model, 0), data()))


class Scaled(nn.Module):
    """Its own parameter is copied before any hook on it is."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3).double())
        self.inner = mlp()

    def forward(self, x):
        return self.scale * self.inner(x)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: through_a_file(model)])
def test_a_copy_of_a_model_that_holds_parameters_itself(copied):
    model = Scaled()
    attached(model)
    value = model(data()[0])
    assert not torch.equal(model.scale, torch.ones(3).double())
    assert same(copied(model).state_dict(), Scaled().state_dict())
    del value


@pytest.mark.loop("pickle, deepcopy", method="attach")
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_carries_no_hook_of_the_original(how):
    model = mlp()
    optimizer, _ = attached(model)
    twin, twin_optimizer = (
        copy.deepcopy((model, optimizer)) if how == "deepcopy" else pickle.loads(pickle.dumps((model, optimizer)))
    )
    before = weights(model)
    loss(twin, data()).backward()
    assert same(weights(model), before)
    close(gradients(twin), gradients_at(mlp(), [0.0] * 4, data()))
    twin_optimizer.step()
    assert same(weights(model), before)
    assert COUNT not in optimizer.param_groups[0]
    assert optimizer.param_groups[0]["perturbation_step"] == 0
    loss(model, data()).backward()
    assert optimizer.param_groups[0][COUNT] == 1


def test_loading_weights_between_forward_and_backward_is_not_undone():
    model, other = mlp(), torch.nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    optimizer, _ = attached(model, sgd(model, lr=0.0))
    value = outstanding(model)
    model.load_state_dict(other.state_dict())
    del value
    assert same(snapshot(model), snapshot(other))
    value = outstanding(model)
    model[0].load_state_dict(mlp()[0].state_dict())
    loss(model, data()).backward()
    optimizer.step()
    assert same(snapshot(model[0]), snapshot(mlp()[0]))
    del value


def test_averages_of_weights_are_of_clean_ones():
    ends = []
    for smooths in (False, True):
        model = mlp()
        optimizer = attached(model, sgd(model, lr=0.0))[0] if smooths else sgd(model, lr=0.0)
        averages = [
            torch.optim.swa_utils.AveragedModel(model),
            torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)),
        ]
        for step in range(4):
            loss(model, data()).backward()
            optimizer.step()
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(0.1 * step)
            for average in averages:
                average.update_parameters(model)
        ends.append([average.state_dict() for average in averages])
        loss(averages[0], data()).backward()  # the copy is a plain model
    assert all(same(a, b) for a, b in zip(*ends))


def test_batch_norm_statistics_are_updated_on_clean_weights():
    model = nn.Sequential(mlp(), nn.BatchNorm1d(3).double())
    attached(model)
    torch.optim.swa_utils.update_bn([data()[0]], model)
    plain = nn.Sequential(mlp(), nn.BatchNorm1d(3).double())
    torch.optim.swa_utils.update_bn([data()[0]], plain)
    assert same(snapshot(model), snapshot(plain))


def test_an_optimizer_that_evaluates_a_closure_steps_from_clean_weights():
    """Each evaluation is a micro-batch; the graph that the closure leaves behind does not outlive it."""
    model, other = mlp(), mlp()
    optimizer, _ = attached(model, sgd(model, momentum=0.9))
    reference = sgd(other, momentum=0.9)
    kept = []

    def retaining():
        optimizer.zero_grad()
        kept.append(loss(model, data()))
        kept[-1].backward(retain_graph=True)
        return kept[-1]

    for number, closure in enumerate((closure_of(optimizer, model, data()), retaining) * 2):
        found = gradients_at(other, displacement(other, number), data())
        for p, g in zip(other.parameters(), found):
            p.grad = g
        optimizer.step(closure) if number % 3 else optimizer.step(closure=closure)
        reference.step()
        for a, b in zip(model.parameters(), other.parameters()):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    assert optimizer.param_groups[0][COUNT] == 4


def test_a_closure_that_fails_restores():
    model = mlp()
    optimizer, _ = attached(model)
    kept = []

    def closure():
        kept.append(loss(model, data()))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        optimizer.step(closure)
    assert same(snapshot(model), snapshot(mlp()))
    assert optimizer.param_groups[0]["perturbation_step"] == 0


def test_the_optimizer_steps_from_clean_weights_though_a_graph_is_held():
    model = mlp()
    optimizer, _ = attached(model, sgd(model, lr=0.0))
    value = outstanding(model)
    optimizer.step()
    assert same(snapshot(model), snapshot(mlp()))
    del value
    assert same(snapshot(model), snapshot(mlp()))


@pytest.mark.parametrize("how", ["remove", "context", "restore"])
def test_the_handle_puts_weights_back(how):
    model = mlp()
    optimizer, handle = attached(model)
    hooks = [*map(len, (model._forward_pre_hooks, model._forward_hooks, model[0]._state_dict_pre_hooks))]
    assert hooks == [1, 1, 1]
    value = outstanding(model)
    if how == "context":
        with handle:
            pass
    else:
        getattr(handle, how)()
    assert same(snapshot(model), snapshot(mlp()))
    del value
    if how != "restore":
        assert handle.model is None
        handle.remove()  # a second time does nothing
        for module in model.modules():
            for kind in ("_forward_pre_hooks", "_forward_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks"):
                assert not getattr(module, kind), kind
        for kind in ("step_pre", "step_post", "state_dict_post", "load_state_dict_pre", "load_state_dict_post"):
            assert not getattr(optimizer, f"_optimizer_{kind}_hooks"), kind
        loss(model, data()).backward()
        close(gradients(model), gradients_at(mlp(), [0.0] * 4, data()))


def test_nothing_is_kept_alive_and_weights_that_outlive_the_model_are_clean():
    gc.collect()
    gc.disable()
    try:
        model = mlp()
        optimizer, handle = attached(model)
        loss(model, data()).backward()
        optimizer.step()
        alive = [weakref.ref(handle._smoother), weakref.ref(model)]
        del handle
        assert alive[0]() is not None  # the model holds it
        before, value = snapshot(model), model(data()[0])
        parameters = list(model.parameters())
        assert not torch.equal(parameters[0], before["0.weight"])
        del value, model
        assert [reference() for reference in alive] == [None, None]
        assert same(parameters, list(before.values()))
        for p in parameters:
            p.grad = torch.zeros_like(p)
        optimizer.step()
        alive = weakref.ref(optimizer)
        del optimizer
        assert alive() is None

        model = mlp()
        optimizer, handle = attached(model)
        alive = [weakref.ref(optimizer), weakref.ref(model), weakref.ref(handle)]
        del model
        assert handle.model is None
        del handle, optimizer
        assert [reference() for reference in alive] == [None] * 3
    finally:
        gc.enable()


@pytest.mark.loop("every kind", method="attach")
def test_frozen_unused_tied_and_low_precision_parameters():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
            self.b.weight = self.a.weight
            self.small = nn.Linear(6, 3).bfloat16()
            self.unused = nn.Linear(2, 2)
            self.frozen = nn.Linear(6, 6).requires_grad_(False)

        def forward(self, x):
            return self.small(self.frozen(self.b(torch.tanh(self.a(x)))).bfloat16()).float()

    torch.manual_seed(0)
    model = Net()
    optimizer, handle = attached(model, sgd(model, lr=0.0, momentum=0.9))
    before = snapshot(model)
    for _ in range(3):
        value = loss(model, data(dtype=torch.float32))
        assert same(snapshot(model), before)  # that was a look
        value = loss(model, data(dtype=torch.float32))
        moved = {name for name, p in model.named_parameters() if not torch.equal(p.detach(), before[name])}
        assert moved == {name for name, p in model.named_parameters() if p.requires_grad}
        value.backward()
        assert same(snapshot(model), before)
        optimizer.step()
    assert handle.trace_estimate is None
    assert same(snapshot(model), before)
