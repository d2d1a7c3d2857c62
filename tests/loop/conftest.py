"""Sockets lie in short folders here."""

from support.folders import short_path as tmp_path

__all__ = ["tmp_path"]
