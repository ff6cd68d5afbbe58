"""What runs on each of two ranks (gloo, CPU): attach under DDP and FSDP2, against one process and written-out noise."""

import os
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn

from attach_cases import COUNT, attached, close, gradients_at, sgd, weights
from flatmin import ArgumentError, Gaussian
from flatmin.optim.attach import attach
from flatmin.streams import Stream
from problems import data, loss, same, seeded

SIGMA = 0.05


def net():
    return seeded(
        lambda: nn.Sequential(nn.Linear(6, 13), nn.Tanh(), nn.Linear(13, 7), nn.Tanh(), nn.Linear(7, 3))
    ).double()


def batch_of(rank, micro, parts):
    """Micro-batch ``micro`` of ``parts`` a step, on ``rank``."""
    x, y = data(48)
    number = 2 * micro + rank
    return x.chunk(2 * parts)[number], y.chunk(2 * parts)[number]


def noise_of(rank, micro, ranks):
    """The displacement of micro-batch number ``micro`` of the run on ``rank``, from the definition."""
    path, sign = {
        "shared": ((micro // 2, 0), (-1) ** micro),
        "independent": ((micro // 2, rank, 0), (-1) ** micro),
        "antithetic": ((micro, rank // 2, 0), (-1) ** rank),
    }[ranks]
    like = list(net().parameters())
    stream = Stream(0, path)
    drawn = [Gaussian().sample_(torch.empty_like(t), stream.generator(i, t.device)) for i, t in enumerate(like)]
    return [sign * SIGMA * u for u in drawn]


def expected(steps, parts, ranks):
    """The weights after training on all that both ranks see, with the noise that each has."""
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(steps):
        found = [torch.zeros_like(p) for p in model.parameters()]
        for rank in range(2):
            for micro in range(parts):
                u = noise_of(rank, step * parts + micro, ranks)
                share = gradients_at(model, u, batch_of(rank, micro, parts))
                found = [f + g / (2 * parts) for f, g in zip(found, share)]
        for p, g in zip(model.parameters(), found):
            p.grad = g
        optimizer.step()
    return weights(model)


def train(rank, model, optimizer, steps, parts, context):
    """Accumulate ``parts`` micro-batches a step, each in its ``context(micro)``."""
    for _ in range(steps):
        for micro in range(parts):
            with context(micro):
                (loss(model, batch_of(rank, micro, parts)) / parts).backward()
        optimizer.step()
        optimizer.zero_grad()


def assert_same_on_all_ranks(tensors):
    for tensor in tensors:
        both = [torch.empty_like(tensor) for _ in range(2)]
        dist.all_gather(both, tensor.contiguous())
        assert torch.equal(*both)


def ddp(rank, ranks, parts, inner, no_sync):
    """Attached to the wrapper or to the model in it; replicas stay equal bit for bit."""
    from contextlib import nullcontext

    model = net()
    wrapper = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    handle = attach(model if inner else wrapper, optimizer, sigma=SIGMA, ranks=ranks)
    before, value = weights(model), wrapper(data()[0])
    close([p.detach() - w for p, w in zip(model.parameters(), before)], noise_of(rank, 0, ranks), 1e-9, 1e-15)
    del value
    assert same(weights(model), before)
    train(
        rank, wrapper, optimizer, 3, parts, lambda m: wrapper.no_sync() if no_sync and m < parts - 1 else nullcontext()
    )
    close(weights(model), expected(3, parts, ranks), rtol=1e-9, atol=1e-11)
    assert_same_on_all_ranks(weights(model))
    assert optimizer.param_groups[0][COUNT] == 3 * parts
    assert (handle.trace_estimate is None) == (ranks != "shared" or (no_sync and parts > 1))
    return handle


def ddp_trace_is_that_of_one_process(rank, **options):
    """The trace sees gradients that are averaged already: DDP finishes them in a callback of its own."""
    model, single = net(), net()
    wrapper = nn.parallel.DistributedDataParallel(model, **options)
    trace_is_that_of_one_process(rank, wrapper, sgd(model, lr=0.0), single, per_step=1)


def trace_is_that_of_one_process(rank, model, optimizer, single, per_step):
    _, handle = attached(model, optimizer)
    reference, one = attached(single, sgd(single, lr=0.0))
    for micro in range(4):
        loss(model, batch_of(rank, micro % 2, 2)).backward()
        halves = [batch_of(r, micro % 2, 2) for r in range(2)]
        loss(single, (torch.cat([x for x, _ in halves]), torch.cat([y for _, y in halves]))).backward()
        if (micro + 1) % per_step == 0:
            for o in (optimizer, reference):
                o.step()
                o.zero_grad()
    assert handle.trace_estimate.num_matvecs == 4 // per_step
    torch.testing.assert_close(handle.trace_estimate.value, one.trace_estimate.value, rtol=1e-9, atol=0)


def noise_that_differs_leaves_replicas_equal_over_many_steps(rank):
    """In bf16, where adding and subtracting would drift apart by percents."""
    model = net().bfloat16()
    wrapper = nn.parallel.DistributedDataParallel(model)
    optimizer, _ = attached(wrapper, sgd(model, lr=0.01), ranks="independent")
    for step in range(100):
        x, y = batch_of(rank, step % 2, 2)
        loss(wrapper, (x.bfloat16(), y)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert_same_on_all_ranks(weights(model))


def sharded(model):
    from torch.distributed.fsdp import fully_shard

    for layer in (model[0], model[2]):  # the last layer stays in the root's own group
        fully_shard(layer)
    return fully_shard(model)


def whole(model):
    return [p.full_tensor().detach().clone() for p in model.parameters()]


def fsdp(rank, parts, holds_back):
    """FSDP2 with shared noise is one process; with gradients held back over micro-batches too."""
    from contextlib import nullcontext

    model = sharded(net())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    handle = attach(model, optimizer, sigma=SIGMA)

    def context(micro):
        model.set_requires_gradient_sync(not holds_back or micro == parts - 1)
        return nullcontext()

    train(rank, model, optimizer, 3, parts, context)
    model.reshard()
    close(whole(model), expected(3, parts, "shared"), rtol=1e-9, atol=1e-11)
    assert (handle.trace_estimate is None) == (holds_back and parts > 1)


def fsdp_trace_is_that_of_one_process(rank):
    model = sharded(net())
    trace_is_that_of_one_process(rank, model, sgd(model, lr=0.0), net(), per_step=2)


def fsdp_restores_bitwise_over_evaluations(rank):
    """An evaluation leaves the root unsharded, where moves of its shards would be lost; so would the way back."""
    model = sharded(net())
    optimizer, _ = attached(model, sgd(model, lr=0.0))
    before = whole(model)
    with torch.no_grad():
        clean = loss(model, data())
    losses = []
    for step in range(4):
        with torch.no_grad():
            assert torch.equal(loss(model, data()), clean)
        value = loss(model, data())
        losses.append(round(value.item(), 12))
        if step == 1:  # between forward and backward
            with torch.no_grad():
                assert torch.equal(loss(model, data()), clean)
        if step == 2:
            del value
        else:
            value.backward()
        optimizer.step()
        if step != 2:
            u, found = noise_of(rank, step - (step > 2), "shared"), [p.grad.full_tensor() for p in model.parameters()]
            close(found, gradients_at(net(), u, data()), rtol=1e-9, atol=1e-12)
        optimizer.zero_grad()
    assert clean.item() not in losses
    assert losses[2] == losses[3]  # a forward pass without a backward pass is no micro-batch
    assert len(set(losses)) == 3
    model.reshard()
    assert same(whole(model), before)
    assert same([t.full_tensor() for t in model.state_dict().values()], before)
    value = loss(model, data())
    assert same([t.full_tensor() for t in model.state_dict().values()], before)
    del value


def fsdp_recomputes_at_the_displaced_weights(rank):
    from torch.utils.checkpoint import checkpoint

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net()

        def forward(self, x):
            return self.inner[4](checkpoint(lambda h: self.inner[:4](h), x, use_reentrant=False))

    from torch.distributed.fsdp import fully_shard

    model = Net()
    for layer in (model.inner[0], model.inner[2], model):
        fully_shard(layer)
    optimizer, _ = attached(model, sgd(model, lr=0.0))
    for micro in range(2):
        loss(model, data()).backward()
        found = [p.grad.full_tensor() for p in model.parameters()]
        close(found, gradients_at(net(), noise_of(rank, micro, "shared"), data()), rtol=1e-9, atol=1e-12)
        optimizer.step()
        optimizer.zero_grad()


def fsdp_refusals(rank):
    from torch.distributed.fsdp import fully_shard

    model = sharded(net())
    for ranks in ("independent", "antithetic"):
        with pytest.raises(ArgumentError, match=rf"{ranks}.*sharded.*ranks='shared'"):
            attached(model, ranks=ranks)
    outer = fully_shard(nn.Sequential(net(), nn.Identity()))
    attached(outer[0], sgd(outer))
    with pytest.raises(ArgumentError, match=r"part of a module that fully_shard was applied to.*outermost"):
        outer(data()[0])
    late = net()
    optimizer, _ = attached(late)
    fully_shard(late)
    optimizer.param_groups[0]["params"] = list(late.parameters())
    with pytest.raises(ArgumentError, match=r"applied to the model after it was attached.*at the start of training"):
        late(data()[0])
    with pytest.raises(ArgumentError, match=r"FullyShardedDataParallel.*fully_shard"):
        old = torch.distributed.fsdp.FullyShardedDataParallel(net(), device_id=torch.device("cpu"))
        attached(old)


def main(rank, world, address):
    torch.set_num_threads(1)
    os.environ["TORCH_DISTRIBUTED_DEBUG"] = "OFF"
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=world)
    try:
        for ranks in ("shared", "independent", "antithetic"):
            for parts, inner, no_sync in ((1, False, False), (2, False, True), (3, True, True), (2, True, False)):
                ddp(rank, ranks, parts, inner, no_sync)
        for options in ({}, {"static_graph": True}, {"find_unused_parameters": True}):
            ddp_trace_is_that_of_one_process(rank, **options)
        noise_that_differs_leaves_replicas_equal_over_many_steps(rank)
        for parts, holds_back in ((1, False), (2, False), (3, True)):
            fsdp(rank, parts, holds_back)
        fsdp_trace_is_that_of_one_process(rank)
        fsdp_restores_bitwise_over_evaluations(rank)
        fsdp_recomputes_at_the_displaced_weights(rank)
        fsdp_refusals(rank)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
