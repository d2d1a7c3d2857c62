"""The loop, what it acts through, and the daemon around it."""
