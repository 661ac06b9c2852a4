"""A run's account is one of its user's, and its strategy one of its account's.

Revision ID: 0009_one_owner_of_a_run
Revises: 0008_keys_for_runs
Create Date: 2026-11-29
"""

from __future__ import annotations

from alembic import op

from shared.db.migrations import broken_rows, frozen

revision = "0009_one_owner_of_a_run"
down_revision = "0008_keys_for_runs"
branch_labels = None
depends_on = None

# Tables, and columns as "table.column", whose contents downgrade() deletes.
drops = ()
# What the linter finds and is meant: rule, and why.
accepted = {"ban-drop-constraint": "the foreign key comes back in the next statement, a column longer or shorter"}

# Each foreign key of runs: its parent, the key, and the column that must be the same in both rows.
_KEYS = {
    "fk_runs_account_id_bybit_accounts": ("bybit_accounts", "account_id", "user_id"),
    "fk_runs_strategy_id_strategies": ("strategies", "strategy_id", "account_id"),
}


def upgrade() -> None:
    # Whose a run is that names rows of two users only people can say, so none is changed here.
    for parent, key, agreeing in _KEYS.values():
        broken_rows.refuse(
            f"SELECT run_id FROM runs JOIN {parent} ON {parent}.{key} = runs.{key} "
            f"WHERE {parent}.{agreeing} <> runs.{agreeing} ORDER BY run_id",
            f"the {agreeing} of a run must be that of the row of {parent} which it names",
            f"correct the {agreeing} or {key} of these runs, or delete them, and repeat this",
        )
    _point(2)


def downgrade() -> None:
    _point(1)


def _point(width: int) -> None:
    """The foreign keys, with that many columns each."""
    if frozen.database() == "mysql":
        for name, (parent, *columns) in _KEYS.items():
            op.drop_constraint(name, "runs", type_="foreignkey")
            if width == 1:
                # The server made it for the longer key; the shorter one has another.
                op.drop_index(name, "runs")
            op.create_foreign_key(name, "runs", parent, columns[:width], columns[:width], ondelete="CASCADE")
        return
    if frozen.database() == "sqlite":
        # A foreign key there stays as long as its table: Alembic makes a new table and moves the rows.
        with op.batch_alter_table("runs") as runs:
            for name, (parent, *columns) in _KEYS.items():
                runs.drop_constraint(name, type_="foreignkey")
                runs.create_foreign_key(name, parent, columns[:width], columns[:width], ondelete="CASCADE")
        return
    for name, (parent, *columns) in _KEYS.items():
        # Not validated it takes no scan, and validating it blocks nobody.
        op.drop_constraint(name, "runs", if_exists=True)
        op.create_foreign_key(
            name, "runs", parent, columns[:width], columns[:width], ondelete="CASCADE", postgresql_not_valid=True
        )
    with op.get_context().autocommit_block():
        for name in _KEYS:
            op.execute(f"ALTER TABLE runs VALIDATE CONSTRAINT {name}")
