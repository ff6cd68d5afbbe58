"""What a machine and its software are, for the record beside every result."""

from __future__ import annotations

import os
import platform
from importlib import metadata

_PACKAGES = ("torch", "numpy", "scikit-learn")


def environment() -> dict[str, str]:
    """Versions and machine, as short texts.

    Returns:
        ``flatmin``, ``python``, ``system``, ``processor``, ``cores`` and the version of each package that the
        numbers depend on.
    """
    import flatmin

    return {
        "flatmin": flatmin.__version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in _PACKAGES},
        "system": f"{platform.system()} {platform.release()}",
        "processor": platform.machine(),
        "cores": str(os.cpu_count()),
    }
