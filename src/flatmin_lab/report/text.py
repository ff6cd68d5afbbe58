"""Numbers and findings as text: one place decides digits, units and words, for console and page alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatmin_lab.methods import METHODS
from flatmin_lab.report.summary import ALPHA, REFERENCE, Verdict

if TYPE_CHECKING:
    from flatmin_lab.report.summary import Difference, MethodSummary, Quantity
    from flatmin_lab.spec import Comparison
    from flatmin_lab.statistics import Interval, SignFlip

SYMBOLS = {"sigma": "σ", "rho": "ρ", "alpha": "α", "": "value"}
_PLAIN_BELOW, _PLAIN_ABOVE = 1e5, 5e-4


@dataclass(frozen=True)
class Metric:
    """How a metric is written: its name, its unit, and what one unit of it is on paper."""

    label: str
    unit: str = ""
    factor: float = 1.0
    decimals: int | None = None

    @property
    def title(self) -> str:
        """Name with unit, for column heads and axes."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


METRICS = {
    "test_accuracy": Metric("Test accuracy", "%", 100.0, 1),
    "test_loss": Metric("Test loss"),
    "train_loss": Metric("Train loss"),
    "trace": Metric("Hessian trace"),
    "top_eigenvalue": Metric("Top eigenvalue"),
    "seconds": Metric("Time", "s", decimals=1),
    "gradient_evaluations": Metric("Gradients", decimals=0),
}
_DIFFERENCES = {"test_accuracy": Metric("test accuracy", "points", 100.0, 1), "trace": Metric("Hessian trace")}


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


def method_label(method: str) -> str:
    """The name a method has in print: ``wpsgd`` is WP-SGD; one that is not registered keeps the name it has."""
    return METHODS[method].label if method in METHODS else method


def setting(summary: MethodSummary) -> str:
    """The chosen hyperparameter: ``σ = 0.05``; empty for a method that has none."""
    return "" if summary.value is None else f"{SYMBOLS[summary.hyperparameter]} = {summary.value:g}"


def number(value: float, decimals: int | None = None, *, signed: bool = False) -> str:
    """Write a number with a real minus sign, three significant digits unless ``decimals`` says otherwise.

    Example:
        >>> number(0.12345), number(-1234.5), number(2.5e-6), number(float("nan")), number(0.5, 1, signed=True)
        ('0.123', '−1234', '2.5e−6', 'NaN', '+0.5')
    """
    return _write(value, _decimals(value) if decimals is None else decimals, signed)


def interval_texts(interval: Interval, metric: Metric, *, signed: bool = False) -> tuple[str, str]:
    """Mean and bracket of an interval, to the same decimals: ``("84.5", "[83.2, 85.8]")``; a sign on the mean alone.

    A width that one value cannot tell is written ``[?]``; a mean over a diverged run is NaN.
    """
    low, mean, high = (metric.factor * x for x in (interval.low, interval.mean, interval.high))
    decimals = _decimals(mean) if metric.decimals is None else metric.decimals
    bracket = f"[{_write(low, decimals)}, {_write(high, decimals)}]" if interval.is_bounded else "[?]"
    return _write(mean, decimals, signed), bracket


def quantity_texts(quantity: Quantity, name: str) -> tuple[str, str]:
    """Value and small print of one cell: mean and interval, or what stands in their place."""
    interval = quantity.interval
    if quantity.num_runs == 0:
        return "no run", ""
    if interval is None:
        return "–", "not measured"
    if quantity.num_diverged:
        return "NaN", f"{quantity.num_diverged} of {quantity.num_runs} diverged"
    mean, bracket = interval_texts(interval, METRICS[name])
    if name == "gradient_evaluations" and (interval.low == interval.high or not interval.is_bounded):
        bracket = ""  # a count that is the same for every seed has no spread to speak of
    if quantity.measurement_stderr is not None:
        mean = f"{mean} ± {_error(quantity.measurement_stderr)}"
    if interval.num_values < quantity.num_runs:
        bracket = f"{bracket} n={interval.num_values}"
    return mean, bracket


def difference_texts(difference: Difference) -> tuple[str, str]:
    """Mean and bracket of a paired difference, in points for accuracies; a dash where it is not defined."""
    if difference.interval is None:
        return "–", ""
    return interval_texts(difference.interval, _DIFFERENCES[difference.metric], signed=True)


def p_text(test: SignFlip, *, name: bool = True) -> str:
    """The p-value, with its error where it was sampled: ``p = 0.031``."""
    if test.p < 0.001:
        relation, value = "<", "0.001"
    else:
        relation, value = ("≈", f"{test.p:.3f} ± {test.stderr:.3f}") if test.stderr else ("=", f"{test.p:.3f}")
    return f"p {relation} {value}" if name else f"{'' if relation == '=' else relation + ' '}{value}"


def p_cell(difference: Difference) -> str:
    """What the column of p-values says: a number, ``not enough seeds``, or a dash."""
    if difference.test is None:
        return "–"
    if difference.verdict is Verdict.TOO_FEW_SEEDS:
        return str(Verdict.TOO_FEW_SEEDS)
    return p_text(difference.test, name=False)


def finding(method: str, difference: Difference) -> Finding:
    """Put a paired difference into words that claim no more than its interval and its test carry."""
    metric, verdict = _DIFFERENCES[difference.metric], difference.verdict
    subject = f"{method_label(method)} − {method_label(REFERENCE)}"
    if difference.interval is None or difference.test is None:
        return Finding(
            subject, "", f"no difference in {metric.label} is given, because {difference.why_undefined}", verdict
        )
    mean, bracket = difference_texts(difference)
    seeds = f"{difference.test.num_seeds} seed{'s' if difference.test.num_seeds > 1 else ''}"
    numbers = f"{mean}{' ' + metric.unit if metric.unit else ''} {bracket}, {p_text(difference.test)}, {seeds}"
    conclusion = _conclusion(verdict, difference.interval, difference.test, metric.label)
    return Finding(subject, numbers, conclusion, verdict)


def headline(findings: list[tuple[str, Verdict]], what: str) -> str:
    """One sentence over all methods of a task: for which of them a difference to the reference is shown.

    Args:
        findings: Method and verdict.
        what: The metric in words, such as ``test accuracy``.

    Returns:
        The sentence; empty where there is nothing to compare.
    """
    reference = method_label(REFERENCE)
    words = {
        Verdict.HIGHER: f"Higher {what} than {reference} is shown for {{}}.",
        Verdict.LOWER: f"Lower {what} than {reference} is shown for {{}}.",
        Verdict.NOT_SHOWN: "No difference is shown for {}.",
        Verdict.TOO_FEW_SEEDS: "There are not enough seeds to show a difference for {}.",
        Verdict.UNDEFINED: "The difference is not defined for {}.",
    }
    sentences = []
    for verdict, sentence in words.items():
        labels = [method_label(method) for method, v in findings if v is verdict]
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
        parts.append(
            f"− {reference}: paired difference in test accuracy; p: exact two-sided sign-flip test, unadjusted."
        )
        if 2.0 ** (1 - seeds) > ALPHA:
            enough = math.ceil(1 - math.log2(ALPHA))
            parts.append(f"The test reaches p ≤ {ALPHA:g} from {enough} seeds on.")
    return " ".join(parts)


def join(words: list[str]) -> str:
    """A list as English has it.

    Example:
        >>> join(["a"]), join(["a", "b"]), join(["a", "b", "c"])
        ('a', 'a and b', 'a, b and c')
    """
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _conclusion(verdict: Verdict, interval: Interval, test: SignFlip, what: str) -> str:
    if verdict is Verdict.TOO_FEW_SEEDS:
        tied = " as some of them are tied" if test.reachable > 2.0 ** (1 - test.num_seeds) else ""
        return f"not enough seeds, since the test can reach p = {test.reachable:.3f} at the smallest{tied}"
    if verdict is Verdict.NOT_SHOWN:
        covers = interval.covers(0.0)
        if covers == (test.p > ALPHA):
            return "no difference shown"
        one, other = ("covers zero", "falls below") if covers else ("leaves zero out", "stays above")
        return f"no difference shown, for the interval {one} while p {other} {ALPHA:g}"
    return f"{verdict} {what} than {method_label(REFERENCE)}"


def _decimals(value: float) -> int:
    """Decimals for three significant digits; -1 asks for an exponent."""
    size = abs(value)
    if not math.isfinite(size) or size == 0:
        return 2
    if size >= _PLAIN_BELOW or size < _PLAIN_ABOVE:
        return -1
    return min(4, max(0, 2 - math.floor(math.log10(size))))


def _error(stderr: float) -> str:
    """A standard error, to two significant digits."""
    return (
        number(stderr, max(0, 1 - math.floor(math.log10(stderr)))) if 1e-4 < stderr < _PLAIN_BELOW else number(stderr)
    )


def _write(value: float, decimals: int, signed: bool = False) -> str:
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    sign = "+" if signed else ""
    if decimals >= 0:
        return f"{value:{sign}z.{decimals}f}".replace("-", "−")
    mantissa, exponent = f"{value:{sign}.1e}".split("e")
    return f"{mantissa}e{int(exponent)}".replace("-", "−")
