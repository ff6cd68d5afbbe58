"""Import the modules that are named, one after the other: ``module``, or ``module:name`` for a name of it as well."""

from __future__ import annotations

import importlib
import sys

from flatmin_lab.doctor.probes.speaking import in_words, say, take_output


def main() -> None:
    """Say of each module that it begins, and then how it went."""
    take_output()
    for wanted in sys.argv[1:]:
        module, _, name = wanted.partition(":")
        say(module=module, begun=True)
        try:
            found = importlib.import_module(module)
            if name:
                getattr(found, name)
        except BaseException as error:  # noqa: BLE001 (a broken package may raise anything, SystemExit too)
            say(module=module, error=in_words(error))
        else:
            say(module=module, version=str(getattr(found, "__version__", "")), file=str(found.__file__))


if __name__ == "__main__":
    main()
