"""What runs on each of two ranks (gloo, CPU): penalty and projection of sharded parameters, against one process."""

import copy
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import flatmin as fm
from flatmin.regularizers import DistancePenalty, DistanceProjection, LabelNoise
from problems import data, loss, seeded


def net(seed=0):
    return seeded(
        lambda: nn.Sequential(nn.Linear(6, 13), nn.Tanh(), nn.Linear(13, 7), nn.Tanh(), nn.Linear(7, 3)), seed
    ).double()


def pretrained():
    return {name: w for name, w in net(3).state_dict().items() if not name.startswith("4.")}


def sharded(mesh=None):
    model = net()
    for layer in (model[0], model[2]):  # the last layer stays in the root's own group
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def train(model, opt, batch, penalty=None, steps=4):
    for _ in range(steps):
        for probe in opt.probes():
            with probe:
                value = loss(model, batch)
                if penalty is not None:
                    value = value + penalty()
                value.backward()
        opt.step()
        opt.zero_grad()


def optimizer(model):
    return fm.NSO(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), sigma=0.05)


def compare(model, single):
    expected = dict(single.named_parameters())
    for name, p in model.named_parameters():
        value = p.full_tensor() if isinstance(p, DTensor) else p
        torch.testing.assert_close(value.detach(), expected[name].detach(), rtol=1e-10, atol=1e-12)


def half(rank):
    x, y = data()
    return x.chunk(2)[rank], y.chunk(2)[rank]


def the_penalty_of_shards(rank, mesh=None):
    model, single = sharded(mesh), net()
    options = {"alpha": 0.3, "beta": 0.1, "start": pretrained(), "exclude": "2.bias"}
    ours, theirs = DistancePenalty(model, **options), DistancePenalty(single, **options)
    torch.testing.assert_close(ours(), theirs(), rtol=1e-12, atol=0)  # a plain tensor, whole on every rank
    train(model, optimizer(model), half(rank), ours)
    train(single, optimizer(single), data(), theirs)
    compare(model, single)
    with torch.no_grad():
        model(data()[0])  # leaves the root gathered; the penalty holds the shards
    torch.testing.assert_close(ours(), theirs(), rtol=1e-9, atol=0)
    state = ours.state_dict()["start"]
    assert all(isinstance(w, DTensor) for w in state.values())
    for name, w in state.items():
        assert torch.equal(w.full_tensor(), pretrained()[name])
    resumed = DistancePenalty(model, alpha=0.3, beta=0.1, exclude="2.bias")
    resumed.load_state_dict(ours.state_dict())
    torch.testing.assert_close(resumed(), ours(), rtol=0, atol=0)
    theirs.load_state_dict(ours.state_dict())  # sharded weights into a whole model
    torch.testing.assert_close(theirs(), ours(), rtol=1e-9, atol=0)


def the_penalty_under_ddp(rank):
    model, single = nn.parallel.DistributedDataParallel(net()), net()
    start = {f"module.{name}": w for name, w in pretrained().items()}
    ours = DistancePenalty(model, alpha=0.3, beta=0.1, start=start)
    theirs = DistancePenalty(single, alpha=0.3, beta=0.1, start=pretrained())
    train(model, optimizer(model), half(rank), ours)
    train(single, optimizer(single), data(), theirs)
    compare(model.module, single)


def the_projection_of_shards(rank, norm, mesh=None):
    model, single = sharded(mesh), net()
    opt, other = optimizer(model), optimizer(single)
    ours, theirs = (
        DistanceProjection(o, m, norm=norm, radius={"0.*": 0.02, "*": 0.2}, start=pretrained())
        for o, m in ((opt, model), (other, single))
    )
    train(model, opt, half(rank))
    train(single, other, data())
    compare(model, single)
    for name, expected in theirs.distances().items():
        got = ours.distances()[name].clone()
        dist.all_reduce(got, dist.ReduceOp.MAX)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=0)
    copies = copy.deepcopy(ours.state_dict())
    ours.load_state_dict(copies)
    ours.project()
    compare(model, single)


def rows_that_no_rank_holds_are_refused(mesh):
    layer = nn.Linear(4, 6)
    whole = layer.weight.detach().clone()
    for placement, allowed in ((Shard(0), True), (Replicate(), True), (Shard(1), False)):
        layer.weight = nn.Parameter(distribute_tensor(whole, mesh, [placement]))
        opt = torch.optim.SGD(layer.parameters(), lr=0.1)
        start = {"weight": torch.zeros(6, 4)}
        if allowed:
            DistanceProjection(opt, layer, norm="mars", radius=0.1, start=start).project()
            rows = layer.weight.full_tensor().detach().abs().sum(1)
            torch.testing.assert_close(rows, torch.full((6,), 0.1), rtol=1e-6, atol=0)
        else:
            with pytest.raises(fm.ArgumentError, match=r"'weight' is sharded as .*which cuts its rows"):
                DistanceProjection(opt, layer, norm="mars", radius=0.1)
            DistanceProjection(opt, layer, radius=0.1, start=start).project()
            assert layer.weight.full_tensor().detach().norm().item() == pytest.approx(0.1, rel=1e-6)
    transposed = nn.ConvTranspose1d(4, 2, 2)
    fully_shard(transposed)
    with pytest.raises(fm.ArgumentError, match="which cuts its rows"):
        DistanceProjection(torch.optim.SGD(transposed.parameters()), transposed, norm="mars", radius=0.1)


def ranks_draw_labels_of_their_own(rank):
    labels = torch.zeros(100, dtype=torch.long)
    mine = LabelNoise(0.5, 10)(labels)
    assert torch.equal(mine, LabelNoise(0.5, 10, rank=rank)(labels))
    both = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(both, mine)
    assert not torch.equal(*both)


def main(rank, world, address):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=world)
    try:
        replicated = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
        for mesh in (None, replicated):
            the_penalty_of_shards(rank, mesh)
            for norm in ("frobenius", "mars"):
                the_projection_of_shards(rank, norm, mesh)
        the_penalty_under_ddp(rank)
        rows_that_no_rank_holds_are_refused(init_device_mesh("cpu", (2,)))
        ranks_draw_labels_of_their_own(rank)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
