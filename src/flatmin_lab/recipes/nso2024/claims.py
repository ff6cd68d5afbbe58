"""What the paper says of two methods, as a number, beside what paired seeds show here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatmin_lab.recipes.nso2024.shares import Share, kept_share
from flatmin_lab.recipes.outcome import Cell, Table, written
from flatmin_lab.recipes.study_tables import scaled
from flatmin_lab.report.summary import Verdict
from flatmin_lab.statistics import holm, min_seeds

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from flatmin_lab.recipes.studies import Found
    from flatmin_lab.report.summary import Difference

COLUMNS = ("task", "claim", "of", "in", "paper", "here", "95 % from", "to", "p", "Holm", "verdict")
"""The columns of a table of claims."""


@dataclass(frozen=True)
class Claim:
    """A difference between two rows.

    Attributes:
        text: Which, in a few words.
        metric: A field of ``RunResult``.
        row: Label of the one.
        against: Label of the other, which is subtracted.
        printed: What the paper has; a text where it has no number.
        relative: Whether it is a change in percent of the other's mean; accuracies are in points.
        sign: Of the difference that the paper claims; 0 where it claims none.
    """

    text: str
    metric: str
    row: str
    against: str
    printed: Cell = ""
    relative: bool = False
    sign: int = 0

    @property
    def unit(self) -> str:
        """Percent or points; empty for a metric's own."""
        if self.relative:
            return "%"
        return "points" if self.metric.endswith("accuracy") else ""

    def difference(self, found: Found) -> Difference:
        """What was found, in the metric's own unit, seed by seed."""
        return found.difference(self.row, self.against, self.metric)

    def interval(self, found: Found) -> tuple[float, ...] | None:
        """What was found with its interval, in the claim's unit; None where it is not defined.

        A change in percent has Fieller's interval (`kept_share`), a difference Student's.
        """
        interval = self.difference(found).interval
        if interval is None:
            return None
        if not self.relative:
            return tuple(scaled(self.metric, x) for x in (interval.mean, interval.low, interval.high))
        change = _percent(ratio(found, self.row, self.against, self.metric))
        return change.share, change.low, change.high

    def verdict(self, found: Found) -> str:
        """Whether the difference is shown, and whether it has the sign that the paper claims."""
        shown = self.difference(found).verdict
        sign = {Verdict.HIGHER: 1, Verdict.LOWER: -1}.get(shown)
        if sign is None:
            return str(shown)
        if not self.sign:
            return f"{shown}, while the paper has no difference" if self.printed else str(shown)
        return "agrees" if sign == self.sign else "opposite"

    def said(self, found: Found) -> str:
        """One sentence part: the claim, what was found, the interval and p."""
        numbers, difference = self.interval(found), self.difference(found)
        if numbers is None or difference.test is None:
            return f"{self.text}: not defined, as {difference.why_undefined}"
        mean, *ends = (written(x) for x in numbers)
        bracket = f"[{', '.join(ends)}]" if math.isfinite(numbers[1]) else "[no bounds]"
        unit = f" {self.unit}" if self.unit else ""
        p = written(difference.test.p)
        of = self.metric.replace("_", " ")
        return f"{self.text}, {of}: {mean}{unit} {bracket}, p = {p} ({self.verdict(found)})"


def claims_table(name: str, claims: Sequence[Claim], found: Iterable[Found], caption: str) -> Table:
    """List what the paper claims and what was found, on each task.

    Args:
        name: Of the table.
        claims: What is claimed.
        found: What was found.
        caption: What is listed; how it was computed is added.
    """
    lines: list[tuple[Cell, ...]] = []
    theirs = [claim for claim in claims if claim.printed or claim.sign]
    for one in found:
        tests = {claim: test for claim in claims if (test := claim.difference(one).test) is not None}
        family = [claim for claim in theirs if claim in tests]
        adjusted = dict(zip(family, holm([tests[claim].p for claim in family]), strict=True))
        for claim in claims:
            numbers, p = claim.interval(one) or ("",) * 3, tests[claim].p if claim in tests else ""
            head = (one.scale.task, claim.text, claim.metric.replace("_", " "), claim.unit, claim.printed)
            lines.append((*head, *numbers, p, adjusted.get(claim, ""), claim.verdict(one)))
    how = (
        "Paired over seeds; Student intervals of differences, Fieller's of changes in percent, exact sign-flip tests. "
        f"Agrees, opposite: shown at 5 %, uncorrected, with the sign of the paper's number or against it. Holm: p "
        f"corrected for the {len(theirs)} lines that the paper claims, which shows nothing with fewer than "
        f"{min_seeds(comparisons=max(1, len(theirs)))} seeds."
    )
    return Table(name, COLUMNS, tuple(lines), f"{caption} {how}")


def claims_list(claims: Iterable[Claim], found: Found) -> str:
    """Say of each claim what was found, a line of a Markdown list each."""
    return "\n".join(f"- {claim.said(found)}" for claim in claims)


def claims_text(claims: Iterable[Claim], found: Found) -> str:
    """Say of which claims what is shown, by verdict."""
    by_verdict: dict[str, list[str]] = {}
    for claim in claims:
        by_verdict.setdefault(claim.verdict(found), []).append(claim.text)
    return " ".join(f"{verdict.capitalize()}: {'; '.join(texts)}." for verdict, texts in by_verdict.items())


def ratio(found: Found, label: str, against: str, metric: str) -> Share:
    """Mean of a row over the mean of another, paired by seed, with Fieller's interval."""
    values = [{run.spec.seed: getattr(run, metric) for run in found.runs(found.row(x))} for x in (label, against)]
    mine, theirs = values
    seeds = [s for s in mine if s in theirs and mine[s] is not None and theirs[s] is not None]
    return kept_share([mine[s] for s in seeds], [theirs[s] for s in seeds])


def _percent(of: Share) -> Share:
    """A ratio as a change in percent."""
    return Share(*(100 * (x - 1) for x in (of.share, of.low, of.high)))
