"""What runs on each of two ranks (gloo, CPU): every method under DDP and FSDP2, against one process."""

import os
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn

from methods_table import METHODS
from problems import data, loss, seeded

STEPS = 4


def net():
    return seeded(
        lambda: nn.Sequential(nn.Linear(6, 13), nn.Tanh(), nn.Linear(13, 7), nn.Tanh(), nn.Linear(7, 3))
    ).double()


def train(method, model, parameters, batch, shell, **changes):
    opt = method.build(torch.optim.AdamW(parameters, lr=0.01), **changes)
    for _ in range(STEPS):

        def closure():
            opt.zero_grad()
            value = loss(model, batch)
            value.backward()
            return value

        if shell == "closure":
            opt.step(closure)
            continue
        for probe in opt.probes():
            with probe:
                loss(model, batch).backward()
        opt.step()
        opt.zero_grad()
    return opt


def alone(method, shell):
    model = net()
    opt = train(method, model, model.parameters(), data(), shell)
    return {n: p.detach() for n, p in model.named_parameters()}, opt.trace_estimate


def compare(label, got, expected, trace, expected_trace):
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-11, msg=lambda m: f"{label} {name}: {m}")  # noqa: B023
    if expected_trace is not None:
        torch.testing.assert_close(trace.value, expected_trace.value, rtol=1e-8, atol=1e-9)


def ddp(rank, method, shell):
    x, y = data()
    half = (x.chunk(2)[rank], y.chunk(2)[rank])
    for as_view in (False, True):
        model = nn.parallel.DistributedDataParallel(net(), gradient_as_bucket_view=as_view)
        opt = train(method, model, model.parameters(), half, shell)
        got = {n.removeprefix("module."): p.detach() for n, p in model.named_parameters()}
        compare(
            f"DDP {method} {shell} {as_view}",
            got,
            *alone(method, shell)[:1],
            opt.trace_estimate,
            alone(method, shell)[1],
        )


def fsdp(rank, method, shell):
    from torch.distributed.fsdp import fully_shard

    x, y = data()
    half = (x.chunk(2)[rank], y.chunk(2)[rank])
    model = net()
    for layer in (model[0], model[2]):  # the last layer stays in the root's own group
        fully_shard(layer)
    fully_shard(model)
    before = {n: p.full_tensor().clone() for n, p in model.named_parameters()}
    still = method.build(torch.optim.SGD(model.parameters(), lr=0.0))
    for _ in range(2):
        with torch.no_grad():
            model(x)  # an evaluation leaves the root unsharded, where a displacement of its shards would be lost
        for probe in still.probes():
            with probe:
                value = loss(model, half)
                value.backward()
        still.step()
        still.zero_grad()
    after = {n: p.full_tensor() for n, p in model.named_parameters()}
    assert all(torch.equal(before[n], after[n]) for n in before), f"FSDP2 {method}: not restored bitwise"
    opt = train(method, model, model.parameters(), half, shell)
    expected, trace = alone(method, shell)
    got = {n: p.full_tensor().detach() for n, p in model.named_parameters()}
    compare(f"FSDP2 {method} {shell}", got, expected, opt.trace_estimate, trace)


def fsdp_with_an_evaluation_inside_each_probe():
    """A forward pass without a backward pass leaves the root unsharded; the next move must be seen all the same."""
    from torch.distributed.fsdp import fully_shard

    import flatmin as fm

    model = seeded(lambda: nn.Linear(6, 3)).double()
    fully_shard(model)
    with torch.no_grad():
        clean = loss(model, data())
    with pytest.raises(fm.ArgumentError, match="gathered copy"):
        fm.NSO(torch.optim.SGD(model.parameters(), lr=0.0), sigma=1.0)
    model.reshard()
    for build in (lambda b: fm.NSO(b, sigma=1.0), lambda b: fm.SAM(b, rho=1.0)):
        model.reshard()
        opt, losses = build(torch.optim.SGD(model.parameters(), lr=0.0)), []
        for probe in opt.probes():
            with probe:
                value = loss(model, data())
                value.backward()
                losses.append(value.item())
                with torch.no_grad():
                    model(data()[0])
        opt.step()
        assert len({round(v, 9) for v in losses}) == 2, losses
        with torch.no_grad():
            assert torch.equal(loss(model, data()), clean)


def fsdp_sees_displacements_after_an_evaluation(rank):
    """The root's own parameters, displaced while it was unsharded, must be seen by the next forward pass."""
    from torch.distributed.fsdp import fully_shard

    import flatmin as fm

    model = seeded(lambda: nn.Linear(6, 3)).double()
    fully_shard(model)
    opt = fm.NSO(torch.optim.SGD(model.parameters(), lr=0.0), sigma=1.0)
    with torch.no_grad():
        clean = loss(model, data())
    for probe in opt.probes():
        with probe:
            value = loss(model, data())
            value.backward()
        assert abs(float(value.detach() - clean)) > 1e-3


def no_sync_gives_no_sample(rank):
    """Micro-batches whose gradients stay on the rank: the direction is right, and the trace says nothing."""
    import flatmin as fm

    x, y = data()
    mine = [(a.chunk(2)[rank], b.chunk(2)[rank]) for a, b in zip(x.chunk(2), y.chunk(2))]
    model = nn.parallel.DistributedDataParallel(net())
    opt = fm.NSO(torch.optim.SGD(model.parameters(), lr=0.1), sigma=0.05)
    with model.no_sync():
        for probe in opt.probes():
            with probe:
                (loss(model, mine[0]) / 2).backward()
    for probe in opt.probes():
        with probe:
            (loss(model, mine[1]) / 2).backward()
    single = net()
    reference = fm.NSO(torch.optim.SGD(single.parameters(), lr=0.1), sigma=0.05)
    for probe in reference.probes():
        with probe:
            loss(single, (x, y)).backward()
    for p, q in zip(model.parameters(), single.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-11)
    opt.step()
    assert opt.trace_estimate is None


def main(rank, world, address):
    torch.set_num_threads(1)
    os.environ["TORCH_DISTRIBUTED_DEBUG"] = "OFF"
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=world)
    try:
        for method in METHODS:
            for shell in ("closure", "probes"):
                ddp(rank, method, shell)
                fsdp(rank, method, shell)
        fsdp_sees_displacements_after_an_evaluation(rank)
        fsdp_with_an_evaluation_inside_each_probe()
        no_sync_gives_no_sample(rank)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
