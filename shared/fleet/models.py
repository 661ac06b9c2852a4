"""The tables: each says whose rows it holds, and all else follows from that."""
