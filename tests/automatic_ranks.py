"""What runs on each of two ranks (gloo, CPU): an automatic sigma over sharded parameters, against one process."""

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.testing import assert_close

from flatmin.optim import NSO
from flatmin.optim.automatic import AutoSigma
from problems import data, loss, seeded


def net():
    return seeded(lambda: nn.Sequential(nn.Linear(6, 13), nn.Tanh(), nn.Linear(13, 3))).double()


def train(model, batch, start=None):
    sigma = AutoSigma(100, loss_bound=2.0, initial=0.01, maximum=1.0, every=2, start=start)
    opt = NSO(torch.optim.SGD(model.parameters(), lr=0.1), sigma=sigma, noise="rademacher")
    for _ in range(5):
        for probe in opt.probes():
            with probe:
                loss(model, batch).backward()
        opt.step()
        opt.zero_grad()
    return sigma


def main(rank, rendezvous):
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    x, y = data()
    half = (x.chunk(2)[rank], y.chunk(2)[rank])
    whole = [2 * p.detach().clone() for p in net().parameters()]  # a start of whole tensors
    for start in (None, whole):
        model = net()
        fully_shard(model[0])
        fully_shard(model)
        assert_close(train(model, half, start).value, train(net(), (x, y), start).value, rtol=1e-9, atol=0.0)
    assert train(net(), (x, y)).value not in (0.01, 1.0)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[3])
