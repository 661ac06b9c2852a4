"""What the lake is made with, all in one place, so that what is missing is told by the extra that brings it."""

from __future__ import annotations

from shared.db.errors import MissingExtraError

try:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.fs as fs
    import pyarrow.parquet as pq
except ImportError as error:
    raise MissingExtraError((error.name or "pyarrow").partition(".")[0], "lake") from error

__all__ = ["fs", "np", "pa", "pc", "pq"]
