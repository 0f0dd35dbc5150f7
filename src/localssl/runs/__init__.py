"""A run: what was asked for, what it came to, and its folder on disk."""
