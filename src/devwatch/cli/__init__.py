"""The commands. Importing this package installs the signal handlers of the program first: see `early`."""

from devwatch.cli import early  # isort: skip - before the imports that take long
from devwatch.cli.entry import main

__all__ = ("early", "main")
