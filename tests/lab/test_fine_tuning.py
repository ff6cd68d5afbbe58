"""The task that fine-tunes given weights: its splits, its start, its numbers, and what is said of missing data."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import flatmin as fm
from flatmin.curvature.legacy import authors_lambda
from flatmin.errors import DataError
from flatmin_lab.compare import check
from flatmin_lab.data import cifar
from flatmin_lab.methods import METHODS, Ingredients
from flatmin_lab.run import network, train
from flatmin_lab.sharpness import curvature
from flatmin_lab.tasks import MAIN, Measuring, task
from lab_data import images, resnet, save
from small_runs import asked, driven, outcome, run_spec

NAME = "cifar10-jpeg75-resnet20"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A data root with 20 images to train on, 4 to test with, and a ResNet-20."""
    images(tmp_path, count=24, tests=4)
    save(resnet(3), tmp_path / "resnet20_cifar10.safetensors")
    monkeypatch.setenv("FLATMIN_DATA", str(tmp_path))
    cifar.drawn_splits.cache_clear()
    yield tmp_path
    cifar.drawn_splits.cache_clear()


@pytest.mark.usefixtures("root")
def test_splits_depend_on_the_seed_but_for_the_test_images():
    first, second = cifar.drawn_splits(0), cifar.drawn_splits(1)
    cifar.drawn_splits.cache_clear()
    assert cifar.drawn_splits(0).digest == first.digest != second.digest
    assert first.test.digest == second.test.digest
    assert (len(first.train), len(first.validation), len(first.test)) == (13, 7, 4)
    rows = torch.cat([first.train.inputs, first.validation.inputs]).flatten(1)
    assert len(rows.unique(dim=0)) == 20  # every image once: training and validation share none


@pytest.mark.usefixtures("root")
def test_every_seed_starts_at_the_given_weights_in_training_mode():
    expected = resnet(3).state_dict()
    for seed in (0, 1):
        model = network(run_spec(task=NAME, seed=seed))
        assert model.training
        found = model.state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("way", METHODS)
def test_every_method_fine_tunes_within_its_budget(way):
    result = driven(train(run_spec(way, task=NAME, budget=4)))[1].result
    assert result.gradient_evaluations == 4
    assert result.splits == cifar.drawn_splits(0).digest


@pytest.mark.usefixtures("root")
def test_curvature_is_that_of_evaluation_mode_and_the_authors_number_is_a_mean_over_batches():
    spec = run_spec(task=NAME, budget=2)
    result = outcome(spec, measure=True).result
    weights = driven(train(spec))[1].weights
    model = network(spec, weights).eval()
    data = cifar.drawn_splits(0).train
    H = fm.Hessian(model, nn.functional.cross_entropy, data.batches(64))
    assert result.trace == pytest.approx(float(fm.trace(H, num_matvecs=50, seed=0).value), rel=1e-4)
    on = replace(task(NAME), measuring=Measuring(batch_size=8, authors_layers="conv", num_matvecs=2))
    found = curvature(model, on, data.batches(8), seed=0)["authors_lambda"]
    each = [fm.Hessian(model, nn.functional.cross_entropy, [batch]) for batch in data.batches(8)]
    assert len(each) == 2
    assert found == pytest.approx(sum(authors_lambda(h, seed=0).value for h in each) / 2)


def test_missing_data_are_said_before_anything_starts(tmp_path, monkeypatch):
    wanted = asked(tasks=(NAME,))
    monkeypatch.delenv("FLATMIN_DATA", raising=False)
    with pytest.raises(DataError, match=rf"The task {NAME} needs cifar10_jpeg75\.npz, CIFAR-10 \(www.*FLATMIN_DATA"):
        check(wanted, workers=1)
    monkeypatch.setenv("FLATMIN_DATA", str(tmp_path))
    images(tmp_path)
    with pytest.raises(DataError, match=r"needs resnet20_cifar10\.safetensors, a ResNet-20.*is missing"):
        check(wanted, workers=1)


def test_grids_are_the_tasks_own_and_as_long_for_every_method():
    on = task(NAME)
    grids = {name: on.grid(m) for name, m in METHODS.items() if m.hyperparameter}
    assert {len(grid) for grid in grids.values()} == {4}
    assert grids["nso"] == (0.008, 0.01, 0.012, 0.014)
    assert grids["asam"] == METHODS["asam"].grid
    assert all(task(name).grid(METHODS["nso"]) == METHODS["nso"].grid for name in MAIN)


def test_label_smoothing_trains_on_smoothed_targets_and_costs_one_gradient():
    logits, targets = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([1])
    log_p = logits.log_softmax(dim=1)
    expected = -(0.7 * log_p[0, 1] + 0.3 * log_p.mean())
    assert torch.allclose(METHODS["ls"].loss(task(NAME).loss, 0.3)(logits, targets), expected)
    assert METHODS["ls"].evaluations_per_step == 1


def test_bayesian_sam_begins_with_steps_as_long_as_the_base_optimizers():
    model = nn.Linear(3, 1)
    base = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=0.1)
    group = (
        METHODS["bsam"].build(Ingredients(base, model, 0.05, seed=0, num_examples=200, num_steps=10)).param_groups[0]
    )
    # A constant gradient g moves SGD by lr g / (1 - momentum) a step in the long run, and BSAM by its lr g / s.
    assert group["lr"] == pytest.approx(0.02 / (1 - 0.9))
    assert (group["betas"], group["weight_decay"], group["rho"]) == ((0.9, 0.999), 0.1, 0.05)


def test_a_tuning_run_measures_nothing():
    result = outcome(run_spec(task="digits-tiny")).result
    assert (result.trace, result.authors_lambda) == (None, None)
