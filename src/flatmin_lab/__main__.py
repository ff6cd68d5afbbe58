"""``python -m flatmin_lab`` is the command ``flatmin``."""

import sys

from flatmin_lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
