"""Text to a configuration."""
