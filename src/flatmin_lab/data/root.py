"""Where data lie that are not part of flatmin: a folder that is named by an option or by the environment."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from flatmin.errors import DataError
from flatmin_lab.errors import MissingPackageError

VARIABLE = "FLATMIN_DATA"


def data_root(given: Path | None) -> Path:
    """Return the data root: ``given``, or else what the environment names.

    Raises:
        DataError: Neither names a folder.
    """
    named = given or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if named is None:
        raise DataError(
            f"these data are not part of flatmin, and no data root is named. Say where they lie: --data-root FOLDER, "
            f"or {VARIABLE}=FOLDER in the environment. `--data digits-clean` needs none."
        )
    if not named.is_dir():
        raise DataError(
            f"the data root {named} is no folder. Likely cause: a typing mistake. Give another --data-root."
        )
    return named


def file_of(root: Path, name: str) -> Path:
    """Return the file ``name`` under ``root``.

    Raises:
        DataError: It is not there.
    """
    if not (root / name).is_file():
        raise DataError(
            f"{root / name} is missing. Likely cause: {root} is not the data root. Name the folder that holds {name}: "
            f"--data-root FOLDER, or {VARIABLE}=FOLDER in the environment."
        )
    return root / name


def required(module: str, package: str, why: str, install: str | None = None) -> Any:
    """Import a module that only some data or models need.

    Args:
        module: Its name.
        package: What it is called where packages are installed from.
        why: What it does, for the message.
        install: What to install instead of ``package``.

    Raises:
        MissingPackageError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module.partition(".")[0]:
            raise
        raise MissingPackageError(
            f"{package} is not installed, which {why}. Install it: pip install '{install or package}'"
        ) from error
