"""The examination where the command line cannot start: ``python -m flatmin_lab.doctor``."""

from __future__ import annotations

import json
import sys

from flatmin_lab.doctor import examine


def main() -> int:
    """Print what is found, with ``--json`` as JSON, and return 1 if there is a problem."""
    found = examine()
    print(json.dumps(found.as_data(), indent=2) if "--json" in sys.argv[1:] else found)  # noqa: T201 (the result)
    return int(found.problems > 0)


if __name__ == "__main__":
    sys.exit(main())
