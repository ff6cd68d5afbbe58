"""What an examination says: how a thing stands, what was found, the likely cause, and a line that mends it."""

from __future__ import annotations

import shutil
import textwrap
from dataclasses import asdict, dataclass, replace
from typing import Literal

Status = Literal["ok", "note", "problem"]
"""``ok``: as it should be. ``note``: something works less well, or not at all, until the remedy is applied, and nothing
that was asked for fails. ``problem``: something that is here, or was asked for, does not work."""

_INDENT = " " * 11


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        status: How it stands.
        found: What was found, in a sentence.
        cause: The likely cause; empty where all is well.
        remedy: A line that can be pasted into a shell, or what to do where no line can; empty where all is well.
    """

    status: Status
    found: str
    cause: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        mark = self.status.upper() if self.status == "problem" else self.status
        lines = _wrapped(self.found, f"  {mark:<8} ")
        lines += _wrapped(f"Likely cause: {self.cause}", _INDENT) if self.cause else []
        lines += [f"{_INDENT}Remedy: {self.remedy}"] if self.remedy else []  # in one piece, so that it can be copied
        return "\n".join(lines)


def _wrapped(text: str, head: str) -> list[str]:
    """Return lines as wide as the terminal, 80 characters where there is none."""
    return textwrap.wrap(
        text,
        max(shutil.get_terminal_size().columns, 40),
        initial_indent=head,
        subsequent_indent=_INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )


@dataclass(frozen=True)
class Section:
    """What was found of one subject.

    Attributes:
        subject: Such as ``torch``.
        findings: In the order in which they were made.
    """

    subject: str
    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        before = ("", *(finding.cause for finding in self.findings))
        told = [replace(f, cause="") if f.cause == last else f for f, last in zip(self.findings, before, strict=False)]
        return "\n".join([self.subject, *map(str, told)])  # a cause that several have in a row is said once


@dataclass(frozen=True)
class Examination:
    """All that was found.

    Attributes:
        sections: One for each subject.
    """

    sections: tuple[Section, ...]

    @property
    def problems(self) -> int:
        """How many findings are problems."""
        return sum(f.status == "problem" for s in self.sections for f in s.findings)

    def as_data(self) -> dict[str, object]:
        """Return it as lists, dicts and texts: ``problems``, and ``findings`` with their ``subject``."""
        found = [{"subject": s.subject, **asdict(f)} for s in self.sections for f in s.findings]
        return {"problems": self.problems, "findings": found}

    def __str__(self) -> str:
        end = {0: "No problem was found.", 1: "One problem was found."}
        summary = end.get(self.problems, f"{self.problems} problems were found.")
        return "\n\n".join([*map(str, self.sections), summary])


def ok(found: str) -> Finding:
    """It is as it should be."""
    return Finding("ok", found)


def note(found: str, cause: str, remedy: str) -> Finding:
    """Worth knowing, and nothing that was asked for fails."""
    return Finding("note", found, cause, remedy)


def problem(found: str, cause: str, remedy: str) -> Finding:
    """It does not work."""
    return Finding("problem", found, cause, remedy)
