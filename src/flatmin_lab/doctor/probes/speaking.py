"""How a probe answers: one object of JSON a line, on a standard output that nothing else can write to."""

from __future__ import annotations

import functools
import json
import os
from typing import Any, TextIO


@functools.cache
def take_output() -> TextIO:
    """Keep the standard output for answers; what imports print from now on goes to standard error."""
    kept = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return kept


def say(**answer: Any) -> None:
    """Write one object at once, so that it is there even if this process crashes next."""
    print(json.dumps(answer), file=take_output(), flush=True)


def in_words(error: BaseException) -> str:
    """The type of an error and its last line, of at most 300 characters."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1].strip()}"[:300].rstrip(": ")
