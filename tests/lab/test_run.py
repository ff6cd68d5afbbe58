"""A run: paired, counted, deterministic, invisible to global generators, and clear about divergence."""

import dataclasses

import pytest
import torch

from flatmin.errors import ArgumentError
from flatmin_lab import run as run_module
from flatmin_lab.errors import DivergedError, LabError
from flatmin_lab.methods import METHODS, method
from flatmin_lab.run import network, score, train, usable_device
from flatmin_lab.tasks import TASKS, task
from small_runs import VALUES, driven, outcome, run_spec


@pytest.fixture
def batches_seen(monkeypatch):
    """The batches that closures evaluate, as they come."""
    seen = []
    inner = run_module._batches

    def recorded(*arguments):
        for batch in inner(*arguments):
            seen.append(batch.inputs)
            yield batch

    monkeypatch.setattr(run_module, "_batches", recorded)
    return seen


def test_methods_of_one_seed_are_paired(batches_seen):
    orders = {}
    for name in METHODS:
        batches_seen.clear()
        driven(train(run_spec(name, budget=8)))
        orders[name] = list(batches_seen)
    assert {name: len(order) for name, order in orders.items()} == {
        name: 8 // m.evaluations_per_step for name, m in METHODS.items()
    }
    for order in orders.values():
        assert all(torch.equal(a, b) for a, b in zip(order, orders["sgd"], strict=False))


def test_methods_of_one_seed_start_at_the_same_weights():
    starts = [network(run_spec(name)).state_dict() for name in METHODS]
    for weights in starts:
        assert all(torch.equal(weights[k], starts[0][k]) for k in weights)
    other = network(run_spec(seed=1)).state_dict()
    assert not torch.equal(other["0.weight"], starts[0]["0.weight"])


@pytest.mark.parametrize("name", METHODS)
def test_every_method_uses_exactly_its_budget(name):
    points, trained = driven(train(run_spec(name, budget=64)))
    assert trained.result.gradient_evaluations == 64
    assert points[-1].evaluations == 64
    assert trained.result.history == tuple(points)


def test_history_has_about_thirty_points():
    points, _ = driven(train(run_spec(budget=100)))
    assert 20 <= len(points) <= 31


@pytest.mark.parametrize("name", METHODS)
def test_deterministic_and_invisible_to_the_global_generator(name):
    before = torch.get_rng_state()
    first = outcome(run_spec(name))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    second = outcome(run_spec(name))
    torch.set_rng_state(before)
    assert first.weights == second.weights
    assert first.result.model_dump(exclude={"seconds"}) == second.result.model_dump(exclude={"seconds"})


def test_noise_methods_report_their_live_trace():
    for name in METHODS:
        points, _ = driven(train(run_spec(name)))
        assert (points[-1].live_trace is not None) == (name in {"nso", "wpsgd"})


def test_measuring_gives_curvature_with_its_errors():
    result = outcome(run_spec(), measure=True, surface=True).result
    assert result.trace_stderr > 0
    assert result.top_eigenvalue_residual >= 0
    assert result.trace > 0


def test_surface_is_drawn_around_the_solution():
    done = outcome(run_spec(budget=40), surface=True)
    middle = len(done.surface.coordinates) // 2
    assert done.surface.coordinates[middle] == 0
    assert done.surface.loss[middle][middle] == pytest.approx(done.result.train_loss, rel=1e-4)


def test_scoring_leaves_the_mode_as_found():
    model = network(run_spec())
    split = task("digits-clean").load(0).validation
    for mode in (True, False):
        model.train(mode)
        score(model, split)
        assert model.training is mode


@pytest.fixture
def explosive(monkeypatch):
    """The clean task with a learning rate that no method survives."""
    former = TASKS["digits-clean"]
    setting = dataclasses.replace(former.setting, learning_rate=1e6)
    monkeypatch.setitem(TASKS, "digits-clean", dataclasses.replace(former, setting=setting))


@pytest.mark.usefixtures("explosive")
@pytest.mark.parametrize("name", METHODS)
def test_divergence_says_what_where_why_and_what_to_do(name):
    with pytest.raises(DivergedError) as caught:
        driven(train(run_spec(name, budget=400)))
    message = str(caught.value)
    for part in ("digits-clean", name, "of 400", "Likely cause", "learning rate 1e+06", "Take a smaller one"):
        assert part in message
    if method(name).hyperparameter:
        assert f"{method(name).hyperparameter} = {VALUES[name]:g}" in message


@pytest.mark.usefixtures("explosive")
def test_a_diverged_run_is_an_outcome():
    done = outcome(run_spec("sam", budget=400), measure=True, surface=True)
    assert done.result.status == "diverged"
    assert done.result.test_accuracy != done.result.test_accuracy
    assert done.weights is None
    assert type(done.result).model_validate_json(done.result.model_dump_json()).status == "diverged"


def test_a_method_that_evaluates_more_than_it_declares_is_found_out(monkeypatch):
    monkeypatch.setitem(METHODS, "sam", dataclasses.replace(METHODS["sam"], evaluations_per_step=1))
    with pytest.raises(LabError, match=r"used 16 gradient evaluations, but 8 were its share"):
        driven(train(run_spec("sam", budget=8)))


@pytest.mark.parametrize("name", ["nonsense", "meta", "cuda:63"])
def test_a_device_that_is_not_there(name):
    with pytest.raises(ArgumentError, match=rf"device is '{name}'.*--device cpu"):
        usable_device(name)


def test_a_method_without_its_value():
    with pytest.raises(ArgumentError, match="needs its sigma, rho or alpha"):
        driven(train(run_spec("nso", value=None)))


def test_unknown_method_names_the_nearest():
    with pytest.raises(ArgumentError, match=r"method is 'sma'.*Did you mean 'sam'"):
        method("sma")


def test_every_tuned_method_tries_as_many_values():
    assert len({len(m.grid) for m in METHODS.values() if m.hyperparameter}) == 1
    assert all(list(m.grid) == sorted(m.grid) for m in METHODS.values())
    assert all(name == m.name for name, m in METHODS.items())
