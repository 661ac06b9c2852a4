from __future__ import annotations

import logging
import os
import random
import resource
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.db import PublicTrade, SpoolError, SpoolFullError
from shared.db.recording.buffer import Buffer
from shared.db.recording.row_text import RowText
from shared.db.recording.spool import Mark, Spool
from shared.db.tests.support import trade_values

LIMIT = 1_000_000
payloads = st.lists(st.binary(max_size=60), min_size=1, max_size=12)


@contextmanager
def opened(folder: Path, about: str = "trades", limit: int = LIMIT, **options: Any) -> Iterator[Spool]:
    """A spool that is let go of as a killed process would do it: nothing is tidied up."""
    spool = Spool(folder, about, limit=limit, **options)
    try:
        yield spool
    finally:
        spool.abandon()


def contents(spool: Spool) -> list[bytes]:
    """Every payload in it, in order."""
    return [record.payload for record in spool.read(spool.start, 10**9)]


def segments(folder: Path) -> list[Path]:
    """The files with rows, oldest first."""
    return sorted(folder.glob("*.rows"))


@pytest.mark.parametrize("limit", [LIMIT, 4_000])
@settings(max_examples=40, deadline=None)
@given(added=st.lists(payloads, min_size=1, max_size=4))
def test_what_was_appended_is_there_again_in_order(limit: int, added: list[list[bytes]]) -> None:
    """After a kill, in one segment or many, byte for byte, with the number of rows."""
    with tempfile.TemporaryDirectory() as folder:
        expected: list[bytes] = []
        for part in added:
            with opened(Path(folder), limit=limit) as spool:
                try:
                    spool.append([(payload, 2) for payload in part])
                except SpoolFullError:
                    continue
                expected += part
        with opened(Path(folder), limit=limit) as spool:
            assert contents(spool) == expected
            assert spool.rows == 2 * len(expected)


def test_a_journal_cut_at_any_byte_keeps_every_whole_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What a process that died in mid-append leaves: the records before are there, the half one is not, and said so."""
    whole = [b"first", b"", b"third record"]
    with opened(tmp_path / "original") as spool:
        ends = [mark.offset for mark in spool.append([(payload, 1) for payload in whole])]
    opening = ends[0] - 37 - len(whole[0])
    text = segments(tmp_path / "original")[0].read_bytes()
    for size in range(len(text) + 1):
        folder = tmp_path / f"cut-{size}"
        folder.mkdir()
        (folder / "0000000001.rows").write_bytes(text[:size])
        caplog.clear()
        with opened(folder) as spool:
            there = sum(1 for end in ends if end <= size)
            assert contents(spool) == whole[:there]
            assert bool(caplog.records) == (size > opening and size not in ends)
            spool.append([(b"after", 1)])
        with opened(folder) as spool:
            assert contents(spool) == [*whole[:there], b"after"]
        shutil.rmtree(folder)


def test_a_changed_byte_is_never_taken_for_data(tmp_path: Path) -> None:
    """Wherever it is, the spool refuses and names the file, or what it gives is what was appended."""
    whole = [b'[{"price":"65065.80"}]', b'[{"price":"65066.10"}]']
    with opened(tmp_path / "original") as spool:
        spool.append([(payload, 1) for payload in whole])
    text = segments(tmp_path / "original")[0].read_bytes()
    folder = tmp_path / "changed"
    folder.mkdir()
    path = folder / "0000000001.rows"
    for place in range(len(text)):
        for flip in (0x01, 0x80):
            changed = bytearray(text)
            changed[place] ^= flip
            path.write_bytes(changed)
            with pytest.raises(SpoolError, match=r"0000000001\.rows: ") as refused:
                Spool(folder, "trades", limit=LIMIT)
            assert refused.value.path == str(path)
            assert path.read_bytes() == changed  # left as it was


def test_a_record_that_was_cut_in_the_middle_of_the_journal_is_damage(tmp_path: Path) -> None:
    """Only the last segment can end half-way; a missing one is noticed too."""
    with opened(tmp_path, limit=2_000) as spool:
        for number in range(8):
            spool.append([(b"x" * 60 + b"%d" % number, 1)])
    first, second, *_ = segments(tmp_path)
    text = first.read_bytes()
    first.write_bytes(text[:-1])
    with pytest.raises(SpoolError, match=r"ends within|is damaged"):
        Spool(tmp_path, "trades", limit=LIMIT)
    first.write_bytes(text)
    kept = second.read_bytes()
    second.unlink()
    with pytest.raises(SpoolError, match="is missing"):
        Spool(tmp_path, "trades", limit=LIMIT)
    second.write_bytes(kept)
    with opened(tmp_path) as spool:
        assert spool.rows == 8


def test_a_segment_that_lost_whole_records_is_noticed(tmp_path: Path) -> None:
    """Each segment knows how many rows came before it."""
    with opened(tmp_path, limit=2_000) as spool:
        marks = [mark for number in range(8) for mark in spool.append([(b"x" * 60, 1)])]
    first = segments(tmp_path)[0]
    in_first = [mark for mark in marks if mark.segment == 1]
    assert len(in_first) > 1
    os.truncate(first, in_first[-2].offset)
    with pytest.raises(SpoolError, match="does not continue"):
        Spool(tmp_path, "trades", limit=LIMIT)


def test_zeros_at_the_end_are_what_a_power_cut_left(tmp_path: Path) -> None:
    """A file can be longer than what reached the disk; the rows before the zeros are there."""
    with opened(tmp_path) as spool:
        spool.append([(b"row", 1)])
    with segments(tmp_path)[0].open("ab") as file:
        file.write(b"\0" * 100)
    with opened(tmp_path) as spool:
        assert contents(spool) == [b"row"]


def test_one_spool_at_a_time_has_a_folder(tmp_path: Path) -> None:
    """The second is refused, until the first lets go."""
    with opened(tmp_path), pytest.raises(SpoolError, match="another recorder has this spool"):
        Spool(tmp_path, "trades", limit=LIMIT)
    with opened(tmp_path):
        pass


def test_a_spool_of_something_else_is_refused(tmp_path: Path) -> None:
    """Rows of one user are never written as another's."""
    with opened(tmp_path, about="ann's") as spool:
        spool.append([(b"row", 1)])
    with pytest.raises(SpoolError, match="holds rows of ann's, not of bob's"):
        Spool(tmp_path, "bob's", limit=LIMIT)


def test_a_file_in_the_way_is_said(tmp_path: Path) -> None:
    """A path that cannot be a folder is named, with the remedy."""
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolError, match="name one that this user may write to"):
        Spool(tmp_path / "file", "trades", limit=LIMIT)


def test_a_full_spool_takes_nothing_of_what_is_too_much(tmp_path: Path) -> None:
    """And has room again once something is dropped; never more bytes than its limit."""
    with opened(tmp_path, limit=2_000) as spool:
        marks: list[Mark] = []
        with pytest.raises(SpoolFullError, match="raise spool_limit") as full:
            for _ in range(100):
                marks += spool.append([(b"x" * 50, 1), (b"y" * 50, 1)])
        assert full.value.path == str(tmp_path)
        before = contents(spool)
        assert len(before) == len(marks)
        assert sum(path.stat().st_size for path in segments(tmp_path)) == spool.size <= 2_000
        spool.drop(marks[len(marks) // 2])
        spool.append([(b"z" * 50, 1)])
        assert contents(spool)[-1] == b"z" * 50


def test_dropped_records_are_gone_and_the_others_stay(tmp_path: Path) -> None:
    """In random order of appending and dropping, over many segments and kills: none is missing, and none comes back."""
    choose = random.Random(7)
    expected: list[bytes] = []
    ends: list[Mark] = []
    number = 0
    for _ in range(15):
        with opened(tmp_path, limit=20_000) as spool:
            assert contents(spool) == expected
            assert spool.rows == len(expected)
            ends = [record.end for record in spool.read(spool.start, 10**9)]
            for _ in range(choose.randrange(30)):
                if expected and choose.random() < 0.4:
                    count = choose.randrange(1, len(expected) + 1)
                    spool.drop(ends[count - 1])
                    del expected[:count], ends[:count]
                else:
                    part = [b"%d " % (number := number + 1) * choose.randrange(1, 40) for _ in range(2)]
                    ends += spool.append([(payload, 1) for payload in part])
                    expected += part
                if ends:
                    behind = choose.randrange(len(ends))
                    assert [one.payload for one in spool.read(ends[behind], 10**9)] == expected[behind + 1 :]
            assert spool.size <= 20_000


def test_a_mark_cut_at_any_byte_loses_no_row(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A process that died while it noted what it is done with leaves the note before, or none."""
    with opened(tmp_path / "original") as spool:
        marks = spool.append([(b"first", 1), (b"second", 1), (b"third", 1)])
        for mark in marks[:2]:
            spool.drop(mark)
    text = segments(tmp_path / "original")[0].read_bytes()
    seen = []
    for size in range(marks[-1].offset, len(text) + 1):
        folder = tmp_path / f"cut-{size}"
        folder.mkdir()
        (folder / "0000000001.rows").write_bytes(text[:size])
        with opened(folder) as spool:
            seen.append(tuple(contents(spool)))
    first, second = (b"first", b"second", b"third"), (b"second", b"third")
    assert sorted(set(seen), key=len, reverse=True) == [first, second, (b"third",)]
    assert seen == sorted(seen, key=len, reverse=True)
    assert seen[-1] == (b"third",)


def test_what_is_done_with_is_noted_once_there_is_room(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A full disk is no reason to write rows again, unless it stays full to the end, which is said."""
    spool = Spool(tmp_path, "trades", limit=LIMIT)
    marks = spool.append([(b"row", 1)] * 3)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (spool.size + 10, limits[1]))
    try:
        spool.drop(marks[0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    spool.close()
    with opened(tmp_path) as spool:
        assert spool.rows == 2
    assert not caplog.records


@pytest.mark.parametrize("way", ["deleted", "moved", "files deleted", "replaced"])
def test_a_folder_that_is_gone_takes_no_rows(tmp_path: Path, way: str) -> None:
    """What is appended to a file that no folder has is lost with the process: it is refused."""
    folder = tmp_path / "spool"
    with opened(folder) as spool:
        spool.append([(b"row", 1)])
        if way == "files deleted":
            segments(folder)[0].unlink()
        else:
            folder.rename(tmp_path / "elsewhere")
        if way == "deleted":
            shutil.rmtree(tmp_path / "elsewhere")
        if way == "replaced":
            shutil.copytree(tmp_path / "elsewhere", folder)
        size = spool.size
        with pytest.raises(SpoolError, match=r"was deleted or moved under the recorder; nothing was accepted"):
            spool.append([(b"row", 1)])
        assert spool.size == size


def test_a_spool_that_is_done_with_leaves_no_rows_behind(tmp_path: Path) -> None:
    """Closed with everything dropped, the folder holds the lock alone."""
    spool = Spool(tmp_path, "trades", limit=LIMIT)
    spool.drop(spool.append([(b"row", 1)])[-1])
    spool.close()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_files_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    """What is in them may be one user's trading."""
    with opened(tmp_path / "new" / "spool", fsync=True) as spool:
        spool.append([(b"row", 1)])
    folder = tmp_path / "new" / "spool"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_the_journal_says_what_it_cut_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A warning with the number of bytes, and nothing of the rows."""
    with opened(tmp_path) as spool:
        spool.append([(b"kept", 1), (b"half written secret", 1)])
    path = segments(tmp_path)[0]
    os.truncate(path, path.stat().st_size - 5)
    with caplog.at_level(logging.WARNING, "shared.db"), opened(tmp_path):
        pass
    assert [(record.levelname, "cut off 51 bytes" in record.getMessage()) for record in caplog.records] == [
        ("WARNING", True)
    ]
    assert "secret" not in caplog.text


def test_a_disk_that_is_full_leaves_no_half_record(tmp_path: Path) -> None:
    """Here a limit of the system cuts the write short, wherever in the record; nothing of that append is kept."""
    with opened(tmp_path) as spool:
        spool.append([(b"kept", 1)])
        usual = resource.getrlimit(resource.RLIMIT_FSIZE)
        for room in (0, 1, 30, 60, 100):
            before = segments(tmp_path)[0].read_bytes()
            resource.setrlimit(resource.RLIMIT_FSIZE, (spool.end.offset + room, usual[1]))
            try:
                with pytest.raises(SpoolFullError, match="File too large"):
                    spool.append([(b"x" * 30, 1), (b"y" * 30, 1)])
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, usual)
            assert segments(tmp_path)[0].read_bytes() == before
        spool.append([(b"after", 1)])
    with opened(tmp_path) as spool:
        assert contents(spool) == [b"kept", b"after"]


@pytest.mark.parametrize("spooled", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_rows_leave_a_buffer_in_the_order_in_which_they_came(tmp_path: Path, spooled: bool, seed: int) -> None:
    """However adding and writing take turns, and whichever rows memory had no room for."""
    choose = random.Random(seed)
    spool = Spool(tmp_path / "spool", "trades", limit=200_000) if spooled else None
    buffer = Buffer(RowText(PublicTrade), spool, max_rows=10 if spooled else 10_000, batch_rows=7)
    lock = threading.Condition()
    added: list[str] = []
    written: list[str] = []
    while len(written) < 500:
        if len(added) < 500 and choose.random() < 0.6:
            rows = [trade_values(len(added) + number) for number in range(choose.randrange(1, 6))]
            buffer.add(buffer.accepting(rows))
            added += [row["trade_id"] for row in rows]
        elif buffer.waiting:
            batch = buffer.next_batch(lock)
            assert 0 < buffer.in_memory <= (10 + 5 if spooled else 10_000)
            if choose.random() < 0.8:  # else it failed
                buffer.done(batch)
                written += [row["trade_id"] for part in batch for row in part.rows]
        assert buffer.waiting == len(added) - len(written)
    assert written == added[: len(written)]
    buffer.close()
