"""What runs on each of two ranks (gloo, CPU), one cell of the matrix after the other: a loop and a method.

The cells that have passed are written to a file, so that each is a test of its own (tests/optim/test_ranks.py).
"""

import copy
import datetime as dt
import functools
import json
import os
import sys
import traceback
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn.parallel import DistributedDataParallel

import flatmin as fm
from methods_table import METHODS
from problems import data, loss, same, seeded

STEPS = 4
FOLDER = Path(sys.argv[-1])
CLIMBING = ("SAM", "USAM", "ASAM", "RSAM")


def net():
    return seeded(
        lambda: nn.Sequential(nn.Linear(6, 13), nn.Tanh(), nn.Linear(13, 7), nn.Tanh(), nn.Linear(7, 3))
    ).double()


def mine(rank):
    x, y = data()
    return x.chunk(2)[rank], y.chunk(2)[rank]


def build(method, model, base=torch.optim.AdamW, lr=0.01, **changes):
    return method.build(base(model.parameters(), lr=lr), **changes)


def step(opt, model, batch, shell="probes"):
    if shell == "closure":

        def closure():
            opt.zero_grad()
            value = loss(model, batch)
            value.backward()
            return value

        opt.step(closure)
        return
    for probe in opt.probes():
        with probe:
            loss(model, batch).backward()
    opt.step()
    opt.zero_grad()


def train(method, model, batch, shell="probes", steps=STEPS, **changes):
    opt = build(method, model, **changes)
    for _ in range(steps):
        step(opt, model, batch, shell)
    return opt


def weights(model):
    full = ((n.removeprefix("module."), p.detach()) for n, p in model.named_parameters())
    return {n: p.full_tensor() if hasattr(p, "full_tensor") else p for n, p in full}


@functools.cache
def alone(method, shell):
    """One process on the global batch."""
    model = net()
    opt = train(method, model, data(), shell)
    return weights(model), opt.trace_estimate


def assert_close(got, expected):
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-11, msg=lambda m: f"{name}: {m}")  # noqa: B023


def assert_equals_one_process(method, shell, model, opt):
    expected, trace = alone(method, shell)
    assert_close(weights(model), expected)
    if trace is not None:
        torch.testing.assert_close(opt.trace_estimate.value, trace.value, rtol=1e-8, atol=1e-9)


def assert_replicas_are_equal(model):
    for p in model.parameters():
        both = [torch.empty_like(p) for _ in range(2)]
        dist.all_gather(both, p.detach())
        assert torch.equal(*both)


def sharded():
    from torch.distributed.fsdp import fully_shard

    model = net()
    for layer in (model[0], model[2]):  # the last layer stays in the root's own group
        fully_shard(layer)
    return fully_shard(model)


def ddp(rank, method):
    for shell in ("closure", "probes"):
        for as_view in (False, True):
            model = DistributedDataParallel(net(), gradient_as_bucket_view=as_view)
            opt = train(method, model, mine(rank), shell)
            assert_equals_one_process(method, shell, model, opt)
            assert_replicas_are_equal(model)


def ddp_that_cannot_wait(rank, method):
    """Where the averaging cannot be put off, every backward pass averages."""
    for options in ({"static_graph": True}, {"find_unused_parameters": True}):
        for shell in ("closure", "probes"):
            model = DistributedDataParallel(net(), **options)
            opt = train(method, model, mine(rank), shell)
            assert_equals_one_process(method, shell, model, opt)


def one_all_reduce(rank, method):
    """Each bucket of gradients is averaged once a step, whatever the number of evaluations."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    climbs = method.name in CLIMBING
    for shell in ("closure", "probes"):
        model, buckets = DistributedDataParallel(net()), []

        def hook(state, bucket, buckets=buckets):
            buckets.append(bucket.index())
            return allreduce_hook(state, bucket)

        model.register_comm_hook(None, hook)
        train(method, model, mine(rank), shell, **({"local_ascent": True} if climbs else {}))
        assert len(buckets) == STEPS * len(set(buckets)), (shell, buckets)


def no_sync(rank, method):
    """Micro-batches inside each probe, of which the last alone averages; the trace is silent there."""
    x, y = mine(rank)
    micro = list(zip(x.chunk(2), y.chunk(2)))
    model = DistributedDataParallel(net())
    opt = build(method, model)
    for _ in range(STEPS):
        for probe in opt.probes():
            with probe:
                with model.no_sync():
                    (loss(model, micro[0]) / 2).backward()
                (loss(model, micro[1]) / 2).backward()
        opt.step()
        opt.zero_grad()
    assert_close(weights(model), alone(method, "probes")[0])


def no_sync_around_the_loop(rank, method):
    """A whole loop over probes without averaging, then one with: right for methods linear in the gradients."""
    x, y = mine(rank)
    model = DistributedDataParallel(net())
    opt = build(method, model)
    for _ in range(STEPS):
        for number, batch in enumerate(zip(x.chunk(2), y.chunk(2))):
            with model.no_sync() if number == 0 else torch.enable_grad():
                for probe in opt.probes():
                    with probe:
                        (loss(model, batch) / 2).backward()
        opt.step()
        opt.zero_grad()
    assert_close(weights(model), alone(method, "probes")[0])
    assert opt.trace_estimate is None


def fsdp2(rank, method):
    x, _ = data()
    model = sharded()
    before = weights(model)
    still = build(method, model, base=torch.optim.SGD, lr=0.0)
    for _ in range(2):
        with torch.no_grad():
            model(x)  # an evaluation leaves the root unsharded, where a displacement of its shards would be lost
        step(still, model, mine(rank))
    assert same(before, weights(model)), "not restored bitwise"
    for shell in ("closure", "probes"):
        model = sharded()
        assert_equals_one_process(method, shell, model, train(method, model, mine(rank), shell))


def m_sharpness(rank, method):
    """Each rank climbs its own gradient: the step is the average of what each would do alone."""
    for shell in ("closure", "probes"):
        model, hand = DistributedDataParallel(net()), net()
        opt = build(method, model, base=torch.optim.SGD, lr=0.1, local_ascent=True)
        plain = torch.optim.SGD(hand.parameters(), lr=0.1)
        for number in range(STEPS):
            directions = [direction(opt, hand, mine(r), number) for r in range(2)]
            for name, p in hand.named_parameters():
                p.grad = (directions[0][name] + directions[1][name]) / 2
            plain.step()
            step(opt, model, mine(rank), shell)
        assert_close(weights(model), weights(hand))
        assert_replicas_are_equal(model)


def direction(opt, model, batch, number, **changes):
    """What the method of ``opt`` does in one process on ``batch``, by the pure driver."""

    def value(w):
        return nn.functional.cross_entropy(torch.func.functional_call(model, w, batch[0]), batch[1])

    flow = functools.partial(opt._flow, **{**opt._arguments(), **changes})
    return fm.gradient(flow, value, {n: p.detach() for n, p in model.named_parameters()}, step=number)


def independent_noise(rank, method):
    """N ranks average over N k perturbations, and the replicas stay equal bit for bit."""

    def of_rank(flow, r):
        return lambda stream, **arguments: flow(stream.child(r), **arguments)

    for shell in ("closure", "probes"):
        model, hand = DistributedDataParallel(net()), net()
        opt = build(method, model, base=torch.optim.SGD, lr=0.1, ranks="independent")
        plain, flow = torch.optim.SGD(hand.parameters(), lr=0.1), opt._flow
        for number in range(STEPS):
            directions = []
            for r in range(2):
                opt._flow = of_rank(flow, r)
                directions.append(direction(opt, hand, mine(r), number))
            opt._flow = flow
            for name, p in hand.named_parameters():
                p.grad = (directions[0][name] + directions[1][name]) / 2
            plain.step()
            step(opt, model, mine(rank), shell)
        assert_close(weights(model), weights(hand))
        assert_replicas_are_equal(model)
        assert opt.trace_estimate is None


def antithetic_noise(rank, method):
    """On one batch, the two ranks together take NSO's two points, each at the price of one."""
    model, hand = DistributedDataParallel(net()), net()
    opt = build(method, model, base=torch.optim.SGD, lr=0.1, ranks="antithetic")
    plain = torch.optim.SGD(hand.parameters(), lr=0.1)
    for number in range(STEPS):
        opt._flow, flow = functools.partial(of_pair, opt._flow), opt._flow
        ahead, behind = (direction(opt, hand, data(), number, sigma=s * 0.05) for s in (1, -1))
        opt._flow = flow
        for name, p in hand.named_parameters():
            p.grad = (ahead[name] + behind[name]) / 2
        plain.step()
        step(opt, model, data())
    assert_close(weights(model), weights(hand))
    assert_replicas_are_equal(model)


def of_pair(flow, stream, **arguments):
    return flow(stream.child(0), **arguments)


def resumed(rank, method):
    """Saved in the middle on two ranks and loaded again, the run goes on as if nothing had happened, bit for bit."""
    for make in (lambda: DistributedDataParallel(net()), sharded):
        model, other = make(), make()
        opt = train(method, model, mine(rank), steps=2)
        state = copy.deepcopy(get_state_dict(model, opt))  # what is loaded shares memory with what was saved
        fresh = build(method, other)
        set_state_dict(other, fresh, model_state_dict=state[0], optim_state_dict=state[1])
        for _ in range(2):
            step(opt, model, mine(rank))
            step(fresh, other, mine(rank))
        assert same(weights(model), weights(other))


def saved_for_another_number_of_ranks(rank, method):
    """A checkpoint of two FSDP2 ranks, which one process goes on from (see the tests)."""
    from torch.distributed import checkpoint

    model = sharded()
    opt = train(method, model, mine(rank), steps=2)
    state = dict(zip(("model", "optimizer"), get_state_dict(model, opt)))
    checkpoint.save(state, checkpoint_id=FOLDER / f"checkpoint-{method}")


def fsdp_with_an_evaluation_inside_each_probe(rank):
    """A forward pass without a backward pass leaves the root unsharded; the next move must be seen all the same."""
    from torch.distributed.fsdp import fully_shard

    model = seeded(lambda: nn.Linear(6, 3)).double()
    fully_shard(model)
    with torch.no_grad():
        clean = loss(model, data())
    with pytest.raises(fm.ArgumentError, match="gathered copy"):
        fm.NSO(torch.optim.SGD(model.parameters(), lr=0.0), sigma=1.0)
    model.reshard()
    for make in (lambda b: fm.NSO(b, sigma=1.0), lambda b: fm.SAM(b, rho=1.0)):
        model.reshard()
        opt, losses = make(torch.optim.SGD(model.parameters(), lr=0.0)), []
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


def what_cannot_work_is_refused(rank):
    """DDP with a static graph cannot leave the averaging to a later pass; shards make no perturbations of their own."""
    model = DistributedDataParallel(net(), static_graph=True)
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(fm.ArgumentError, match=r"static_graph.*local_ascent"):
        step(fm.SAM(base, rho=0.1, local_ascent=True), model, data())
    opt = fm.NSO(base, sigma=0.1)
    with pytest.raises(fm.ArgumentError, match=r"static_graph.*no_sync"), model.no_sync():
        next(opt.probes())
    for policy in ("independent", "antithetic"):
        with pytest.raises(fm.ArgumentError, match=r"the parameters are sharded.*ranks='shared'"):
            fm.WPSGD(torch.optim.SGD(sharded().parameters(), lr=0.1), sigma=0.1, ranks=policy)
    with pytest.raises(fm.ArgumentError, match=r"local_ascent.*sharded"):
        fm.SAM(torch.optim.SGD(sharded().parameters(), lr=0.1), rho=0.1, local_ascent=True)


LOOPS = {
    "DDP": ddp,
    "DDP, static graph or unused parameters": ddp_that_cannot_wait,
    "DDP, one all-reduce a step": one_all_reduce,
    "DDP, no_sync": no_sync,
    "DDP, no_sync around the loop": no_sync_around_the_loop,
    "m-sharpness": m_sharpness,
    "independent noise": independent_noise,
    "antithetic noise": antithetic_noise,
    "FSDP2": fsdp2,
    "resumed on two ranks": resumed,
    "resumed on one rank": saved_for_another_number_of_ranks,
}
ONLY_FOR = {
    "DDP, one all-reduce a step": lambda m: m.linear or m.name in CLIMBING,
    "DDP, no_sync around the loop": lambda m: m.linear,
    "m-sharpness": lambda m: m.name in CLIMBING,
    "independent noise": lambda m: m.cls in (fm.NSO, fm.WPSGD),
    "antithetic noise": lambda m: m.cls is fm.WPSGD,
}


def applies(loop, method):
    """Whether ``method`` has the option, or the property, that ``loop`` is about."""
    return ONLY_FOR.get(loop, lambda m: True)(method)


BESIDE = (
    fsdp_sees_displacements_after_an_evaluation,
    fsdp_with_an_evaluation_inside_each_probe,
    what_cannot_work_is_refused,
)


def cells():
    """Yield the name, the method and the check of every cell; checks beside the table have no method."""
    for method in METHODS:
        for name, run in LOOPS.items():
            if applies(name, method):
                yield name, str(method), functools.partial(run, method=method)
    for run in BESIDE:
        yield run.__name__, "", run


def main(rank, world):
    torch.set_num_threads(1)
    os.environ["TORCH_DISTRIBUTED_DEBUG"] = "OFF"
    rendezvous, wait = f"file://{FOLDER / 'rendezvous'}", dt.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world, timeout=wait)
    passed = []
    try:
        for name, method, run in cells():
            try:
                run(rank)
                passed.append([name, method])
            except Exception:
                sys.stdout.write(f"rank {rank}: {name}, {method}\n")
                traceback.print_exc(limit=-3)
    finally:
        (FOLDER / f"passed-{rank}.json").write_text(json.dumps(passed))
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
