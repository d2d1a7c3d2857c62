"""The daemon, and what it reports."""
