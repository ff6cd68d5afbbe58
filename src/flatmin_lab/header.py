"""What a run folder says of itself, and whether more runs may join those in it."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from flatmin_lab import tasks
from flatmin_lab.environment import code_digest
from flatmin_lab.errors import StoreError
from flatmin_lab.spec import Study

FORMAT = 2
"""Raised whenever the layout of the folder changes."""


class Header(BaseModel):
    """What `compare.json` holds.

    Attributes:
        comparable: Fields that must be equal for runs to be compared.
        asked: The study last asked for.
        environment: Machine and software the folder was begun with.
    """

    model_config = ConfigDict(frozen=True)

    comparable: dict[str, int | str]
    asked: Study
    environment: dict[str, str]


def comparable() -> dict[str, int | str]:
    """What all runs of one folder share; arms and seeds may grow, and a run's specification tells it from others."""
    return {"format": FORMAT, "tasks version": tasks.VERSION, "code": code_digest()}


def require_comparable(former: Header, folder: Path) -> None:
    """Refuse runs that cannot be compared with those in the folder.

    Args:
        former: The folder's header.
        folder: Its name in the message.

    Raises:
        StoreError: Fields differ; the message shows them and how to go on.
    """
    wanted = comparable()
    names = sorted(wanted.keys() | former.comparable.keys())
    differing = [n for n in names if wanted.get(n) != former.comparable.get(n)]
    if differing:
        stated = "; ".join(f"{n} is {former.comparable.get(n)} there and {wanted.get(n)} here" for n in differing)
        raise StoreError(
            f"{folder} holds runs of another version of flatmin, which cannot be compared with these: {stated}. "
            f"Choose another folder with --out, or continue that one with the code that began it (flatmin "
            f"{former.environment.get('flatmin', 'of an unknown version')})."
        )
