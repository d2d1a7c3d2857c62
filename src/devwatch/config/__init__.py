"""Parse text into a frozen `Config`, and read the files that it comes from."""
