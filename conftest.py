"""Doctests of a module that needs an optional package run where the package is."""

from importlib.util import find_spec

_OPTIONAL = {
    "accelerate": "src/flatmin/integrations/accelerate.py",
    "lightning": "src/flatmin/integrations/lightning.py",
}

collect_ignore = [path for package, path in _OPTIONAL.items() if find_spec(package) is None]
