"""`python -m devwatch`: the same commands as the `devwatch` script."""

import sys

from devwatch import early  # noqa: F401 - which takes the signals, before all that lasts
from devwatch.cli import main

if __name__ == "__main__":
    sys.exit(main())
