"""`python -m devwatch`: the same commands as the `devwatch` script."""

import sys

from devwatch.cli import early  # noqa: F401 - which takes the signals, before all that lasts
from devwatch.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
