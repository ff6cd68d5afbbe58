"""Numbers and findings as text: one place decides digits, units and words, for console and page alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatmin_lab.methods import METHODS
from flatmin_lab.report.summary import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flatmin_lab.report.summary import Difference, MethodSummary, Quantity
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
DIFFERENCES = {"test_accuracy": Metric("test accuracy", "points", 100.0, 1), "trace": Metric("Hessian trace")}


def method_label(method: str) -> str:
    """The name a method has in print: ``wpsgd`` is WP-SGD; one that is not registered keeps the name it has."""
    return METHODS[method].label if method in METHODS else method


def setting(summary: MethodSummary) -> str:
    """The value and what else is changed: ``σ = 0.05, batch size 8``; empty where there is nothing to say."""
    parts = [] if summary.value is None else [f"{SYMBOLS[summary.hyperparameter]} = {summary.value:g}"]
    for name, value in summary.arm.changes:
        if value is not None:
            parts.append(f"{name.replace('_', ' ')} {value if isinstance(value, str) else format(value, 'g')}")
    return ", ".join(parts)


def labels(rows: Sequence[MethodSummary]) -> list[str]:
    """Name the rows of one task: by their methods, and by as much of their settings as tells them apart."""
    names = [method_label(row.method) for row in rows]
    for more in (setting, lambda row: f"{row.arm.budget} gradients"):
        told = [f"{name}, {extra}" if (extra := more(row)) else name for name, row in zip(names, rows, strict=True)]
        names = [new if names.count(name) > 1 else name for name, new in zip(names, told, strict=True)]
    return names


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
    return interval_texts(difference.interval, DIFFERENCES[difference.metric], signed=True)


def p_text(test: SignFlip, *, name: bool = True) -> str:
    """The p-value, with its error where it was sampled: ``p = 0.031``."""
    if test.p < 0.001:
        relation, value = "<", "0.001"
    else:
        relation, value = ("≈", f"{test.p:.3f} ± {test.stderr:.3f}") if test.stderr else ("=", f"{test.p:.3f}")
    return f"p {relation} {value}" if name else f"{'' if relation == '=' else relation + ' '}{value}"


def adjusted_text(difference: Difference) -> str:
    """The p-value after Holm's correction: ``0.094``; empty where nothing is corrected for."""
    if difference.test is None or difference.num_compared < 2:
        return ""
    return "< 0.001" if difference.adjusted_p < 0.001 else f"{difference.adjusted_p:.3f}"


def p_texts(difference: Difference) -> tuple[str, str]:
    """What the column of p-values says and its small print: a number and Holm's, ``not enough seeds``, or a dash."""
    if difference.test is None:
        return "–", ""
    if difference.verdict is Verdict.TOO_FEW_SEEDS:
        return str(Verdict.TOO_FEW_SEEDS), ""
    adjusted = adjusted_text(difference)
    return p_text(difference.test, name=False), f"Holm {adjusted}" if adjusted else ""


def improvement_text(interval: Interval | None) -> str:
    """A probability of improvement with its interval, which is left out where resampling changes nothing."""
    if interval is None:
        return "–"
    mean, bracket = interval_texts(interval, Metric("", decimals=2))
    return mean if interval.is_point else f"{mean} {bracket}"


def examples_text(count: int, available: int, split: str, data: str | None) -> str:
    """Write how many of which examples something is the mean over."""
    of = "all" if count == available else f"{count:,} of"
    return f"{of} {available:,} {split} examples of {data}"


def join(words: list[str]) -> str:
    """A list as English has it.

    Example:
        >>> join(["a"]), join(["a", "b"]), join(["a", "b", "c"])
        ('a', 'a and b', 'a, b and c')
    """
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


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
