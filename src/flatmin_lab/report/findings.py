"""What differences show, in words: no more than their intervals and tests carry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatmin_lab.report.summary import ALPHA, REFERENCE, Verdict
from flatmin_lab.report.text import DIFFERENCES, adjusted_text, difference_texts, join, method_label, p_text
from flatmin_lab.statistics import min_seeds

if TYPE_CHECKING:
    from flatmin_lab.report.summary import Difference
    from flatmin_lab.spec import Comparison
    from flatmin_lab.statistics import Interval, SignFlip


@dataclass(frozen=True)
class Finding:
    """What one paired difference shows, in words: ``subject: numbers — conclusion``."""

    subject: str
    numbers: str
    conclusion: str
    verdict: Verdict

    def __str__(self) -> str:
        """The finding as one sentence."""
        parts = [self.numbers, self.conclusion] if self.numbers else [self.conclusion]
        return f"{self.subject}: {': '.join(parts)}."


def finding(label: str, difference: Difference) -> Finding:
    """Put a paired difference of a row into words that claim no more than its interval and its test carry."""
    metric, verdict = DIFFERENCES[difference.metric], difference.verdict
    subject = f"{label} − {method_label(REFERENCE)}"
    if difference.interval is None or difference.test is None:
        return Finding(
            subject, "", f"no difference in {metric.label} is given, because {difference.why_undefined}", verdict
        )
    mean, bracket = difference_texts(difference)
    seeds = f"{difference.test.num_seeds} seed{'s' if difference.test.num_seeds > 1 else ''}"
    adjusted = adjusted_text(difference)
    p = p_text(difference.test) + (f" (Holm {adjusted})" if adjusted else "")
    numbers = f"{mean}{' ' + metric.unit if metric.unit else ''} {bracket}, {p}, {seeds}"
    conclusion = _conclusion(difference, difference.interval, difference.test)
    return Finding(subject, numbers, conclusion, verdict)


def headline(findings: list[tuple[str, Verdict]], what: str) -> str:
    """One sentence over all rows of a task: for which of them a difference to the reference is shown.

    Args:
        findings: Label and verdict.
        what: The metric in words, such as ``test accuracy``.

    Returns:
        The sentence; empty where there is nothing to compare.
    """
    reference = method_label(REFERENCE)
    words = {
        Verdict.HIGHER: f"Higher {what} than {reference} is shown for {{}}.",
        Verdict.LOWER: f"Lower {what} than {reference} is shown for {{}}.",
        Verdict.NOT_SHOWN: f"No difference in {what} is shown for {{}}.",
        Verdict.TOO_FEW_SEEDS: f"There are not enough seeds to show a difference in {what} for {{}}.",
        Verdict.UNDEFINED: f"The difference in {what} is not defined for {{}}.",
    }
    sentences = []
    for verdict, sentence in words.items():
        labels = [label for label, v in findings if v is verdict]
        if labels:
            sentences.append(sentence.format(join(labels)))
    return " ".join(sentences)


def legend(comparison: Comparison) -> str:
    """What the numbers of the tables are, in a few sentences; only what applies."""
    seeds, reference = comparison.spec.seeds, method_label(REFERENCE)
    parts = (
        [f"Mean and 95 % Student interval over {seeds} paired seeds."]
        if seeds > 1
        else ["One seed: the width of every interval is unknown, [?]."]
    )
    if any(r.trace_stderr is not None for r in comparison.results):
        parts.append("±: standard error of the trace estimator alone.")
    if REFERENCE not in comparison.spec.methods:
        parts.append(f"No differences: {reference} was not among the methods.")
    elif len(comparison.spec.methods) > 1:
        parts.append(f"− {reference}: paired difference in test accuracy; p: exact two-sided sign-flip test.")
        parts.append(deciding(max(_family(comparison, task) for task in comparison.spec.tasks), seeds))
    return " ".join(parts)


def deciding(num_compared: int, seeds: int) -> str:
    """How many seeds it takes for the test to decide, alone and after Holm's correction."""
    alone, together = min_seeds(ALPHA), min_seeds(ALPHA, comparisons=max(1, num_compared))
    corrected = f", and after Holm's correction for {num_compared} comparisons on a task from {together} on"
    here = "" if seeds >= together else f"; here are {seeds}"
    return (
        f"The test can reach p ≤ {ALPHA:g} from {alone} seeds on{corrected if num_compared > 1 else ''}{here}. "
        "A difference counts as shown where the corrected test and the interval both say so."
    )


def _family(comparison: Comparison, task: str) -> int:
    return sum(arm.task == task and arm.method != REFERENCE for arm in comparison.spec.arms)


def _conclusion(difference: Difference, interval: Interval, test: SignFlip) -> str:
    what, many = DIFFERENCES[difference.metric].label, difference.num_compared > 1
    if difference.verdict is Verdict.TOO_FEW_SEEDS:
        tied = " as some of them are tied" if test.reachable > 2.0 ** (1 - test.num_seeds) else ""
        family = f" after Holm's correction for {difference.num_compared} comparisons" if many else ""
        enough = min_seeds(ALPHA, comparisons=difference.num_compared)
        return (
            f"not enough seeds, since the test can reach p = {difference.adjusted_reachable:.3f} at the smallest"
            f"{tied}{family}; it takes {enough}"
        )
    if difference.verdict is Verdict.NOT_SHOWN:
        covers = interval.covers(0.0)
        if covers == (difference.adjusted_p > ALPHA):
            return "no difference shown"
        one, other = ("covers zero", "falls below") if covers else ("leaves zero out", "stays above")
        p = "Holm's p" if many else "p"
        return f"no difference shown, for the interval {one} while {p} {other} {ALPHA:g}"
    return f"{difference.verdict} {what} than {method_label(REFERENCE)}"
