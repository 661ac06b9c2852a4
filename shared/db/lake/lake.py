"""The lake: months of a stream in files, written, verified, dropped and read."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from shared.db.database import DatabaseFactory
from shared.db.lake.places import Place
from shared.db.lake.reading import LakeReading
from shared.db.lake.writing import LakeReport, Told, Work, refuse_everything
from shared.db.models import Base, PublicTrade


class Lake:
    """Months of declared streams as Parquet files, in a folder or at a URL that pyarrow reaches (`s3://`, `gs://`).

    `filesystem` is one of pyarrow's own, in which `root` is a path. Streams whose rows belong to users are refused
    with `InputError`: whoever can read a lake's files reads all of them. What cannot be read or written raises
    `LakeError`.
    """

    def __init__(self, root: str | Path, filesystem: Any = None) -> None:
        self._place = Place(root, filesystem)

    def write(
        self,
        db: DatabaseFactory,
        model: type[Base] = PublicTrade,
        key: Any = None,
        before: datetime | None = None,
        *,
        purge: bool = False,
        stop: Callable[[], bool] = lambda: False,
        told: Told = lambda written: None,
    ) -> LakeReport:
        """Write each month that has ended, and before `before`, of one key or of all; what is written already stays.

        A month that has grown, or changed, since it was written is written again, with all that its file had. With
        `purge=True` its rows are deleted from the database, each few in the transaction that compares them with the
        file as it stands; rows that came meanwhile stay, are written too, and go then. `told` hears of each month.
        """
        return Work(self._place, db, model, key, before, stop, told).write(purge)

    def verify(
        self,
        db: DatabaseFactory,
        model: type[Base] = PublicTrade,
        key: Any = None,
        *,
        stop: Callable[[], bool] = lambda: False,
        told: Told = lambda written: None,
    ) -> LakeReport:
        """Compare each file with its manifest, and with the rows of its month that the database still has.

        What is wrong stands in the report's `problems`. Raises `LakeError` where nothing of the stream was written.
        """
        return Work(self._place, db, model, key, None, stop, told).verify()

    def drop(
        self,
        db: DatabaseFactory,
        model: type[Base] = PublicTrade,
        key: Any = None,
        before: datetime | None = None,
        *,
        force: bool = False,
        stop: Callable[[], bool] = lambda: False,
        told: Told = lambda written: None,
    ) -> LakeReport:
        """Remove the files of months before `before`, of one key or of all, whose rows are all in the database.

        A month with rows that are nowhere else is kept, and stands in the report's `problems`, unless `force=True`.
        Raises `InputError` for neither a key nor a time.
        """
        refuse_everything(key, before)
        return Work(self._place, db, model, key, before, stop, told).drop(force)

    def reading(self, db: DatabaseFactory, model: type[Base] = PublicTrade) -> LakeReading:
        """Questions about the rows of the lake and of the database as one.

        Raises `LakeError` where nothing of the stream was written: rows that were purged would be missing in silence.
        """
        return LakeReading(self._place, db, model)
