"""Values and decisions, without I/O, clock and randomness."""
