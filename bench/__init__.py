"""Figures of devwatch on real parts, side by side with a polling loop: `python -m bench`, as root, from the checkout."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The checkout."""

# The one place that makes the parts of the system tests importable, and devwatch where it is not installed.
sys.path[:0] = [folder for folder in (str(ROOT / "tests"), str(ROOT / "src")) if folder not in sys.path]
