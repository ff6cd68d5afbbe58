"""The loops that people have: mixed precision, clipping, schedulers, compiled models, frameworks around optimizers."""

import copy
import re
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import flatmin as fm
from attach_cases import COUNT, STEP, attached, close, displacement, gradients, gradients_at, sgd, weights
from flatmin.optim.attach import attach
from problems import data, loss, mlp, same, seeded, snapshot, with_state


@pytest.mark.loop("GradScaler", "clipping", method="attach")
@pytest.mark.parametrize("clip", [False, True])
def test_grad_scaler_accumulation_and_clipping_equal_full_precision(clip):
    ends = []
    for enabled in (False, True):
        model, batch = mlp(torch.float32), data(dtype=torch.float32)
        optimizer = sgd(model, momentum=0.9)
        scaler = torch.amp.GradScaler("cpu", enabled=enabled, init_scale=2.0**12, growth_interval=2)
        handle = attach(model, optimizer, sigma=0.05, scaler=scaler)
        for _ in range(5):
            for x, y in zip(batch[0].chunk(2), batch[1].chunk(2)):
                scaler.scale(loss(model, (x, y)) / 2).backward()
            if clip:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        ends.append((snapshot(model), handle.trace_estimate))
    for name, value in ends[0][0].items():
        torch.testing.assert_close(value, ends[1][0][name], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ends[0][1].value, ends[1][1].value, rtol=1e-3, atol=1e-3)


@pytest.mark.loop("GradScaler", method="attach")
def test_an_overflow_that_the_scaler_skips():
    model, batch = mlp(torch.float32), data(dtype=torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    optimizer, handle = attached(model, scaler=scaler)
    before = snapshot(model)
    (scaler.scale(loss(model, batch)) * 4).backward()
    scaler.step(optimizer)
    scaler.update(2.0**10)
    assert same(snapshot(model), before)
    assert (optimizer.param_groups[0][STEP], optimizer.param_groups[0][COUNT]) == (0, 1)
    optimizer.zero_grad()
    scaler.scale(loss(model, batch)).backward()
    scaler.step(optimizer)
    assert not same(snapshot(model), before)
    assert torch.isfinite(torch.tensor(handle.trace_estimate.value))


@pytest.mark.loop("autocast", method="attach")
@pytest.mark.parametrize("outside", [False, True])
def test_autocast(outside):
    """Autocast keeps its copies of the weights for as long as it lasts; they must not hide the displacement."""
    model, batch = mlp(torch.float32), data(dtype=torch.float32)
    attached(model, sgd(model, lr=0.0), sigma=0.5)
    losses = []
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=outside):
        for _ in range(3):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                value = loss(model, batch)
            value.backward()
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                losses += [float(value.detach()), float(loss(model, batch))]
    plain = mlp(torch.float32)
    for number in range(3):
        displaced = copy.deepcopy(plain)
        with torch.no_grad():
            for p, u in zip(displaced.parameters(), displacement(plain, number, sigma=0.5)):
                p.add_(u)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                expected = [float(loss(displaced, batch)), float(loss(plain, batch))]
        torch.testing.assert_close(losses[2 * number : 2 * number + 2], expected, rtol=1e-2, atol=1e-2)
        assert abs(losses[2 * number] - losses[2 * number + 1]) > 0.03


def test_batch_norm_and_dropout_behave_as_in_plain_training():
    """One forward pass a micro-batch: at no noise bitwise, at any noise in what they draw and how often they move."""
    ends = []
    for sigma in (None, 0.0, 0.05):
        model = with_state()
        optimizer = sgd(model, lr=0.0)
        if sigma is not None:
            attach(model, optimizer, sigma=sigma)

        def run(model=model, optimizer=optimizer):
            for _ in range(4):
                loss(model, data(dtype=torch.float32)).backward()
                optimizer.step()
            return torch.get_rng_state()

        ends.append((seeded(run, 7), snapshot(model)))
    assert same(ends[0][1], ends[1][1])
    for state, end in ends[1:]:
        assert torch.equal(state, ends[0][0])
        assert int(end["1.num_batches_tracked"]) == 4


def test_global_generators_are_left_alone():
    model = mlp()
    attached(model)
    state = torch.get_rng_state()
    loss(model, data()).backward()
    assert torch.equal(torch.get_rng_state(), state)


def test_schedulers_attach_as_before():
    model = mlp()
    optimizer = sgd(model, lr=1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    attach(model, optimizer, sigma=0.01)
    for step in range(3):  # warnings are errors here: torch must see that step() came before scheduler.step()
        loss(model, data()).backward()
        optimizer.step()
        scheduler.step()
        assert optimizer.param_groups[0]["lr"] == 0.5 ** (step + 1)
    assert optimizer.param_groups[0][STEP] == 3


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = mlp(torch.float32)

    def forward(self, x):
        return self.inner(x)


def compiled_in_place(model):
    model.compile(backend="aot_eager")
    return model


COMPILED = {
    "what torch.compile returned": lambda m: (torch.compile(m, backend="aot_eager"),) * 2,
    "what torch.compile returned, whole": lambda m: (torch.compile(m, backend="aot_eager", fullgraph=True),) * 2,
    "what was given to torch.compile": lambda m: (m, torch.compile(m, backend="aot_eager")),
    "compiled in place": lambda m: (compiled_in_place(m),) * 2,
}


@pytest.mark.loop("compile", method="attach")
@pytest.mark.parametrize("how", COMPILED)
def test_a_compiled_model_is_compiled_once_without_breaks_and_sees_every_displacement(how):
    import torch._dynamo as dynamo

    dynamo.reset()
    dynamo.utils.counters.clear()
    model = Net()
    to_attach, to_call = COMPILED[how](model)
    optimizer, _ = attached(to_attach, sgd(model))
    other = Net()
    reference, _ = attached(other)
    for _ in range(3):
        for net, o in ((to_call, optimizer), (other, reference)):
            for _ in range(2):
                loss(net, data(dtype=torch.float32)).backward()
            o.step()
            o.zero_grad()
    assert dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not dynamo.utils.counters["graph_break"]
    assert optimizer.param_groups[0][COUNT] == 6
    for a, b in zip(model.parameters(), other.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    value = loss(to_call, data(dtype=torch.float32))
    found = list(model.state_dict().values())
    close(found, weights(other), rtol=1e-5, atol=1e-6)
    del value
    dynamo.reset()


def test_a_container_compiled_after_it_was_attached_works_with_a_break():
    """torch traces the call of its own containers with their hooks, which is why to attach to what compile returned."""
    import torch._dynamo as dynamo

    dynamo.reset()
    model = mlp(torch.float32)
    optimizer, _ = attached(model)
    before = weights(model)
    loss(torch.compile(model, backend="aot_eager"), data(dtype=torch.float32)).backward()
    expected = gradients_at(mlp(torch.float32), displacement(model, 0), data(dtype=torch.float32))
    close(gradients(model), expected, rtol=1e-5, atol=1e-6)
    assert same(weights(model), before)
    assert optimizer.param_groups[0][COUNT] == 1
    dynamo.reset()


class Accelerated(torch.optim.Optimizer):
    """As Accelerate wraps optimizers: it skips steps while micro-batches accumulate, and hands on the others."""

    def __init__(self, optimizer):
        self.optimizer, self.steps = optimizer, True

    param_groups = property(lambda self: self.optimizer.param_groups)
    state = property(lambda self: self.optimizer.state)
    defaults = property(lambda self: self.optimizer.defaults)

    def step(self, closure=None):
        if self.steps:
            self.optimizer.step(closure)

    def zero_grad(self, set_to_none=None):
        if self.steps:
            self.optimizer.zero_grad()


def test_a_wrapper_of_a_framework_is_looked_into():
    model = mlp()
    optimizer = Accelerated(Accelerated(sgd(model)))
    optimizer.optimizer.load_state_dict = optimizer.optimizer.optimizer.load_state_dict
    handle = attach(model, optimizer, sigma=0.05)
    assert type(handle.optimizer) is torch.optim.SGD
    handle.optimizer.load_state_dict(handle.optimizer.state_dict())  # Accelerate's round trip when it prepares
    for step in range(2):
        for micro in range(2):
            optimizer.steps = micro == 1
            (loss(model, data()) / 2).backward()
            optimizer.step()
            if micro == 0:
                found = gradients(model)
            optimizer.zero_grad()
        assert handle.optimizer.param_groups[0][STEP] == step + 1
        assert handle.optimizer.param_groups[0][COUNT] == 2 * (step + 1)
    assert found is not None


def test_parameters_exchanged_in_the_groups_are_displaced():
    """As Accelerate exchanges them when it shards a model."""
    model = mlp()
    optimizer, _ = attached(model)
    for name in ("0.weight", "0.bias", "2.weight", "2.bias"):
        module = model.get_submodule(name.split(".")[0])
        setattr(module, name.split(".")[1], nn.Parameter(getattr(module, name.split(".")[1]).detach().clone()))
    optimizer.param_groups[0]["params"] = list(model.parameters())
    before = weights(model)
    value = model(data()[0])
    close([p.detach() - w for p, w in zip(model.parameters(), before)], displacement(mlp(), 0), rtol=1e-9)
    value.sum().backward()
    assert same(weights(model), before)


@pytest.mark.loop("NaN", method="attach")
def test_nan_goes_its_way_and_the_weights_come_back():
    model = mlp()
    attached(model)
    before = snapshot(model)
    (loss(model, data()) * float("nan")).backward()
    assert same(snapshot(model), before)
    assert model[0].weight.grad.isnan().all()


def test_parameters_of_the_loss_take_part():
    """A temperature that the optimizer holds beside the model's parameters moves with them and comes back with them."""
    model, temperature = mlp(), nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    optimizer = torch.optim.SGD([*model.parameters(), temperature], lr=0.0)
    attach(model, optimizer, sigma=0.05)
    output = model(data()[0]) / temperature
    assert float(temperature.detach()) != 2.0
    output.sum().backward()
    assert float(temperature.detach()) == 2.0


def step_without_forward(model, optimizer):
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()


def test_a_step_that_nothing_was_smoothed_for_warns_once():
    model = mlp().eval()
    optimizer, _ = attached(model)
    loss(model, data()).backward()
    with pytest.warns(UserWarning, match=r"nothing was smoothed.*evaluation mode.*another module"):
        optimizer.step()
    optimizer.step()
    model = mlp()
    optimizer, _ = attached(model)
    for _ in range(2):
        loss(model, data()).backward()
        optimizer.step()
    with pytest.warns(UserWarning, match="nothing was smoothed"):
        step_without_forward(model, optimizer)


def test_no_warning_where_nothing_should_be_smoothed():
    for sigma, lr in ((0.0, 0.1), (0.1, 0.0)):  # at lr = 0 distributed checkpoints step to fill the optimizer's state
        model = mlp()
        optimizer, _ = attached(model, sgd(model, lr=lr), sigma=sigma)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            step_without_forward(model, optimizer)


@pytest.mark.loop("DCP", method="attach")
def test_distributed_checkpoint_round_trip():
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    models = [mlp(), mlp()]
    optimizers = [torch.optim.AdamW(model.parameters()) for model in models]
    for model, optimizer in zip(models, optimizers):
        attach(model, optimizer, sigma=0.05)

    def train(model, optimizer, steps):
        for _ in range(steps):
            loss(model, data()).backward()
            optimizer.step()
            optimizer.zero_grad()

    train(models[0], optimizers[0], 3)
    state = get_optimizer_state_dict(models[0], optimizers[0])
    models[1].load_state_dict(copy.deepcopy(models[0].state_dict()))
    set_optimizer_state_dict(models[1], optimizers[1], copy.deepcopy(state))
    assert optimizers[1].param_groups[0][COUNT] == 3
    for model, optimizer in zip(models, optimizers):
        train(model, optimizer, 2)
    assert same(snapshot(models[0]), snapshot(models[1]))


def test_the_code_on_its_page_runs(monkeypatch, capsys):
    monkeypatch.setattr(fm, "attach", attach, raising=False)
    page = (Path(__file__).resolve().parents[3] / "docs" / "methods" / "attach.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    exec(compile(code, "attach.md", "exec"), {})
    assert capsys.readouterr().out.startswith("TraceEstimate(")


def test_an_interrupt_leaves_nothing_behind_that_a_step_or_a_checkpoint_would_see():
    """torch tells nobody of a KeyboardInterrupt in a forward pass, which a notebook goes on after."""
    model = Net()
    optimizer, _ = attached(model, sgd(model, lr=0.0))
    before = snapshot(model)
    interrupt = model.inner[1].register_forward_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        loss(model, data(dtype=torch.float32))
    interrupt.remove()
    with torch.no_grad():
        assert torch.equal(model(data(dtype=torch.float32)[0]), Net()(data(dtype=torch.float32)[0]))
    loss(model, data(dtype=torch.float32)).backward()
    optimizer.step()
    assert same(weights(model), list(before.values()))
    loss(model, data(dtype=torch.float32)).backward()
    assert same(weights(model), list(before.values()))
    assert optimizer.param_groups[0][COUNT] == 2
