"""What runs on each of two ranks (gloo, CPU): every method under DDP and FSDP2, against one process."""

import os
import sys

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
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
