"""Two ranks (gloo, CPU): the rows that need them, and what runs on each rank.

The ranks are processes of their own, one pair for each cell: a rank that raises cannot stall another cell.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from peers.adapters import PEERS, Peer
from peers.outcome import LONGEST, Outcome, Status, attempt, within
from peers.problems import Batch, closure_of, data, distance, loss_of, seeded, snapshot, train
from peers.registry import loop

RANKS = "Two ranks"
SINGLE = 1e-5  # rounding of float32
TIMEOUT = 90.0


def _spawn(peer: Peer, task: str) -> Outcome:
    """Run a task on two ranks; a rank that raised first speaks for both."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "ignore", "-m", "peers.ranks", peer.name, task, folder]
        ranks = [
            subprocess.Popen([*command, str(rank)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # noqa: S603
            for rank in range(2)
        ]
        deadline = time.monotonic() + TIMEOUT
        output = b""
        try:
            for rank in ranks:
                output += rank.communicate(timeout=max(0.1, deadline - time.monotonic()))[0]
        except subprocess.TimeoutExpired:
            output += f"no answer within {TIMEOUT:.0f} seconds".encode()
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
        files = sorted(Path(folder).glob("rank*.json"), key=lambda path: json.loads(path.read_text())["at"])
        answers = [_read(path) for path in files]
    if not answers:
        return Outcome(Status.RAISES, None, output.decode().strip().splitlines()[-1][:LONGEST])
    failed = [answer for answer in answers if answer.status is not Status.OK]
    return failed[0] if failed else answers[0]


def _read(path: Path) -> Outcome:
    stored = json.loads(path.read_text())
    error = None if stored["error"] is None else float(stored["error"])
    return Outcome(Status(stored["status"]), error, stored["detail"])


def even() -> nn.Sequential:
    """Layers in float32, the usual type of shards, whose rows two ranks share evenly."""
    return seeded(lambda: nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4)))


def _data() -> Batch:
    return data(dtype=torch.float32)


def _half(batch: Batch) -> Batch:
    inputs, labels = batch
    return inputs.chunk(2)[dist.get_rank()], labels.chunk(2)[dist.get_rank()]


def _sharded() -> nn.Sequential:
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415  (slow to import)

    model = even()
    for layer in (model[0], model[2]):  # the last layer stays with the root
        fully_shard(layer)
    fully_shard(model)
    return model


def _whole(model: nn.Module) -> dict[str, Any]:
    return {name: parameter.detach().full_tensor() for name, parameter in model.named_parameters()}  # pyright: ignore[reportAttributeAccessIssue]


def _ddp_equal(peer: Peer, alone: dict[str, Any]) -> Outcome:
    inner = even()
    model = DistributedDataParallel(inner)
    train(peer.step, peer.build(model, quiet=True), model, _half(_data()))
    return within(distance(alone, snapshot(inner)), SINGLE)


def _ddp_replicas(peer: Peer, alone: dict[str, Any]) -> Outcome:
    del alone
    inner = even()
    model = DistributedDataParallel(inner)
    opt, batch = peer.build(model), _half(_data())
    for step in range(20):
        torch.manual_seed(1000 * dist.get_rank() + step)
        peer.step(opt, closure_of(opt, model, batch))
    mine = torch.cat([parameter.detach().flatten() for parameter in inner.parameters()])
    theirs = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(theirs, mine)
    return within(distance({"w": theirs[0]}, {"w": theirs[1]}), 0.0)


def _fsdp_still(peer: Peer, alone: dict[str, Any]) -> Outcome:
    del alone
    model = _sharded()
    before = {name: value.clone() for name, value in _whole(model).items()}
    opt = peer.build(model, lr=0.0)
    for _ in range(20):
        peer.step(opt, closure_of(opt, model, _half(_data())))
    return within(distance(before, _whole(model)), 0.0)


def _fsdp_equal(peer: Peer, alone: dict[str, Any], *, evaluate: bool = False) -> Outcome:
    model, batch = _sharded(), _data()
    opt = peer.build(model, quiet=True)
    for step in range(3):
        if evaluate:
            with torch.no_grad():
                loss_of(model, batch)
        torch.manual_seed(100 + step)
        peer.step(opt, closure_of(opt, model, _half(batch)))
    return within(distance(alone, _whole(model)), SINGLE)


def _fsdp_evaluated(peer: Peer, alone: dict[str, Any]) -> Outcome:
    return _fsdp_equal(peer, alone, evaluate=True)


TASKS: dict[str, Callable[[Peer, dict[str, Any]], Outcome]] = {
    "ddp_equal": _ddp_equal,
    "ddp_replicas": _ddp_replicas,
    "fsdp_still": _fsdp_still,
    "fsdp_equal": _fsdp_equal,
    "fsdp_evaluated": _fsdp_evaluated,
}


@loop(
    RANKS, "DDP = one process", "3 steps of two ranks, each on its half, equal one process on the whole batch", SINGLE
)
def ddp_equal(peer: Peer) -> Outcome:
    """Random noise is silenced where it is not seeded."""
    return _spawn(peer, "ddp_equal")


@loop(RANKS, "DDP, replicas", "after 20 steps the replicas are equal, bit for bit, though global seeds differ by rank")
def ddp_replicas(peer: Peer) -> Outcome:
    """Replicas that part ways are noticed by nobody."""
    return _spawn(peer, "ddp_replicas")


@loop(RANKS, "FSDP2, lr = 0", "20 steps at learning rate 0 under `fully_shard` leave every weight as it was")
def fsdp_still(peer: Peer) -> Outcome:
    """Restoring shards."""
    return _spawn(peer, "fsdp_still")


@loop(RANKS, "FSDP2 = one process", "3 steps under `fully_shard` equal one process on the whole batch", SINGLE)
def fsdp_equal(peer: Peer) -> Outcome:
    """Displaced shards must be seen, norms must be those of the whole."""
    return _spawn(peer, "fsdp_equal")


@loop(
    RANKS,
    "FSDP2 after an evaluation",
    "the same with a validation loss before each step, which leaves the root gathered",
    SINGLE,
)
def fsdp_evaluated(peer: Peer) -> Outcome:
    """What is written to shards while their module is gathered is not seen."""
    return _spawn(peer, "fsdp_evaluated")


def main(name: str, task: str, folder: str, rank: int) -> None:
    """Run one task on one rank and leave the answer in a file."""
    torch.set_num_threads(1)
    peer = next(peer for peer in PEERS if peer.name == name)
    model = even()
    # Before there is a process group, which some peers look for.
    alone = attempt_state(peer, model)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    outcome = attempt(lambda: TASKS[task](peer, alone))
    answer = {**dataclasses.asdict(outcome), "at": time.time()}
    path = Path(folder) / f"rank{rank}.json"
    path.with_suffix(".part").write_text(json.dumps(answer))
    path.with_suffix(".part").rename(path)


def attempt_state(peer: Peer, model: nn.Module) -> dict[str, Any]:
    """Train alone on the whole batch."""
    return train(peer.step, peer.build(model, quiet=True), model, _data())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
