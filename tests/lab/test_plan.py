"""What a comparison consists of: equal tuning, selection on validation data alone, nothing run twice."""

import math

import pytest

from flatmin_lab.errors import LabError
from flatmin_lab.methods import METHODS
from flatmin_lab.plan import TUNING_SEEDS, final_specs, first_round, rounds, select
from flatmin_lab.spec import Arm, Changes, RunResult, Study
from small_runs import asked, run_spec


class Shelf:
    """Stands in for the run folder: results made up from their specification."""

    def __init__(self, validation, trace=None):
        self.validation = validation
        self.trace = trace
        self.stored = {}

    def add(self, specs):
        for spec in specs:
            self.stored[spec] = self._result(spec)

    def result(self, spec):
        return self.stored.get(spec)

    def results(self, specs):
        return [self.stored[spec] for spec in specs]

    def weights(self, spec):
        return spec.name

    def surface(self, _):
        return None

    def _result(self, spec):
        accuracy = self.validation(spec)
        if math.isnan(accuracy):
            return RunResult.diverged(spec, "boom", gradient_evaluations=1, seconds=0.0)
        return RunResult(
            spec=spec,
            # the worse the validation accuracy the better the test accuracy: who looks at the latter is found out
            test_accuracy=1 - accuracy,
            test_loss=accuracy,
            train_accuracy=1 - accuracy,
            train_loss=accuracy,
            validation_accuracy=accuracy,
            validation_loss=1.0,
            seconds=1.0,
            gradient_evaluations=spec.budget,
            trace=self.trace,
        )


def tuned(validation, comparison):
    shelf = Shelf(validation)
    while missing := [spec for spec in first_round(comparison, shelf) if spec not in shelf.stored]:
        shelf.add(missing)
    return shelf, select(comparison, shelf)


def test_selection_is_by_mean_validation_accuracy_and_nothing_else():
    best = METHODS["nso"].grid[2]
    spread = {0: 0.3, 1: 0.1}  # over the tuning seeds: the mean counts
    _, (chosen,) = tuned(lambda s: spread[s.seed] + (0.2 if s.value == best else 0.0), asked(("nso",)))
    assert chosen.chosen == best
    assert chosen.hyperparameter == "sigma"
    assert chosen.validation_accuracies == pytest.approx([0.2, 0.2, 0.4, 0.2])


def test_of_equal_values_the_smaller_is_taken():
    _, (chosen,) = tuned(lambda _: 0.5, asked(("sam",)))
    assert chosen.chosen == min(METHODS["sam"].grid)


def test_a_value_that_diverged_with_one_seed_is_out():
    lost = METHODS["sam"].grid[0]
    diverges = lambda s: s.value == lost and s.seed == 1  # noqa: E731
    _, (chosen,) = tuned(lambda s: math.nan if diverges(s) else 0.9 - s.value / 10, asked(("sam",)))
    assert chosen.chosen == METHODS["sam"].grid[1]
    assert math.isnan(chosen.validation_accuracies[0])


def test_a_method_that_always_diverges_ends_the_comparison():
    with pytest.raises(LabError, match=r"nso diverged on digits-clean with every sigma.*--methods"):
        tuned(lambda _: math.nan, asked(("nso",)))


def test_every_tuned_method_gets_as_many_tuning_runs():
    specs = [spec for spec, final in first_round(asked(tuple(METHODS), budget=8), Shelf(None)).items() if not final]
    counts = {name: sum(s.method == name for s in specs) for name in METHODS}
    assert counts.pop("sgd") == counts.pop("sgd-halves") == 0
    assert len(set(counts.values())) == 1
    assert {s.seed for s in specs} == set(TUNING_SEEDS)


def test_finals_are_paired_and_share_the_budget():
    comparison = asked(tuple(METHODS), seeds=4, budget=10)
    _, selections = tuned(lambda _: 0.5, comparison)
    finals = final_specs(comparison, selections)
    for name in METHODS:
        assert [s.seed for s in finals if s.method == name] == [0, 1, 2, 3]
    assert {s.budget for s in finals} == {10}


def test_rounds_train_nothing_twice_and_measure_finals_alone():
    comparison = asked(("sgd", "nso"), seeds=3)
    shelf = Shelf(lambda s: s.value or 0.5)
    course = rounds(comparison, shelf)
    first, planned = next(course)
    grid = METHODS["nso"].grid
    assert len(first) == 3 + len(grid) * len(TUNING_SEEDS)
    assert all(job.measure == (job.spec.method == "sgd") for job in first)
    assert [job.spec.seed for job in first if job.surface] == [0]
    assert (planned.runs_done, planned.runs_total) == (0, len(first) + 1)

    shelf.add(job.spec for job in first)
    second, planned = next(course)
    finals = [job for job in second if job.spec.method == "nso"]
    assert [job.spec.seed for job in finals] == [0, 1, 2]
    assert {job.spec.value for job in finals} == {max(grid)}
    assert [job.stored is not None for job in finals] == [True, True, False]
    assert all(job.measure for job in finals)
    assert (planned.runs_done, planned.runs_total) == (len(first), len(first) + 1)


def test_nothing_is_left_of_a_diverged_run():
    comparison = asked(("sgd",), seeds=2)
    shelf = Shelf(lambda s: math.nan if s.seed else 0.5, trace=1.0)
    shelf.add([run_spec(budget=4), run_spec(budget=4, seed=1)])
    first, planned = next(rounds(comparison, shelf))
    assert [(job.spec.seed, job.measure, job.surface) for job in first] == [(0, False, True)]
    assert planned.runs_done == 2


def test_arms_differ_by_setting_and_budget_and_each_is_tuned_by_its_own_runs():
    low, high = Changes(learning_rate=0.01), Changes(learning_rate=0.1)
    arms = (
        Arm(task="digits-clean", method="nso", budget=4, changes=low, values=(0.1, 0.2)),
        Arm(task="digits-clean", method="nso", budget=4, changes=high, values=(0.1, 0.2)),
        Arm(task="digits-clean", method="nso", budget=8, changes=low, values=(0.1, 0.2)),
        Arm(task="digits-clean", method="sgd", budget=4),
    )
    study = Study(arms=arms, seeds=3)
    best = {(4, low): 0.1, (4, high): 0.2, (8, low): 0.2}
    _, selections = tuned(lambda s: 0.9 if best.get((s.budget, s.changes), s.value) == s.value else 0.1, study)
    assert [s.chosen for s in selections] == [0.1, 0.2, 0.2]
    finals = final_specs(study, selections)
    assert len(finals) == len(set(finals)) == len({s.folder for s in finals}) == 12
    assert [(s.budget, s.changes, s.value) for s in finals if s.seed == 2] == [
        (4, low, 0.1),
        (4, high, 0.2),
        (8, low, 0.2),
        (4, Changes(), None),
    ]


def test_of_arms_with_one_value_nothing_is_chosen_though_another_arm_is_tuned():
    fixed = [Arm(task="digits-clean", method="nso", budget=4, values=(value,)) for value in (0.1, 0.2)]
    tunes = Arm(task="digits-clean", method="nso", budget=4, values=(0.1, 0.3))
    study = Study(arms=(*fixed, tunes), seeds=3)
    _, selections = tuned(lambda s: s.value, study)
    assert [s.chosen for s in selections] == [0.3]
    run = [(s.value, s.seed) for s in final_specs(study, selections)]
    assert run == [(value, seed) for value in (0.1, 0.2, 0.3) for seed in range(3)]


def test_a_run_that_tunes_one_arm_and_is_final_in_another_is_measured():
    tunes = Arm(task="digits-clean", method="nso", budget=4, values=(0.1, 0.2))
    final = Arm(task="digits-clean", method="nso", budget=4, values=(0.1,))
    for arms in ((tunes, final), (final, tunes)):
        wanted = first_round(Study(arms=arms, seeds=2), Shelf(None))
        assert {(s.value, final) for s, final in wanted.items()} == {(0.1, True), (0.2, False)}


def test_optuna_tries_as_many_values_as_the_grid_has_and_goes_on_from_what_is_stored():
    pytest.importorskip("optuna")
    study = asked(("sam", "nso"), seeds=3).model_copy(update={"search": "optuna"})
    shelf = Shelf(lambda s: 1.0 - abs(s.value - 0.11))
    asked_for = []
    for jobs, planned in rounds(study, shelf):
        asked_for.append([job.spec for job in jobs])
        assert planned.runs_done + sum(job.stored is None for job in jobs) <= planned.runs_total
        shelf.add(asked_for[-1])
    tuning = {spec for batch in asked_for[:-1] for spec in batch}
    assert len(asked_for) > 2
    for name in ("sam", "nso"):
        grid = METHODS[name].grid
        tried = {s.value for s in tuning if s.method == name}
        assert len(tried) == len(grid)
        assert min(grid) <= min(tried) <= max(tried) <= max(grid)
    for selection in select(study, shelf):
        assert selection.chosen == min(selection.grid, key=lambda value: abs(value - 0.11))
    resumed = Shelf(shelf.validation)
    resumed.add(spec for batch in asked_for[:2] for spec in batch)
    again = []
    for jobs, _ in rounds(study, resumed):
        again.append([job.spec for job in jobs])
        resumed.add(again[-1])
    assert {s for batch in again for s in batch} == {s for batch in asked_for[2:] for s in batch}
