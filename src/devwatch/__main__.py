"""`python -m devwatch`: the same commands as the `devwatch` script."""

import sys

from devwatch.cli import main

if __name__ == "__main__":
    sys.exit(main())
