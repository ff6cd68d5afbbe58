"""What a machine and its software are, for the record beside every result."""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import platform
from importlib import metadata
from pathlib import Path

_PACKAGES = ("torch", "numpy", "scikit-learn")

# Of flatmin_lab.
_DECIDING = ("run.py", "training.py", "job.py", "sharpness.py", "tasks", "methods.py", "seeds.py", "data", "models")


@functools.lru_cache(maxsize=1)
def code_digest() -> str:
    """A hash of the code that a run's numbers depend on: the library, the data, the networks and the training loop.

    Comments, docstrings and layout do not enter it.

    Returns:
        Sixteen hexadecimal digits.
    """
    import flatmin

    library, lab = Path(flatmin.__file__).parent, Path(__file__).parent
    content = hashlib.sha256()
    for root in (library, *(lab / name for name in _DECIDING)):
        for path in sorted(root.rglob("*.py")) if root.is_dir() else [root]:
            content.update(f"{root.name}/{path.relative_to(root)}\n".encode())
            content.update(_bare(path.read_bytes()).encode())
    return content.hexdigest()[:16]


def _bare(source: bytes) -> str:
    """The code alone, in one layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):  # a lambda's is an expression
            node.body = [part for part in body if not _is_text(part)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


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
