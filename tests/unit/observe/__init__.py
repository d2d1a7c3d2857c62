"""Logs, metrics, health and the HTTP server."""
