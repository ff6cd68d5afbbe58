"""The scripts in docs/ that write pages, as modules."""

import importlib.util
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"


def page_script(name):
    """Load ``docs/{name}.py``."""
    spec = importlib.util.spec_from_file_location(f"{name}_script", DOCS / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script
