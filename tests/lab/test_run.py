"""A run: paired, counted, deterministic, invisible to global generators, and clear about divergence."""

import dataclasses

import pytest
import torch

from flatmin.errors import ArgumentError
from flatmin_lab import training
from flatmin_lab.errors import DivergedError, LabError
from flatmin_lab.methods import METHODS, method
from flatmin_lab.run import network, train, usable_device
from flatmin_lab.spec import Changes
from flatmin_lab.tasks import TASKS, task
from small_runs import VALUES, driven, outcome, run_spec


@pytest.fixture
def batches_seen(monkeypatch):
    """The batches that closures evaluate, as they come."""
    seen = []
    inner = training._batches

    def recorded(*arguments):
        for batch in inner(*arguments):
            seen.append(batch.inputs)
            yield batch

    monkeypatch.setattr(training, "_batches", recorded)
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
        assert (points[-1].live_trace is not None) == name.startswith(("nso", "wpsgd"))


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


def test_changes_replace_numbers_of_the_setting_and_nothing_else():
    base = task("digits-clean").setting
    changed = base.changed(Changes(learning_rate=0.5, batch_size=7))
    assert changed == dataclasses.replace(base, learning_rate=0.5, batch_size=7)
    as_it_is = Changes(learning_rate=base.learning_rate, momentum=base.momentum)
    plain, same = (driven(train(run_spec(changes=c)))[1] for c in (Changes(), as_it_is))
    assert all(torch.equal(plain.weights[k], same.weights[k]) for k in plain.weights)
    other = driven(train(run_spec(changes=Changes(learning_rate=0.5))))[1]
    assert not all(torch.equal(plain.weights[k], other.weights[k]) for k in plain.weights)


def test_the_distance_penalty_pulls_as_its_gradient_says():
    strength, lr = 3.0, task("digits-clean").setting.learning_rate
    spec = run_spec(budget=2, changes=Changes(momentum=0.0, distance_penalty=strength))
    free = run_spec(budget=2, changes=Changes(momentum=0.0))
    start = network(spec).state_dict()
    pulled, loose = driven(train(spec))[1].weights, driven(train(free))[1].weights
    # At the first step the penalty's gradient is zero. At the second it is strength (w - w0), at half the rate.
    for name, w0 in start.items():
        after_one = _after_one_step(free, name)
        expected = loose[name] - lr / 2 * strength * (after_one - w0)
        assert torch.allclose(pulled[name], expected, atol=1e-6)


def _after_one_step(spec, name):
    run = training.Training(spec, torch.device("cpu"), network(spec))
    run._step()
    return run.model.state_dict()[name].clone()


def test_halves_of_a_batch_accumulate_to_its_gradient():
    """A network without batch-norm does not see that its batch is dealt."""
    whole, halves = (driven(train(run_spec(way)))[1] for way in ("sgd", "sgd-halves"))
    assert whole.result.gradient_evaluations == halves.result.gradient_evaluations
    for name, tensor in whole.weights.items():
        assert torch.allclose(tensor, halves.weights[name], atol=1e-6)


def test_paired_halves_see_mirrored_noise():
    """The points of the two halves lie on either side of the weights, with the noise of one draw."""
    spec = run_spec("nso-halves")
    run = training.Training(spec, torch.device("cpu"), network(spec))
    seen, centre = [], {k: v.clone() for k, v in run.model.named_parameters()}
    run.model.register_forward_hook(lambda m, *_: seen.append([p.detach().clone() for p in m.parameters()]))
    run._step()
    plus, minus = seen
    for w, p, m in zip(centre.values(), plus, minus, strict=True):
        assert torch.allclose((p + m) / 2, w.detach(), atol=1e-6)
        assert 0.7 < float((p - w.detach()).std()) / spec.value < 1.3 or w.numel() < 100
    assert run.evaluations == 1


def test_a_task_that_measures_along_the_way_leaves_the_run_as_it_was(monkeypatch):
    former = TASKS["digits-tiny"]
    plain = driven(train(run_spec("nso", task="digits-tiny")))[1]
    looked = dataclasses.replace(former, measuring=dataclasses.replace(former.measuring, along=0.01))
    monkeypatch.setitem(TASKS, "digits-tiny", looked)
    points, found = driven(train(run_spec("nso", task="digits-tiny")))
    assert all(torch.equal(plain.weights[k], found.weights[k]) for k in plain.weights)
    assert all(p.trace > 0 and p.trace_stderr >= 0 and p.gap_stderr > 0 and 0 <= p.test_accuracy <= 1 for p in points)
    assert points[-1].test_loss == found.result.test_loss
