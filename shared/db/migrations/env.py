"""What Alembic runs, for `runner` alone: it takes the connection from there and needs no ini file."""

from __future__ import annotations

from contextlib import nullcontext

from alembic import context

if context.is_offline_mode():
    context.configure(
        dialect_name="postgresql",
        dialect_opts={"paramstyle": "named"},
        literal_binds=True,
        transaction_per_migration=True,
    )
else:
    connection = context.config.attributes["connection"]
    context.configure(connection=connection, transaction_per_migration=True)
    if connection.in_transaction():
        # The runner's own transaction is around everything: a revision's autocommit block must not end it.
        context.get_context().autocommit_block = nullcontext  # type: ignore[assignment] # a context manager too

with context.begin_transaction():
    context.run_migrations()
