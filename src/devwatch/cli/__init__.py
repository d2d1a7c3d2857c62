"""The commands. Importing this package takes the signals of the program first: see `early`."""

from devwatch.cli import early  # isort: skip - before all that takes long
from devwatch.cli.entry import main

__all__ = ("early", "main")
