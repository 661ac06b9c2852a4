"""A fleet of grid bots on `shared.db`, with tables of its own."""
