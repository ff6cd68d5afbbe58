"""What runs on each of two ranks (gloo, CPU): a monitor on both, and on the first alone.

Run as ``monitor_ranks.py RANK 2 RENDEZVOUS``; a case that fails raises.
"""

import sys

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import flatmin as fm
from problems import data, loss, mlp, seeded


class Kept:
    def __init__(self):
        self.told = []

    def log(self, metrics, step):
        self.told.append(step)

    def close(self):
        pass


def train(wrapped, opt, monitor, batch):
    for step in range(1, 5):
        for probe in opt.probes():
            with probe:
                value = loss(wrapped, batch)
                value.backward()
        opt.step()
        opt.zero_grad()
        if monitor is not None:
            monitor.log(step, loss=value)


def run(rank, *, world):
    """Train on this rank's share of one batch; the monitor of the whole, or of a rank."""
    model, (x, y) = seeded(mlp), data()
    wrapped = DistributedDataParallel(model) if world > 1 else model
    opt = fm.NSO(torch.optim.SGD(model.parameters(), lr=0.1), sigma=0.05, seed=3)
    kept = Kept()
    monitor = fm.Monitor(opt, wrapped, every=2, to=[kept])
    train(wrapped, opt, monitor, (x[rank::world], y[rank::world]))
    return monitor.latest, kept.told


def on_the_first_alone(rank):
    model, (x, y) = seeded(mlp), data()
    wrapped = DistributedDataParallel(model)
    opt = fm.NSO(torch.optim.SGD(model.parameters(), lr=0.1), sigma=0.05, seed=3)
    monitor = fm.Monitor(opt, wrapped, every=2) if rank == 0 else None
    train(wrapped, opt, monitor, (x[rank::2], y[rank::2]))
    return monitor and monitor.latest


def main(rank, rendezvous):
    whole, _ = run(0, world=1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    reading, told = run(rank, world=2)
    assert told == ([] if rank else [2, 4])
    assert whole.noise_to_signal > 0
    assert reading.noise_to_signal is None
    assert reading.trace.value == pytest.approx(whole.trace.value, rel=1e-9)
    assert reading.shares == pytest.approx(whole.shares, rel=1e-9)
    assert (reading.gradient_evaluations, reading.forward_passes) == (8, 8)
    alone = on_the_first_alone(rank)
    assert rank or alone.metrics() == reading.metrics()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[3])
