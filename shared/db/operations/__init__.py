"""Keeping a database alive, and moving data in and out: what the commands do, for programs.

Each works on a `DatabaseFactory` that belongs to no user, and says in a report what it did. Between two steps it ends
with `Interrupted`, whose text says in which state, where SIGINT or SIGTERM comes. `status` is `db.health()`.
"""

from shared.db.operations.backup import BackupReport, back_up, restore
from shared.db.operations.copy_database import CopyReport, copy_database
from shared.db.operations.export import export_executions, export_rows, export_trades
from shared.db.operations.import_rows import RowImport, import_rows
from shared.db.operations.interruption import Interrupted
from shared.db.operations.key_rotation import KeyRotation, rotate_keys
from shared.db.operations.partitions import (
    DropReport,
    PartitionReport,
    drop_partitions,
    enable_partitions,
    extend_partitions,
)
from shared.db.operations.purge import PurgeReport, purge_executions, purge_rows, purge_trades
from shared.db.operations.replaying import ReplayReport, replay
from shared.db.operations.trade_import import ImportReport, import_trades

__all__ = [
    "BackupReport",
    "CopyReport",
    "DropReport",
    "ImportReport",
    "Interrupted",
    "KeyRotation",
    "PartitionReport",
    "PurgeReport",
    "ReplayReport",
    "RowImport",
    "back_up",
    "copy_database",
    "drop_partitions",
    "enable_partitions",
    "export_executions",
    "export_rows",
    "export_trades",
    "extend_partitions",
    "import_rows",
    "import_trades",
    "purge_executions",
    "purge_rows",
    "purge_trades",
    "replay",
    "restore",
    "rotate_keys",
]
