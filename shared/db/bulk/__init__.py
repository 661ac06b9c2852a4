"""Many rows at once, at about the speed of the driver: the front door.

Inside the session's own transaction, on its own connection, but past the ORM's objects: its flush comes first, its
checks and defaults apply, and the rows written are not in the session afterwards.
"""

from shared.db.bulk.create import BATCH_SIZE, bulk_create
from shared.db.bulk.result import BulkResult, OnBadRow, OnConflict, RejectedRow, RowNote
from shared.db.bulk.update import bulk_update

__all__ = ["BATCH_SIZE", "BulkResult", "OnBadRow", "OnConflict", "RejectedRow", "RowNote", "bulk_create", "bulk_update"]
