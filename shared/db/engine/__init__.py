"""The engine of one database: how it connects, how a transaction begins, and what its failures are called."""
