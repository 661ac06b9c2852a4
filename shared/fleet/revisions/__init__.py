"""The revisions of these tables, one after the other."""
