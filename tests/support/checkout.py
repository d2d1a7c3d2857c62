"""Where the checkout is, from any folder of the tests."""

from __future__ import annotations

from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
