"""What a comparison shows: rows for arms, corrected tests, all tasks together, and grids; against oracles."""

import math

import numpy as np
import pytest

import synthetic
from flatmin_lab.report import text
from flatmin_lab.report.across import across_tasks
from flatmin_lab.report.differences import corrected, paired_difference
from flatmin_lab.report.findings import deciding, finding
from flatmin_lab.report.sensitivity import lines, sensitivity_figure
from flatmin_lab.report.style import method_styles
from flatmin_lab.report.summary import Verdict, reference_of, summarise
from flatmin_lab.spec import Arm, Changes, Comparison, Study
from flatmin_lab.statistics import holm, interquartile_mean, sign_flip_test

TASK = "digits-noisy"


def results_of(accuracies, method):
    """Runs of one method, one a seed."""
    return [synthetic.run(TASK, method, seed, test_accuracy=x) for seed, x in enumerate(accuracies)]


def with_batches(*sizes):
    """SGD and NSO in the task's setting and with other batch sizes, NSO's accuracy one point higher for each."""
    base = synthetic.comparison(tasks=(TASK,), methods=("sgd", "nso"))
    arms, results, selections = list(base.spec.arms), list(base.results), list(base.selections)
    for i, size in enumerate(sizes, 1):
        changes = Changes(batch_size=size)
        arms += [arm.model_copy(update={"changes": changes}) for arm in base.spec.arms]
        selections += [s.model_copy(update={"changes": changes}) for s in base.selections]
        results += [
            r.model_copy(
                update={
                    "spec": r.spec.model_copy(update={"changes": changes}),
                    "test_accuracy": r.test_accuracy + 0.01 * i * (r.spec.method == "nso"),
                }
            )
            for r in base.results
        ]
    return Comparison(
        spec=Study(arms=tuple(arms), seeds=6), results=tuple(results), selections=tuple(selections), environment={}
    )


class TestRows:
    def test_each_arm_has_its_own_runs_and_its_own_reference(self):
        found = summarise(with_batches(8, 16))
        assert text.labels(found) == [
            "SGD",
            "NSO, σ = 0.05",
            "SGD, batch size 8",
            "NSO, σ = 0.05, batch size 8",
            "SGD, batch size 16",
            "NSO, σ = 0.05, batch size 16",
        ]
        assert all(len(row.results) == 6 for row in found)
        plain, *others = [row.differences["test_accuracy"] for row in found if row.method == "nso"]
        for i, difference in enumerate(others, 1):  # against SGD with the same batch size, which is SGD's as it was
            assert difference.values == pytest.approx([d + 0.01 * i for d in plain.values])

    def test_reference_is_the_one_in_the_nearest_setting(self):
        changed = Changes(batch_size=8)
        arms = [Arm(task=TASK, method="sgd", budget=b, changes=c) for b in (10, 20) for c in (Changes(), changed)]

        def nearest(**kind):
            return reference_of(Arm(task=TASK, method="nso", **kind), arms)

        assert nearest(budget=20, changes=changed) == arms[3]
        assert nearest(budget=40, changes=changed) == arms[1]
        assert nearest(budget=20, changes=Changes(momentum=0.0)) == arms[0]
        assert reference_of(Arm(task="digits", method="nso", budget=20), arms) is None

    def test_arms_that_differ_in_their_value_alone(self):
        base = synthetic.comparison(tasks=(TASK,), methods=("sgd", "nso"), selections=())
        arms = [Arm(task=TASK, method="nso", budget=2400, values=(v,)) for v in (0.05, 0.1)]
        other = [
            r.model_copy(update={"spec": r.spec.model_copy(update={"value": 0.1}), "test_accuracy": 0.5})
            for r in base.results
            if r.spec.method == "nso"
        ]
        found = summarise(
            base.model_copy(
                update={
                    "spec": base.spec.model_copy(update={"arms": (base.spec.arms[0], *arms)}),
                    "results": (*base.results, *other),
                }
            )
        )
        assert text.labels(found) == ["SGD", "NSO, σ = 0.05", "NSO, σ = 0.1"]
        assert found[2].quantities["test_accuracy"].interval.mean == 0.5
        assert found[1].quantities["test_accuracy"].interval.mean > 0.8

    def test_budgets_tell_rows_apart_where_nothing_else_does(self):
        base = synthetic.comparison(tasks=(TASK,), methods=("nso",))
        short = base.spec.arms[0].model_copy(update={"budget": 1200})
        both = base.spec.model_copy(update={"arms": (*base.spec.arms, short)})
        results = (*base.results, *(synthetic.run(TASK, "nso", seed, budget=1200) for seed in range(6)))
        found = summarise(base.model_copy(update={"spec": both, "results": results}))
        assert text.labels(found) == ["NSO, σ = 0.05, 2400 gradients", "NSO, σ = 0.05, 1200 gradients"]
        assert [row.results[0].spec.budget for row in found] == [2400, 1200]


class TestCorrection:
    def test_is_holms_over_the_methods_of_a_task(self):
        found = summarise(synthetic.comparison(tasks=(TASK, "digits-clean")))
        for metric in ("test_accuracy", "trace"):
            family = [row.differences[metric] for row in found if row.task == TASK and row.differences]
            assert [d.adjusted_p for d in family] == list(holm([d.test.p for d in family]))
            assert {d.num_compared for d in family} == {3}

    def test_what_one_test_shows_three_together_may_not(self):
        # Six seeds of one sign: p = 2/64 alone, three times that after Holm's correction.
        one = paired_difference(results_of([0.9] * 6, "nso"), results_of([0.8] * 6, "sgd"), "test_accuracy")
        assert (one.test.p, one.verdict) == (2 / 64, Verdict.HIGHER)
        together = corrected([one, None, one, one])
        assert together[1] is None
        assert [d.adjusted_p for d in together if d] == [6 / 64] * 3
        assert {d.verdict for d in together if d} == {Verdict.TOO_FEW_SEEDS}
        said = str(finding("NSO", together[0]))
        assert "p = 0.031 (Holm 0.094)" in said
        assert "can reach p = 0.094 at the smallest after Holm's correction for 3 comparisons; it takes 7" in said

    def test_undefined_differences_are_not_counted(self):
        one = paired_difference(results_of([0.9] * 6, "nso"), results_of([0.8] * 6, "sgd"), "test_accuracy")
        lost = paired_difference(results_of([math.nan] * 6, "sam"), results_of([0.8] * 6, "sgd"), "test_accuracy")
        first, second = corrected([one, lost])
        assert (first.num_compared, first.verdict, second.verdict) == (1, Verdict.HIGHER, Verdict.UNDEFINED)

    def test_equal_differences_have_no_bootstrap_interval_to_speak_of(self):
        one = paired_difference(results_of([0.75] * 6, "nso"), results_of([0.5] * 6, "sgd"), "test_accuracy")
        assert one.bca.is_point
        assert (one.improvement.mean, text.improvement_text(one.improvement)) == (1.0, "1.00")

    def test_less_trace_is_better(self):
        low, high = [
            [synthetic.run(TASK, method, s, trace=x + s) for s in range(6)]
            for method, x in (("nso", 1.0), ("sgd", 9.0))
        ]
        assert paired_difference(low, high, "trace").improvement.mean == 1.0

    @pytest.mark.parametrize(
        ("compared", "seeds", "parts"), [(1, 6, ["from 6 seeds on."]), (3, 6, ["from 7 on", "are 6"])]
    )
    def test_says_how_many_seeds_could_decide(self, compared, seeds, parts):
        said = deciding(compared, seeds)
        assert all(part in said for part in parts)
        assert ("Holm" in said) == (compared > 1)
        needed = 6 if compared == 1 else 7
        assert compared * sign_flip_test([1.0] * needed).p <= 0.05 < compared * sign_flip_test([1.0] * (needed - 1)).p


class TestAcrossTasks:
    def test_is_made_of_differences_within_seeds(self):
        rows = summarise(synthetic.comparison())
        sgd, *others = across_tasks(rows)
        assert (sgd.method, sgd.gain, sgd.better) == ("sgd", None, None)
        for one in others:
            mine = [row for row in rows if row.method == one.method]
            theirs = [row for row in rows if row.method == "sgd"]
            pairs = [list(zip(a.results, b.results, strict=True)) for a, b in zip(mine, theirs, strict=True)]
            gains = [[x.test_accuracy - y.test_accuracy for x, y in task] for task in pairs]
            logs = sorted(math.log(x.trace / y.trace) for task in pairs for x, y in task)
            assert one.gain == interquartile_mean(gains)
            assert one.trace_ratio.mean == pytest.approx(math.exp(np.mean(logs[3:9])))
            wins = [np.mean([[x.trace < y.trace for _, y in task] for x, _ in task]) for task in pairs]
            assert one.better["trace"].mean == pytest.approx(np.mean(wins))

    def test_one_task_is_not_several(self):
        assert across_tasks(summarise(synthetic.comparison(tasks=(TASK,)))) == []

    def test_a_diverged_run_leaves_its_method_undefined(self):
        base = synthetic.comparison()
        lost = [r.model_copy(update={"test_accuracy": math.nan}) if r.spec.method == "nso" else r for r in base.results]
        found = {one.method: one for one in across_tasks(summarise(base.model_copy(update={"results": tuple(lost)})))}
        assert (found["nso"].accuracy, found["nso"].gain, found["nso"].better["test_accuracy"]) == (None, None, None)
        assert found["sam"].gain is not None


class TestSensitivity:
    def test_a_grid_is_a_line_with_every_run(self):
        base = synthetic.comparison(tasks=(TASK,), methods=("sgd", "nso", "sam"))
        tuning = [
            synthetic.run(TASK, "nso", seed, validation_accuracy=0.5 + value).model_copy(
                update={"spec": synthetic.run(TASK, "nso", seed).spec.model_copy(update={"value": value})}
            )
            for value in (0.01, 0.02, 0.05)
            for seed in (0, 1)
        ]
        (line,) = lines(base.model_copy(update={"tuning": tuple(tuning)}), TASK)
        assert (line.axis, line.method, line.label) == ("sigma", "nso", "NSO")
        points = line.points("validation_accuracy")
        assert list(points) == [0.01, 0.02, 0.05]
        assert points[0.01] == [51.0, 51.0]
        assert len(points[0.05]) == 6  # a tuning run that is a final run counts once
        assert sensitivity_figure([line], "validation_accuracy", method_styles(("nso",))) is not None

    def test_a_setting_is_an_axis_too(self):
        found = lines(with_batches(8, 16), TASK)
        assert [(line.axis, line.label) for line in found] == [("batch_size", "SGD"), ("batch_size", "NSO")]
        points = found[1].points("test_accuracy")
        assert {8.0, 16.0} < set(points)  # and the task's own
        assert np.mean(points[16.0]) - np.mean(points[8.0]) == pytest.approx(1.0)

    def test_nothing_varied_is_no_line(self):
        base = synthetic.comparison(tasks=(TASK,), methods=("sgd", "nso"))
        assert lines(base, TASK) == []
        assert sensitivity_figure([], "trace", {}) is None
