"""Nothing imports a framework before it is asked for, and a missing one is named with its remedy."""

import importlib
import subprocess
import sys

import pytest

FRAMEWORKS = ("transformers", "accelerate", "lightning")


def test_the_library_imports_no_framework():
    asks = f"import sys, flatmin, flatmin.integrations; print([m for m in {(*FRAMEWORKS, 'peft')} if m in sys.modules])"
    told = subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_missing_framework_is_named_with_its_remedy(framework, monkeypatch):
    name = f"flatmin.integrations.{framework}"
    for loaded in [m for m in sys.modules if m == name or m.split(".")[0] == framework]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, framework, None)
    with pytest.raises(
        ModuleNotFoundError, match=rf"{framework} is not installed, and {name}.*Install it: pip install"
    ):
        importlib.import_module(name)
    assert name not in sys.modules
