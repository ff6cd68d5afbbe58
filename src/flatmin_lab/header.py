"""What a run folder says of itself, and whether more runs may join those in it."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from flatmin_lab import tasks
from flatmin_lab.errors import StoreError
from flatmin_lab.spec import CompareSpec

FORMAT = 1
"""Raised whenever the layout of the folder changes."""

_OPTIONS = ("budget", "device")  # what may be given on the command line to continue a folder


class Header(BaseModel):
    """What `compare.json` holds.

    Attributes:
        comparable: Fields that must be equal for runs to be compared.
        asked: The comparison last asked for.
        environment: Machine and software the folder was begun with.
    """

    model_config = ConfigDict(frozen=True)

    comparable: dict[str, int | str]
    asked: CompareSpec
    environment: dict[str, str]


def comparable(spec: CompareSpec) -> dict[str, int | str]:
    """The fields that all runs of one folder share; tasks, methods and seeds may grow."""
    return {"format": FORMAT, "tasks version": tasks.VERSION, "budget": spec.budget, "device": spec.device}


def require_comparable(former: Header, spec: CompareSpec, folder: Path) -> None:
    """Refuse runs that cannot be compared with those in the folder.

    Args:
        former: The folder's header.
        spec: What is asked for.
        folder: Its name in the message.

    Raises:
        StoreError: Fields differ; the message shows them and how to go on.
    """
    wanted = comparable(spec)
    names = sorted(wanted.keys() | former.comparable.keys())
    differing = [n for n in names if wanted.get(n) != former.comparable.get(n)]
    if differing:
        stated = "; ".join(f"{n} is {former.comparable.get(n)} there and {wanted.get(n)} here" for n in differing)
        same = " ".join(f"--{n} {former.comparable[n]}" for n in _OPTIONS if n in differing)
        to_continue = f" or give {same} to continue that one" if set(differing) <= set(_OPTIONS) else ""
        raise StoreError(
            f"{folder} holds runs of another configuration, which cannot be compared with these: {stated}. "
            f"Choose another folder with --out{to_continue}."
        )
