"""Keeping a database alive: what the commands do."""
