"""Pages to look at: one file each, with all that it needs inside, which opens without a network."""
