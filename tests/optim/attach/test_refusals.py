"""What cannot be attached to is refused, with a message that says what to do instead."""

import pytest
import torch
from torch import nn

import flatmin as fm
from attach_cases import attached, sgd, weights
from flatmin import ArgumentError, ArgumentTypeError
from flatmin.optim.attach import attach
from problems import data, loss, mlp, same

BAD = [
    ({"sigma": -0.1}, ArgumentError, r"sigma is -0\.1, but it must be finite and at least 0"),
    ({"sigma": "0.1"}, ArgumentTypeError, r"sigma is '0.1', which is no number"),
    ({"sigma": lambda step: -1.0}, ArgumentError, r"sigma at step 0 is -1\.0.*schedule"),
    ({"sigma": {"*.bias": 0.0}}, ArgumentError, r"sigma has no entry for the parameter '0\.weight'"),
    ({"noise": "gausian"}, ArgumentError, "noise is 'gausian', but .*Did you mean 'gaussian'"),
    ({"noise_scale": "filters"}, ArgumentError, "noise_scale is 'filters', but .*Did you mean 'filter'"),
    ({"seed": -1}, ArgumentError, "seed is -1, but it must be at least 0"),
    ({"ranks": "share"}, ArgumentError, "ranks is 'share', but .*Did you mean 'shared'"),
    ({"trace_window": -1}, ArgumentError, "trace_window is -1, but it must be at least 0"),
    ({"scaler": 2.0}, ArgumentTypeError, r"scaler is 2\.0, but a torch\.amp\.GradScaler"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD, ids=lambda value: str(value)[:30])
def test_bad_arguments(options, error, message):
    model = mlp()
    optimizer = sgd(model)
    with pytest.raises(error, match=message):
        attached(model, optimizer, **options)
    assert not model._forward_pre_hooks
    assert not optimizer._optimizer_step_pre_hooks


def test_the_wrong_kinds_of_model_and_optimizer():
    model = mlp()
    for wrong, message in (
        ((sgd(model), model), "model is an optimizer; the model comes first"),
        ((model.forward, sgd(model)), "model is a method, but a torch.nn.Module is needed"),
        ((model, torch.optim.SGD), "optimizer is the class SGD; pass an instance"),
        ((model, model), "optimizer is a Sequential, but a torch.optim.Optimizer is needed"),
    ):
        with pytest.raises(ArgumentTypeError, match=message):
            attach(*wrong, sigma=0.1)
    with pytest.raises(ArgumentTypeError, match=r"ScriptModule, which takes no hooks"):
        script = torch.jit.script(nn.Linear(2, 2))
        attach(script, torch.optim.SGD(script.parameters()), sigma=0.1)


def test_a_scripted_part_is_no_obstacle():
    model = nn.Sequential(torch.jit.script(nn.Linear(6, 12)), mlp()[2].float())
    attached(model)
    before = weights(model)
    loss(model, data(dtype=torch.float32)).backward()
    assert same(weights(model), before)


def test_an_optimizer_of_another_model_or_of_nothing():
    model = mlp()
    with pytest.raises(ArgumentError, match=r"holds none of the model's parameters.*copied, sharded"):
        attach(model, sgd(mlp()), sigma=0.1)
    model.requires_grad_(False)
    with pytest.raises(ArgumentError, match=r"None of the 4 parameters.*requires_grad_\(True\)"):
        attach(model, sgd(model), sigma=0.1)


def test_an_optimizer_that_compares_losses():
    model = mlp()
    with pytest.raises(ArgumentError, match=r"LBFGS, which evaluates the loss several times.*fm\.NSO\(LBFGS"):
        attach(model, torch.optim.LBFGS(model.parameters()), sigma=0.1)


def test_two_attachments_of_the_same_parameters():
    model = mlp()
    optimizer, handle = attached(model)
    for other in (optimizer, sgd(model), torch.optim.AdamW(model[0].parameters())):
        with pytest.raises(ArgumentError, match=r"displaced already by an attachment \(sigma=0\.05.*remove\(\)"):
            attach(model, other, sigma=0.1)
    handle.remove()
    attach(model, optimizer, sigma=0.1)


def test_two_attachments_of_two_parts_of_one_model():
    """Muon for matrices and AdamW for the rest: two optimizers of one model, and each displaces what it steps."""
    model = mlp()
    before = weights(model)
    optimizers = [sgd(model[0], lr=0.0), torch.optim.AdamW(model[2].parameters(), lr=0.0, weight_decay=0.0)]
    for seed, optimizer in enumerate(optimizers):
        attach(model, optimizer, sigma=0.1, seed=seed)
    value = loss(model, data())
    assert all(bool((p != w).all()) for p, w in zip(model.parameters(), before))
    value.backward()
    assert same(weights(model), before)
    for optimizer in optimizers:
        optimizer.step()
        assert optimizer.param_groups[0]["perturbation_micro_batch"] == 1
    assert same(weights(model), before)


def test_a_method_of_flatmin():
    model = mlp()
    with pytest.raises(ArgumentError, match=r"optimizer is a NSO, which displaces the weights itself.*opt\.base"):
        attach(model, fm.NSO(sgd(model), sigma=0.1), sigma=0.1)


def test_deepspeed():
    model = mlp()
    engine = type("DeepSpeedEngine", (nn.Sequential,), {"__module__": "deepspeed.runtime.engine"})
    with pytest.raises(ArgumentError, match=r"DeepSpeedEngine of DeepSpeed.*fully_shard"):
        attach(engine(model), sgd(model), sigma=0.1)
    zero = type("DeepSpeedZeroOptimizer", (), {"__module__": "deepspeed.runtime.zero.stage_1_and_2"})()
    with pytest.raises(ArgumentTypeError, match=r"DeepSpeedZeroOptimizer of DeepSpeed.*hooks do not reach it.*FSDP2"):
        attach(model, zero, sigma=0.1)
    wrapper = type("DeepSpeedOptimizerWrapper", (torch.optim.SGD,), {})(model.parameters(), lr=0.1)
    wrapper.optimizer = zero
    with pytest.raises(ArgumentTypeError, match="DeepSpeedZeroOptimizer of DeepSpeed"):
        attach(model, wrapper, sigma=0.1)
    fused = type("FusedAdam", (torch.optim.Adam,), {"__module__": "deepspeed.ops.adam.fused_adam"})
    attach(model, fused(model.parameters()), sigma=0.1)  # a plain optimizer, wherever it comes from


def test_a_model_that_deepspeed_takes_over_after_it_was_attached():
    model = mlp()
    attached(model)
    engine = type("DeepSpeedEngine", (nn.Sequential,), {"__module__": "deepspeed.runtime.engine"})(model)
    before = weights(model)
    with pytest.raises(ArgumentError, match=r"DeepSpeedEngine of DeepSpeed"):
        engine(data()[0])
    assert same(weights(model), before)


def test_replicas_of_data_parallel():
    model = mlp()
    attached(model)
    replica = model._replicate_for_data_parallel()
    with pytest.raises(ArgumentError, match="Attach to the DataParallel module"):
        replica(data()[0])


def test_an_optimizer_that_steps_inside_the_backward_pass():
    model = mlp()
    optimizer, _ = attached(model)
    before = weights(model)
    model[0].weight.register_post_accumulate_grad_hook(lambda _: optimizer.step())
    with pytest.raises(ArgumentError, match=r"SGD steps inside a backward pass.*Step after loss\.backward\(\)"):
        loss(model, data()).backward()
    assert same(weights(model), before)


def test_lazy_and_overlapping_parameters():
    model = nn.LazyLinear(3)
    with pytest.raises(ArgumentError, match="not initialised yet"):
        attached(model)
    model = mlp()
    model[2].bias = nn.Parameter(model[0].bias.detach()[:3])
    with pytest.raises(ArgumentError, match="share their memory"):
        attached(model)


def test_antithetic_ranks_need_partners():
    model = mlp()
    attached(model, ranks="antithetic")
    before = weights(model)
    with pytest.raises(ArgumentError, match=r"'antithetic', which pairs ranks.*there are 1.*even number"):
        model(data()[0])
    assert same(weights(model), before)


@pytest.mark.parametrize(
    "bad", [{"ranks": "antithetik"}, {"noise_scale": "filters"}, {"sigma": {"zzz": 1.0}}, {"seed": -1}]
)
def test_an_attachment_that_fails_leaves_the_optimizer_as_it_was(bad):
    """What it left in the groups would be taken for the user's own by the next one."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [dict(group) for group in optimizer.param_groups]
    with pytest.raises(ArgumentError):
        fm.attach(model, optimizer, **{"sigma": 0.1, **bad})
    assert [group.keys() for group in optimizer.param_groups] == [group.keys() for group in before]
    handle = fm.attach(model, optimizer, sigma=0.5, seed=7)
    assert "sigma=0.5" in repr(handle)
    assert optimizer.param_groups[0]["perturbation_seed"] == 7


@pytest.mark.parametrize("cls", [fm.NSO, fm.WPSGD])
def test_a_method_around_an_attached_optimizer(cls):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = fm.attach(model, optimizer, sigma=0.5)
    with pytest.raises(ArgumentError, match=r"attachment displaces already.*remove\(\)"):
        cls(optimizer, sigma=0.1)
    handle.remove()
    assert cls(optimizer, sigma=0.1).param_groups[0]["sigma"] == 0.1
