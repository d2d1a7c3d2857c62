"""Text to a frozen `Config`, and the files it comes from."""
