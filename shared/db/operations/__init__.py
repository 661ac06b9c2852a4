"""Keeping a database alive, and moving data in and out: what the commands do."""
