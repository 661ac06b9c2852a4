"""Where the files of a lake are, and what is known of each: one file a key and month, and its manifest.

    ROOT/public_trades/symbol=BTCUSDT/month=2025-05/rows.parquet
    ROOT/_manifest/public_trades/symbol=BTCUSDT/month=2025-05.json

In the first tree there is nothing but Parquet files, so that any program takes it as the Hive layout that it is.
Characters of a key that a path cannot have are written as in a URL.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from shared.db.errors import InputError, LakeError
from shared.db.lake.libraries import fs, pa, pq
from shared.db.operations.replacing import written_beside
from shared.db.ranges.bounds import Source
from shared.db.value_forms.forms import forms_of

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment] # None is what tells

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
_FILE = "rows.parquet"
_MANIFESTS = "_manifest"
_MONTH = re.compile(r"month=(\d{4})-(\d{2})(?:\.json)?")
_PIECE = 1 << 20


@dataclass(frozen=True, order=True)
class Month:
    """A calendar month in UTC."""

    year: int
    month: int

    @classmethod
    def of(cls, when: datetime) -> Month:
        """The one in which an instant lies."""
        utc = when.astimezone(UTC)
        return cls(utc.year, utc.month)

    @property
    def following(self) -> Month:
        """The next one."""
        return Month(self.year + self.month // 12, self.month % 12 + 1)

    @property
    def start(self) -> datetime:
        """Its first instant."""
        return datetime(self.year, self.month, 1, tzinfo=UTC)

    @property
    def end(self) -> datetime:
        """Its last one, to the microsecond."""
        return self.following.start - MICROSECOND

    def __str__(self) -> str:
        return f"{self.year:04}-{self.month:02}"


@dataclass(frozen=True)
class Period:
    """The rows of one key of a stream in one month."""

    source: Source
    key: Any
    month: Month

    @property
    def path(self) -> str:
        """The file's path within the lake."""
        return f"{self._folder}/month={self.month}/{_FILE}"

    @property
    def manifest_path(self) -> str:
        """That of its manifest."""
        return f"{_MANIFESTS}/{self._folder}/month={self.month}.json"

    @property
    def _folder(self) -> str:
        return f"{self.source.model.__tablename__}/{self.source.stream.by}={quote(str(self.key), safe='')}"

    def __str__(self) -> str:
        return f"{self.source.model.__tablename__} of {self.key} in {self.month}"


@dataclass(frozen=True)
class Manifest:
    """What was written of a period: rows, the times of the first and the last, bytes and SHA-256 of the file.

    `database` is what told the state of the database's rows at that moment, by which it is noticed that there are more.
    """

    rows: int
    first: str
    last: str
    bytes: int
    digest: str
    database: dict[str, str]


class Place:
    """A folder, or a place in an object storage that one of pyarrow's own filesystems reaches."""

    def __init__(self, root: str | Path, filesystem: Any = None) -> None:
        if filesystem is not None:
            self._files, base = filesystem, str(root)
        elif "://" in str(root):
            try:
                self._files, base = fs.FileSystem.from_uri(str(root))
            except (pa.ArrowException, OSError, ValueError) as error:
                raise InputError(
                    f"pyarrow reaches nothing by this {str(root).partition('://')[0]}:// URL; name a folder, or a URL "
                    "such as s3://BUCKET/FOLDER"
                ) from error
        else:
            self._files, base = fs.LocalFileSystem(), str(Path(root).absolute())
        self._base = base.rstrip("/")
        self.local = Path(base) if isinstance(self._files, fs.LocalFileSystem) else None

    def __str__(self) -> str:
        return self._base

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        with named_failures(self._at(path)):
            return bool(self._files.get_file_info(self._at(path)).is_file)

    def folders(self, path: str) -> list[str]:
        """The names of what a folder holds, in order; none if it is not there."""
        with named_failures(self._at(path)):
            found = self._files.get_file_info(fs.FileSelector(self._at(path), allow_not_found=True))
        return sorted(one.base_name for one in found)

    def read(self, path: str) -> bytes | None:
        """A small file, None if it is not there."""
        if not self.exists(path):
            return None
        with named_failures(self._at(path)), self._files.open_input_stream(self._at(path)) as file:
            return bytes(file.read())

    def parquet(self, path: str) -> Any:
        """A Parquet file, whose pages are compared with their checksums as they are read."""
        with named_failures(self._at(path)):
            return pq.ParquetFile(self._files.open_input_file(self._at(path)), page_checksum_verification=True)

    def digest(self, path: str) -> tuple[int, str]:
        """The bytes of a file, and their SHA-256."""
        size, found = 0, hashlib.sha256()
        with named_failures(self._at(path)), self._files.open_input_stream(self._at(path)) as file:
            while piece := file.read(_PIECE):
                size += len(piece)
                found.update(piece)
        return size, found.hexdigest()

    @contextmanager
    def writing(self, path: str) -> Iterator[Path]:
        """A local file that takes the place of `path` when the block ends, whole; it leaves no trace if it raises."""
        if self.local is not None:
            target = self.local / path
            _make_folder(target.parent)
            with written_beside(target) as part:
                yield part
            return
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder) / _FILE
            part.touch()
            yield part
            at, beside = self._at(path), self._at(f"{path}.part")
            with named_failures(at):
                self._files.create_dir(at.rpartition("/")[0], recursive=True)
                fs.copy_files(str(part), beside, fs.LocalFileSystem(), self._files)
                self._files.move(beside, at)

    def write(self, path: str, content: bytes) -> None:
        """A small file, whole or not at all."""
        with self.writing(path) as part:
            part.write_bytes(content)

    def delete(self, path: str) -> None:
        """Remove a file, if it is there."""
        with named_failures(self._at(path)), suppress(FileNotFoundError):
            self._files.delete_file(self._at(path))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """A block in which no other process writes into the lake. `LakeError` if one does.

        Of a storage that is no folder nobody can tell: there it is left to whoever calls.
        """
        if self.local is None or fcntl is None:
            yield
            return
        _make_folder(self.local / _MANIFESTS)
        descriptor = os.open(self.local / _MANIFESTS / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise LakeError(
                    f"another process is writing into the lake {self.local}; wait until it is done"
                ) from None
            yield
        finally:
            os.close(descriptor)

    def _at(self, path: str) -> str:
        return f"{self._base}/{path}" if self._base else path


class Shelf:
    """The periods of one stream in a lake."""

    def __init__(self, place: Place, source: Source) -> None:
        self.place = place
        self.source = source

    def keys(self) -> list[Any]:
        """The keys that have a file or a manifest."""
        table, by = self.source.model.__tablename__, self.source.stream.by
        read = forms_of(self.source.column(by).type).value_type
        found = {*self.place.folders(table), *self.place.folders(f"{_MANIFESTS}/{table}")}
        named = (name.partition("=") for name in sorted(found))
        return [read(unquote(value)) for column, _, value in named if column == by]

    def expect(self) -> None:
        """Raise `LakeError` where nothing of the stream was ever written: the place may be mistyped."""
        if not self.keys():
            raise LakeError(
                f"there is nothing of {self.source.model.__tablename__} in {self.place}; look at the lake's name, or "
                "write a month into it first"
            )

    def periods(self, key: Any) -> dict[Month, Period]:
        """Those of a key that have a file or a manifest, in order of time."""
        one = Period(self.source, key, Month(1970, 1))
        folder = one.path.rpartition("/month=")[0]
        # A folder stays behind where its file was dropped.
        names = [name for name in self.place.folders(folder) if self.place.exists(f"{folder}/{name}/{_FILE}")]
        names += self.place.folders(f"{_MANIFESTS}/{folder}")
        months = sorted({Month(int(found[1]), int(found[2])) for name in names if (found := _MONTH.fullmatch(name))})
        return {month: Period(self.source, key, month) for month in months}

    def manifest(self, period: Period) -> Manifest | None:
        """What was written of a period, None if nothing says so. `LakeError` for what is no manifest."""
        content = self.place.read(period.manifest_path)
        if content is None:
            return None
        try:
            told = json.loads(content)
            return Manifest(**{field.name: told[field.name] for field in fields(Manifest)})
        except (ValueError, TypeError, KeyError) as error:
            raise LakeError(
                f"{period.manifest_path} is no manifest of a lake; remove it and write the lake again"
            ) from error

    def note(self, period: Period, manifest: Manifest) -> None:
        """Write down what a period holds."""
        self.place.write(period.manifest_path, (json.dumps(asdict(manifest), indent=1) + "\n").encode())

    def remove(self, period: Period) -> None:
        """Take a period out of the lake."""
        # The manifest first: of a file that is missing, it says that rows are.
        self.place.delete(period.manifest_path)
        self.place.delete(period.path)


@contextmanager
def named_failures(path: str) -> Iterator[None]:
    """A block in which what pyarrow and the file system raise becomes a `LakeError` that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise LakeError(
            f"{path} of the lake cannot be used: {_cause(error)}; check the place and its rights"
        ) from error


def _cause(error: Exception) -> str:
    # The first line: of an object storage's error the rest may name more than anybody is to see.
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]


def _make_folder(folder: Path) -> None:
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    try:
        for one in reversed(missing):
            one.mkdir(exist_ok=True)
            descriptor = os.open(one.parent, os.O_RDONLY)  # the folder itself has to outlast a power failure
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}; choose a folder you may write to") from error
