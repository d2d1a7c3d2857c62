"""Logs, metrics, health, and the HTTP server that serves the last two."""
