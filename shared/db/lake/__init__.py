"""Closed months of a declared stream as Parquet files, beside the database and read together with it.

Needs the extra `lake`; without it the import raises `MissingExtraError`.
"""

from shared.db.lake.lake import Lake
from shared.db.lake.reading import LakeReading
from shared.db.lake.writing import LakeReport, Written

__all__ = ["Lake", "LakeReading", "LakeReport", "Written"]
