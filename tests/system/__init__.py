"""Real parts to test against: an API server, udevd, and the daemon as a process of its own."""
