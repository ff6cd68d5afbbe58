"""Figure 3 of the escape from sharp minima: its start, its walks, what it keeps, and what it says."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from flatmin.errors import ArgumentError, DataError
from flatmin_lab.data.splits import Split, Splits
from flatmin_lab.errors import LabError
from flatmin_lab.recipes.escape2023 import fig3_scales
from flatmin_lab.recipes.escape2023.adversarial import Fit, Misleading, Misled, accuracy, drawn, fit, mislead
from flatmin_lab.recipes.escape2023.fig3 import fig3
from flatmin_lab.recipes.escape2023.fig3_claims import Claim
from flatmin_lab.recipes.escape2023.fig3_kept import Kept, Start
from flatmin_lab.recipes.escape2023.fig3_walks import Asked, Look, Observer, Walk, look_steps, walk
from flatmin_lab.recipes.reproductions import REPRODUCTIONS
from flatmin_lab.reproduction import RECORD, reproduce
from flatmin_lab.statistics import Interval

NOWHERE = lambda *_: None  # noqa: E731
QUICK = Fit(0.05, 0.9, 20, 300)
HOW = Misleading(copies=3, zeroed=0.1, random=QUICK, true=QUICK)


def rows(count, seed=0, features=12):
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(count, features, generator=source)
    return Split(x, (x[:, 0] > 0).long())


def network():
    return nn.Sequential(nn.Linear(12, 32), nn.Tanh(), nn.Linear(32, 2))


def asked(**changes):
    options = {"method": "SGD", "batch_size": 5, "rho": 0.0, "seed": 1, "num_steps": 6, "learning_rate": 0.1}
    return Asked(**options | {"origin": "here"} | changes)


def observer(**changes):
    splits = Splits(rows(20), rows(10, 1), rows(10, 2))
    return Observer(**{"splits": splits, "measured": 8, "num_matvecs": 500, "seed": 0} | changes)


# ------------------------------------------------------------------------------------------------ the start


def test_copies_have_pixels_and_labels_of_their_own():
    images = Split(1 + torch.rand(50, 3, 8, 8), torch.zeros(50, dtype=torch.long))
    misled = Misled(images, 10, HOW, seed=4)
    assert len(misled) == 150
    found = misled[torch.arange(150)]
    zero = found.inputs == 0
    assert (zero == zero[:, :1]).all()  # a pixel goes in all channels
    assert torch.equal(torch.where(zero, 0, images.inputs.repeat(3, 1, 1, 1)), found.inputs)
    n = zero[:, 0].numel()
    assert abs(int(zero[:, 0].sum()) - 0.1 * n) < 4 * math.sqrt(0.09 * n)
    assert len({tuple(zero[i : i + 50].flatten().tolist()) for i in (0, 50, 100)}) == 3
    counts = np.bincount(found.targets, minlength=10)
    assert ((counts - 15) ** 2 / 15).sum() < 27.9  # chi-squared, 9 degrees of freedom, 99.9 %
    again, other = Misled(images, 10, HOW, seed=4), Misled(images, 10, HOW, seed=5)
    assert torch.equal(again[torch.arange(150)].inputs, found.inputs)
    assert not torch.equal(other.targets, misled.targets)


def test_features_of_rows_are_zeroed_one_by_one():
    found = Misled(rows(40), 2, HOW, seed=0)[torch.arange(120)]
    zero = found.inputs == 0
    assert 0 < int(zero.sum()) < 4 * 144
    assert torch.equal(torch.where(zero, 0, rows(40).inputs.repeat(3, 1)), found.inputs)


def test_a_start_is_fitted_drawn_by_its_seed_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    made = []
    for _ in range(2):
        model = drawn(network, 3)
        first, then = mislead(model, rows(20), 2, HOW, seed=3, watch=NOWHERE)
        made.append(model.state_dict())
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(made[0].values(), made[1].values()))
    assert first.share == then.share == 1.0
    assert first.gradients == 3 * first.epochs
    train = rows(20)
    assert torch.equal(model(train.inputs).argmax(1), train.targets)
    assert accuracy(model, train) == 1.0
    right = (model(rows(1500, 1).inputs).argmax(1) == rows(1500, 1).targets).float().mean()
    assert accuracy(model, rows(1500, 1)) == pytest.approx(float(right))  # over more than one piece


def test_what_cannot_be_fitted_says_how_far_it_came():
    twice = Split(torch.ones(2, 12), torch.tensor([0, 1]))
    with pytest.raises(LabError, match=r"true labels: after 3 epochs 50.0% of 2 examples are right.*Take a wider"):
        fit(drawn(network, 0), twice, Fit(0.1, 0.0, 2, 3), seed=0, what="true labels", watch=NOWHERE)


# ------------------------------------------------------------------------------------------------ walks


@pytest.mark.parametrize(("method", "each"), [("SGD", 1), ("RS", 2), ("SA", 2)])
def test_a_walk_counts_its_gradients_and_looks_where_it_is_told(method, each):
    model = drawn(network, 0)
    seen = []
    options = {"first": observer().look(model), "looks": 3, "traces": 1, "watch": seen.append}
    found = walk(model, asked(method=method, rho=0.1), observer(), **options)
    assert [(look.step, look.gradients) for look in found.looks] == [(s, s * each) for s in (0, 2, 4, 6)]
    assert [look.trace is not None for look in found.looks] == [True, False, False, True]
    assert seen == [2, 4, 6]
    assert not found.diverged
    again = walk(drawn(network, 0), asked(method=method, rho=0.1), observer(), **options)
    assert again.looks == found.looks
    assert look_steps(10, 4) == [2, 5, 8, 10]


def gradient(model, batch):
    loss = functional.cross_entropy(model(batch.inputs), batch.targets)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def flat(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.mark.parametrize("method", ["SGD", "RS", "SA"])
def test_one_step_is_that_of_the_paper(method):
    model = drawn(network, 0).double()
    train = rows(20)
    splits = Splits(*(Split(train.inputs.double(), train.targets),) * 3)
    start, g, rho = flat(model), gradient(model, splits.train), 0.5
    first = Look(step=0, gradients=0, train_loss=0, train_accuracy=0, validation_accuracy=0, test_accuracy=0)
    options = {"first": first, "looks": 1, "traces": 1}
    one = asked(method=method, rho=rho, num_steps=1, batch_size=20)  # all data, so that the order does not matter
    walk(model, one, observer(splits=splits, num_matvecs=2), **options)
    v = (start - flat(model)) / 0.1 - g
    if method == "SGD":
        assert float(v.abs().max()) < 1e-12
        return
    assert abs(float(v @ g)) < 1e-12
    if method == "SA":
        candidates = []
        for sign in (1, -1):
            nn.utils.vector_to_parameters(start + rho * sign * g / g.norm(), model.parameters())
            up = gradient(model, splits.train)
            candidates.append(up - (up @ g) / (g @ g) * g)
        assert min(float((v - c).abs().max()) for c in candidates) < 1e-12
    else:  # the length of a random direction's gradient change: of the order of rho
        assert 0 < float(v.norm()) < 10 * rho


def test_the_trace_is_that_of_the_first_examples():
    model, watcher = nn.Linear(12, 2), observer()
    x, y = rows(20).inputs[:8], rows(20).targets[:8]
    w = torch.cat([model.weight.flatten(), model.bias]).detach()

    def loss(w):
        return functional.cross_entropy(x @ w[:24].reshape(2, 12).T + w[24:], y)

    exact = float(torch.trace(torch.func.hessian(loss)(w)))
    found = watcher.look(model)
    assert found.trace == pytest.approx(exact, rel=1e-4, abs=4 * found.trace_stderr)
    logits = model(rows(20).inputs).detach()
    assert found.train_loss == pytest.approx(float(functional.cross_entropy(logits, rows(20).targets)), rel=1e-5)
    assert watcher.look(model, trace=False).trace is None


def test_a_walk_that_leaves_the_finite_numbers_ends_there():
    model = drawn(network, 0)
    first = observer().look(model)
    lost = walk(model, asked(learning_rate=1e38, num_steps=50), observer(), first, looks=5, traces=1)
    assert lost.diverged
    assert Walk.model_validate_json(lost.model_dump_json()) == lost


# ------------------------------------------------------------------------------------------------ what is kept


def kept_start(folder, notes):
    look = observer().look(drawn(network, 0))
    weights = drawn(network, 0).state_dict()
    start = Start(made_of="this", random_share=1.0, random_epochs=1, true_epochs=2, gradients=3, look=look, fresh=look)
    kept = Kept(folder, notes.append)
    kept.keep_start(start, weights)
    return kept, start, weights


def test_the_start_is_kept_whole_and_made_again_where_it_is_not(tmp_path):
    notes = []
    kept, start, weights = kept_start(tmp_path, notes)
    about, found = kept.start("this")
    assert about == start
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert kept.start("that") is None
    assert notes.pop() == "start.safetensors is made again: it is of other data, another recipe or another version."
    path = tmp_path / "start.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert kept.start("this") is None
    assert notes.pop() == "start.safetensors is made again: it cannot be read."
    path.unlink()
    assert kept.start("this") is None
    assert not notes


def test_walks_are_kept_by_all_that_decides_them(tmp_path):
    notes = []
    kept, start, _ = kept_start(tmp_path, notes)
    found = Walk(asked=asked(), looks=(start.look,), seconds=1.0)
    kept.keep_walk(found)
    assert kept.walk(asked()) == found
    assert kept.walk(asked(origin="elsewhere")) is None
    assert kept.walk(asked(method="SA", rho=0.1)) is None
    (path,) = (tmp_path / "walks").iterdir()
    assert path.name.startswith("SGD-batch5-seed1-")
    path.write_text(found.model_copy(update={"asked": asked(seed=2)}).model_dump_json())
    assert kept.walk(asked()) is None
    assert notes.pop() == f"{path.name} is made again: it holds another walk."
    path.write_text("{")
    assert kept.walk(asked()) is None
    assert notes.pop() == f"{path.name} is made again: it cannot be read."


# ------------------------------------------------------------------------------------------------ what is said


@pytest.mark.parametrize(
    ("low", "high", "sign", "verdict"),
    [
        (1.0, 2.0, 1, "agrees"),
        (-2.0, -1.0, 1, "disagrees"),
        (-2.0, -1.0, -1, "agrees"),
        (-1.0, 2.0, 1, "undecided"),
        (-math.inf, math.inf, -1, "undecided"),
    ],
)
def test_a_claim_is_judged_by_its_interval(low, high, sign, verdict):
    assert Claim("it is so", "this", Interval(0.0, low, high, 3), sign).verdict == verdict


def test_the_paper_lacks_its_data_or_a_gpu_before_anything_starts(tmp_path, monkeypatch):
    entry = REPRODUCTIONS["escape.fig3"]
    entry.require("toy")
    monkeypatch.setenv("FLATMIN_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"cifar10_jpeg75.npz is missing"):
        entry.require("small")
    with pytest.raises(DataError, match=r"cifar-10-binary.tar.gz is missing"):
        entry.require("paper")
    (tmp_path / "cifar-10-binary.tar.gz").touch()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LabError, match=r"size is 'paper'.*no GPU here.*--size small"):
        entry.require("paper")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    entry.require("paper")
    with pytest.raises(ArgumentError, match="size is 'huge', but it must be one of"):
        entry.require("huge")
    with pytest.raises(ArgumentError, match=r"task is 'digits', but it must be one of 'escape\.fig3'"):
        fig3("toy", 0, NOWHERE, tmp_path, tasks=("digits",))


@pytest.mark.parametrize("size", ["toy", "small", "paper"])
def test_both_methods_have_as_many_radii(size):
    counts = {len(way.radii) for way in fig3_scales.SIZES[size]().ways if way.method != "SGD"}
    assert len(counts) == 1


def test_figure_3_at_toy_size_goes_on_where_it_was(tmp_path):
    folder = tmp_path / "fig3"
    record = reproduce("escape.fig3", "toy", folder)
    claims, ends, start, radii = record.tables
    assert len(claims.rows) == 6
    assert start.rows[0][1] == start.rows[1][1] == 100.0
    assert start.rows[0][3] < start.rows[1][3] - 5  # the start generalizes worse than a fresh one
    assert [row[:2] for row in ends.rows] == [
        ("SGD", 128), ("RS", 128), ("SA", 128), ("SA", 64), ("SA", 1), ("SGD", 1)
    ]  # fmt: skip
    steps = fig3_scales.SIZES["toy"]().num_steps
    for row in ends.rows:
        each = 1 if row[0] == "SGD" else 2
        assert row[-3:] == (steps, each * steps, each * steps * row[1])
    for method, batch in {row[:2] for row in radii.rows}:
        tried = [row for row in radii.rows if row[:2] == (method, batch)]
        assert max(tried, key=lambda row: row[3])[-1] == "chosen"
    assert (folder / "fig3.png").stat().st_size > 10_000
    assert "**What differs from the paper**" in record.text

    walks = sorted((folder / "sweep" / "walks").iterdir())
    assert len(walks) == 16
    times = {path: path.stat().st_mtime_ns for path in walks}
    (folder / RECORD).unlink()
    walks[0].write_text("{")
    walks[1].unlink()
    again = reproduce("escape.fig3", "toy", folder)
    assert [table.rows for table in again.tables] == [table.rows for table in record.tables]
    assert again.text == f"{record.text}\n\n**Noted**: {walks[0].name} is made again: it cannot be read."
    assert {path for path in walks if path.stat().st_mtime_ns != times[path]} == set(walks[:2])
