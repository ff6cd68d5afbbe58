"""Buffers move as the policy says, the points of a step share their randomness, global generators are left alone."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

import flatmin as fm
from methods_table import every_method, linear_methods
from problems import closure_of, data, loss, mlp, same, seeded, snapshot, with_state

SGD = torch.optim.SGD


def buffers(model):
    return {name: b.clone() for name, b in model.named_buffers()}


def evaluate(opt, model, batch):
    for probe in opt.probes():
        with probe:
            loss(model, batch).backward()


@every_method
def test_first_moves_statistics_as_one_forward_pass_does(method):
    """... at the first point of the step, and no further: the count goes up by one."""
    model, batch = with_state(), data(dtype=torch.float32)
    opt = method.build(SGD(model.parameters(), lr=0.0))
    expected = copy.deepcopy(model)
    for number, probe in enumerate(opt.probes()):
        with probe:
            if number == 0:
                expected.load_state_dict(model.state_dict())
                with torch.random.fork_rng():
                    expected(batch[0])
            loss(model, batch).backward()
    opt.step()
    assert same(buffers(model), buffers(expected))
    assert int(model[1].num_batches_tracked) == 1


@every_method
@pytest.mark.parametrize(("policy", "moves"), [("first", 1), ("all", None), ("frozen", 0)])
@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm1d,
        lambda n: nn.BatchNorm1d(n, affine=False),
        lambda n: nn.BatchNorm1d(n, momentum=None),
        lambda n: nn.SyncBatchNorm.convert_sync_batchnorm(nn.ModuleList([nn.BatchNorm1d(n)]))[0],
    ],
    ids=["batch-norm", "without affine", "cumulative", "synchronised"],
)
def test_policies(method, policy, moves, norm):
    if isinstance(seeded(lambda: norm(6)), nn.SyncBatchNorm) and not torch.cuda.is_available():
        norm = nn.BatchNorm1d  # runs on accelerators alone; its buffers are those of any batch-norm
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 6), norm(6), nn.Linear(6, 3)))
    momentum = model[1].momentum
    opt = method.build(SGD(model.parameters(), lr=0.0), buffers=policy)
    before = buffers(model)
    for step in range(1, 4):  # as often as one likes: nothing adds up
        opt.step(closure_of(opt, model, data(dtype=torch.float32)))
        count = method.evaluations if moves is None else moves
        assert int(model[1].num_batches_tracked) == count * step
    assert model[1].momentum == momentum
    assert same(buffers(model), before) == (policy == "frozen")


@every_method
def test_buffers_of_other_kinds(method):
    """Whatever a forward pass writes into a buffer, in place or by putting another tensor there."""

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Linear(6, 3)
            self.register_buffer("seen", torch.zeros(()))
            self.register_buffer("mean", torch.zeros(3))
            self.register_buffer("mask", torch.ones(3, dtype=torch.bool))

        def forward(self, x):
            out = self.w(x)
            self.seen += 1
            self.mean = 0.9 * self.mean + 0.1 * out.detach().mean(0)
            return out

    model = Counting()
    opt = method.build(SGD(model.parameters(), lr=0.0))
    opt.step(closure_of(opt, model, data(dtype=torch.float32)))
    assert model.seen == 1
    plain = model.mean.clone()
    opt.step(closure_of(opt, model, data(dtype=torch.float32)))
    assert model.seen == 2
    assert not torch.equal(model.mean, plain)


@every_method
def test_modules_are_found_through_wrappers_and_containers(method):
    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.w = nn.BatchNorm1d(6, affine=False), nn.Linear(6, 3)  # norm has no parameter of its own

        def forward(self, x):
            return self.w(self.norm(x))

    for wrap in (lambda m: m, lambda m: nn.Sequential(nn.Identity(), m), lambda m: nn.DataParallel(m)):
        part = Part()
        model = wrap(part)
        opt = method.build(SGD(part.parameters(), lr=0.0))
        opt.step(closure_of(opt, model, data(dtype=torch.float32)))
        assert int(part.norm.num_batches_tracked) == 1


@every_method
def test_the_model_can_be_named(method):
    model = with_state()
    opt = method.build(SGD(model.parameters(), lr=0.0), model=model)
    opt.step(closure_of(opt, model, data(dtype=torch.float32)))
    assert int(model[1].num_batches_tracked) == 1


def masks_seen(method, **options):
    model, seen = with_state(), []
    model[2].register_forward_hook(lambda _m, _i, out: seen.append(out == 0))
    opt = method.build(SGD(model.parameters(), lr=0.1), **options)
    closure = closure_of(opt, model, data(dtype=torch.float32))
    draws = []

    def drawing():
        value = closure()
        draws.append((random.random(), np.random.rand(), float(torch.rand(()))))
        return value

    opt.step(drawing)
    opt.step(drawing)
    return seen, draws


@every_method
def test_the_points_of_a_step_see_the_same_random_numbers(method):
    n = method.evaluations
    masks, draws = masks_seen(method)
    for step in (0, 1):
        assert all(torch.equal(masks[step * n], m) for m in masks[step * n : (step + 1) * n])
        assert len(set(draws[step * n : (step + 1) * n])) == 1
    assert not torch.equal(masks[0], masks[n])
    assert draws[0] != draws[n]


@every_method
def test_an_option_turns_that_off(method):
    masks, draws = masks_seen(method, common_randomness=False)
    assert not torch.equal(masks[0], masks[1])
    assert len(set(draws)) == len(draws)


@every_method
def test_global_generators_end_where_one_evaluation_leaves_them(method):
    """With a model that draws nothing, they are not touched at all."""
    model = mlp()
    opt = method.build(SGD(model.parameters(), lr=0.1))
    before = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()
    evaluate(opt, model, data())
    opt.step()
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1], before[2]) == (np.random.get_state()[1].tobytes(), random.getstate())


@linear_methods
def test_noise_does_not_depend_on_the_global_generators(method):
    results = []
    for seed in (0, 1):
        model = mlp()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            opt = method.build(SGD(model.parameters(), lr=0.1))
            opt.step(closure_of(opt, model, data()))
        results.append(snapshot(model))
    assert same(*results)


def test_two_optimizers_on_two_models_do_not_disturb_each_other():
    """As in a GAN: the buffers of the other model are not put back."""
    a, b = with_state(), with_state()
    opt_a = fm.NSO(SGD(a.parameters(), lr=0.1), sigma=0.01)
    fm.NSO(SGD(b.parameters(), lr=0.1), sigma=0.01)
    batch = data(dtype=torch.float32)
    for probe in opt_a.probes():
        with probe:
            loss(b, batch)
            loss(a, batch).backward()
    assert int(b[1].num_batches_tracked) == 2
    assert int(a[1].num_batches_tracked) == 1


class Queue(nn.Module):
    """As in momentum contrast: a ring of features and its pointer, an integer tensor of one dimension."""

    def __init__(self):
        super().__init__()
        self.w = nn.Linear(6, 3)
        self.register_buffer("queue", torch.zeros(4, 3))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))

    def forward(self, x):
        out = self.w(x)
        with torch.no_grad():
            self.queue[int(self.pointer)] = out.detach().mean(0)
            self.pointer[0] = (int(self.pointer) + 1) % 4
        return out


@every_method
def test_a_queue_and_its_pointer_move_together(method):
    model = Queue()
    opt = method.build(SGD(model.parameters(), lr=0.0))
    for step in (1, 2):
        opt.step(closure_of(opt, model, data(dtype=torch.float32)))
        assert int(model.pointer) == step
        assert int((model.queue.abs().sum(1) > 0).sum()) == step


@every_method
def test_constant_buffers_of_every_kind_do_no_harm(method):
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 3)))
    model.register_buffer("wide", torch.ones(1).expand(1000))
    with torch.inference_mode():
        frozen = torch.ones(3)
    model.register_buffer("frozen", frozen)
    model.register_buffer("scale", torch.ones(3))
    pending = (model[0].weight.detach().requires_grad_() * model.scale.view(3, 1)).sum()
    for policy in ("first", "frozen"):
        opt = method.build(SGD(model.parameters(), lr=0.0), buffers=policy)
        opt.step(closure_of(opt, model, data(dtype=torch.float32)))
    pending.backward()  # a graph that needs the buffer as it was


@every_method
def test_a_buffer_that_comes_into_being(method):
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Linear(6, 3)
            self.register_buffer("count", None)

        def forward(self, x):
            self.count = torch.ones(()) if self.count is None else self.count + 1
            return self.w(x)

    model = Late()
    opt = method.build(SGD(model.parameters(), lr=0.0))
    for step in (1, 2):
        opt.step(closure_of(opt, model, data(dtype=torch.float32)))
        assert int(model.count) == step


@every_method
def test_modules_that_change_after_the_optimizer_was_made(method):
    model = with_state()
    opt = method.build(SGD(model.parameters(), lr=0.0))
    opt.step(closure_of(opt, model, data(dtype=torch.float32)))
    new = nn.BatchNorm1d(16)
    new.weight, new.bias = model[1].weight, model[1].bias  # as SyncBatchNorm.convert_sync_batchnorm does
    model[1] = new
    opt.step(closure_of(opt, model, data(dtype=torch.float32)))
    assert int(new.num_batches_tracked) == 1


@every_method
def test_containers_of_containers(method):
    part = seeded(lambda: nn.Linear(6, 3))
    model = nn.Sequential(nn.BatchNorm1d(6, affine=False), nn.Sequential(nn.Sequential(part)))
    opt = method.build(SGD(part.parameters(), lr=0.0))
    opt.step(closure_of(opt, model, data(dtype=torch.float32)))
    assert int(model[0].num_batches_tracked) == 1


def test_nothing_keeps_a_model_alive():
    import gc
    import weakref

    model = with_state()
    opt = fm.NSO(SGD(model.parameters(), lr=0.0), sigma=0.1)
    opt.step(closure_of(opt, model, data(dtype=torch.float32)))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


class Silent(nn.Module):
    """Writes its buffers where torch does not count: by a normalisation kernel, under other names, and by .data."""

    def __init__(self):
        super().__init__()
        self.w = nn.Linear(6, 6)
        self.register_buffer("stored_mean", torch.zeros(6))
        self.register_buffer("stored_var", torch.ones(6))
        self.register_buffer("average", torch.ones(()))

    def forward(self, x):
        self.average.data.mul_(0.5)
        return nn.functional.batch_norm(self.w(x), self.stored_mean, self.stored_var, training=True)


@every_method
@pytest.mark.parametrize("policy", ["first", "frozen"])
def test_writes_that_torch_does_not_count(method, policy):
    model, other = seeded(Silent), seeded(Silent)
    opt = method.build(SGD(model.parameters(), lr=0.0), buffers=policy)
    x, y = data(dtype=torch.float32)
    for number, probe in enumerate(opt.probes()):
        with probe:
            if number == 0 and policy == "first":
                other.load_state_dict(model.state_dict())
                other(x)
            nn.functional.cross_entropy(model(x), y).backward()
    assert same(buffers(model), buffers(other))


@every_method
def test_a_closure_that_ends_in_evaluation_mode(method):
    model = with_state()
    opt = method.build(SGD(model.parameters(), lr=0.0))
    plain = closure_of(opt, model, data(dtype=torch.float32))
    seen = []

    def closure():
        model.train()
        value = plain()
        model.eval()
        seen.append(model[1].running_mean.clone())
        return value

    model.train()
    opt.step(closure)
    assert torch.equal(model[1].running_mean, seen[0])


@every_method
def test_scripted_modules(method):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = torch.jit.script(seeded(lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))))
    opt = method.build(SGD(model.parameters(), lr=0.0))
    opt.step(closure_of(opt, model, data(dtype=torch.float32)))
    assert int(dict(model.named_buffers())["1.num_batches_tracked"]) == 1


@every_method
def test_a_named_container_that_nobody_else_holds(method):
    encoder, head = nn.BatchNorm1d(6, affine=False), seeded(lambda: nn.Linear(6, 3))
    opt = method.build(SGD(head.parameters(), lr=0.0), model=nn.ModuleList([encoder, head]))
    x, y = data(dtype=torch.float32)
    for probe in opt.probes():
        with probe:
            nn.functional.cross_entropy(head(encoder(x)), y).backward()
    assert int(encoder.num_batches_tracked) == 1


@every_method
def test_a_model_that_is_wrapped_after_the_optimizer_was_made(method):
    part = seeded(lambda: nn.Linear(6, 3))
    opt = method.build(SGD(part.parameters(), lr=0.0))
    model = nn.Sequential(nn.BatchNorm1d(6, affine=False), part)
    opt.step(closure_of(opt, model, data(dtype=torch.float32)))
    assert int(model[0].num_batches_tracked) == 1


@every_method
def test_parameters_that_a_forward_pass_gives_other_memory(method):
    class Moves(nn.Linear):
        def forward(self, x):
            self.weight.data = self.weight.data.clone()
            return super().forward(x)

    model = seeded(lambda: Moves(6, 3))
    before = snapshot(model)
    opt = method.build(SGD(model.parameters(), lr=0.0))
    for _ in range(3):
        opt.step(closure_of(opt, model, data(dtype=torch.float32)))
    assert same(snapshot(model), before)
