"""A JSON file of whatever shape is read exactly, or refused whole by one line that tells where."""

from __future__ import annotations

import gzip
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.db import InputError, read_json


def written(folder: Path, text: str | bytes) -> Path:
    """A file."""
    path = folder / "records.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"a": 0.1}]', [{"a": Decimal("0.1")}]),
        ('{"a": [1, 2.50]}', {"a": [1, Decimal("2.50")]}),
        ('\ufeff{"a": 1}\n\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
        ('{"a": 1}\n{"a": \n[3]', [{"a": 1}, '{"a": ', [3]]),
        ("[]", []),
        ('{"a": 1e99999999999999999999}', {"a": "1e99999999999999999999"}),
        (f'{{"a": 1}}\n{"[" * 100_000}', [{"a": 1}, "[" * 100_000]),
    ],
)
def test_arrays_objects_and_lines_are_read(text: str, said: Any, tmp_path: Path) -> None:
    """Numbers stay exact, packed or not; of lines each that is no JSON stays what it is."""
    assert read_json(written(tmp_path, text)) == said
    assert read_json(written(tmp_path, gzip.compress(text.encode()))) == said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"a": 1},\n {"a": é]', "broken at byte 18"),
        (b'{"a": "\xff"}', "no UTF-8 at byte 7"),
        (f"[{'9' * 5000}]", "a number too long"),
        ("[" * 100_000, "nested too deep"),
        ("\ufeff[7,", "broken at byte 6"),
        ("7", "holds no records"),
        ("", "broken at byte 0"),
    ],
)
def test_what_is_no_file_of_records_is_refused_whole(text: str | bytes, words: str, tmp_path: Path) -> None:
    """One line says where, and what to do."""
    with pytest.raises(InputError, match=words):
        read_json(written(tmp_path, text))
    with pytest.raises(InputError, match="cannot be opened"):
        read_json(tmp_path / "other.json")
    with pytest.raises(InputError, match="is a folder"):
        read_json(tmp_path)


@given(text=st.text(alphabet='[]{}",:0123456789.eE-+ \n\\u\ufeffäa'))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """It is a list or a dict, or an `InputError` and nothing else."""
    with suppress(InputError):
        assert isinstance(read_json(written(tmp_path_factory.getbasetemp(), text)), (dict, list))
