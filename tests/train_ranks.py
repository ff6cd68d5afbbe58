"""What runs on each of two ranks (gloo, CPU): runs that two processes share, against those of one process."""

import dataclasses
import datetime as dt
import functools
import io
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn

from flatmin.errors import ArgumentError, RankError
from flatmin_lab.errors import DivergedError, LabError
from flatmin_lab.methods import METHODS
from flatmin_lab.run import train
from flatmin_lab.spec import Changes
from flatmin_lab.tasks import TASKS
from flatmin_lab.train.checkpoint import Checkpoints
from flatmin_lab.train.ranks import Group, Shards
from flatmin_lab.train.shards import units
from small_runs import driven, run_spec

STEPS = 12
SHARED = ("sgd", "nso", "sam", "bsam", "nso-halves")
PLAIN = Changes()
# The last batch of an epoch has two examples, and its halves one each, of which one rank has none.
UNEVEN = Changes(batch_size=33, distance_penalty=0.5, weight_decay=0.01)


def spec_of(name, changes=PLAIN, steps=STEPS):
    budget = steps * METHODS[name].evaluations_per_step
    return run_spec(name, task="digits-tiny", budget=budget, changes=changes)


@functools.cache
def alone(name, changes):
    return driven(train(spec_of(name, changes)))[1]


def equals_one_process(ranks):
    for name in SHARED:
        for changes in (PLAIN, UNEVEN) if name in ("sam", "nso-halves") else (PLAIN,):
            found, expected = driven(train(spec_of(name, changes), ranks=ranks))[1], alone(name, changes)
            for key, value in expected.weights.items():
                torch.testing.assert_close(found.weights[key], value, rtol=1e-5, atol=1e-6, msg=lambda m: f"{name} {m}")  # noqa: B023
            one, other = expected.result.history[-1], found.result.history[-1]
            assert one.evaluations == other.evaluations
            assert other.train_loss == pytest.approx(one.train_loss, rel=1e-5)
            assert (one.live_trace is None) == (other.live_trace is None)
            if one.live_trace is not None:
                assert other.live_trace == pytest.approx(one.live_trace, rel=1e-2)
            assert len(set(ranks.each(found.result.model_dump_json(exclude={"seconds"})))) == 1


class Captured(Checkpoints):
    """Keeps the state after the fifth step."""

    def __init__(self):
        self.step, self.content = 0, io.BytesIO()

    def is_due(self):
        self.step += 1
        return self.step == 5

    def save(self, state):
        torch.save(state, self.content)

    def load(self):
        self.content.seek(0)
        return torch.load(self.content, weights_only=True)


def goes_on(ranks):
    """On as many ranks bit for bit; on one process, from what the first rank has kept, to rounding."""
    for name in ("nso", "bsam", "nso-halves"):
        captured = Captured()
        checkpoints = captured if ranks.rank == 0 else Checkpoints()
        whole = driven(train(spec_of(name), checkpoints=checkpoints, ranks=ranks))[1]

        def state(captured=captured):
            return ranks.of_first(captured.load() if ranks.rank == 0 else None)

        rest = driven(train(spec_of(name), state=state(), ranks=ranks))[1]
        assert all(torch.equal(rest.weights[k], v) for k, v in whole.weights.items()), name
        assert rest.result.model_dump(exclude={"seconds"}) == whole.result.model_dump(exclude={"seconds"})
        one = driven(train(spec_of(name), state=state()))[1]
        for key, value in whole.weights.items():
            torch.testing.assert_close(one.weights[key], value, rtol=1e-5, atol=1e-6)


def ends_on_all_ranks_where_it_diverges(ranks):
    former = TASKS["digits-tiny"]
    TASKS["digits-tiny"] = dataclasses.replace(former, setting=dataclasses.replace(former.setting, learning_rate=1e30))
    try:
        with pytest.raises(DivergedError) as caught:
            driven(train(spec_of("sgd", steps=60), ranks=ranks))
        assert len(set(ranks.each(str(caught.value)))) == 1
    finally:
        TASKS["digits-tiny"] = former


def errors_of_one_rank_are_told_by_the_first(ranks):
    def fail_on(*failing):
        if ranks.rank in failing:
            raise ArgumentError("value is 3.")
        return ranks.rank

    assert ranks.agreed(fail_on) == ranks.rank
    with pytest.raises(LabError if ranks.rank == 0 else RankError, match=["rank 1: value is 3", "another"][ranks.rank]):
        ranks.agreed(lambda: fail_on(1))
    with pytest.raises(ArgumentError if ranks.rank == 0 else RankError, match=["^value is 3", "another"][ranks.rank]):
        ranks.agreed(lambda: fail_on(0, 1))


def what_is_gathered_at_a_time(ranks):
    """Layers in a row are; not those that share weights with others, nor what is beside them."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Linear(2, 3), nn.Linear(2, 3)
            self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(3, 3), nn.ReLU()), nn.ReLU(), nn.Linear(2, 3)])
            self.out.weight = self.embed.weight = self.blocks[2].weight

    net = Net()
    assert units(net) == [net.blocks[0]]
    row = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    assert units(row) == [row[0]]


def main(rank, world, rendezvous):
    torch.set_num_threads(1)
    wait = dt.timedelta(seconds=120)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world, timeout=wait)
    try:
        for ranks in (Group(), Shards()):
            equals_one_process(ranks)
            goes_on(ranks)
            ends_on_all_ranks_where_it_diverges(ranks)
        errors_of_one_rank_are_told_by_the_first(ranks)
        what_is_gathered_at_a_time(ranks)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
