"""The reconcile loop, its publisher, evictor and reporters, and the daemon that runs it."""
