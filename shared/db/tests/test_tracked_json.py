"""JSON documents: every edit in place is noticed and saved, at every depth, and no two rows share one."""

from __future__ import annotations

import copy
import gc
import json
import pickle
from collections.abc import Callable, MutableMapping, MutableSequence
from types import MappingProxyType
from typing import Any, cast

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session

from shared.db import BybitAccount, InvalidValueError, Run, StaleDocumentError, Strategy, StrategyRepository
from shared.db.tests.support import new_run, new_strategy, stored
from shared.db.tracked_json import TrackedDict, TrackedList

Edit = Callable[[Any], object]


def _in_place(container: Any, operator: str, operand: Any) -> None:
    # As `document["x"] += ...` does, without the assignment that follows it.
    assert getattr(container, operator)(operand) is container


# Each mutating method, on {"a": 1, "b": [2]} and on [3, 1, [2]].
DICT_EDITS: dict[str, list[Edit]] = {
    "__setitem__": [lambda d: d.__setitem__("a", 5), lambda d: d.__setitem__("new", {"x": [1]})],
    "__delitem__": [lambda d: d.__delitem__("a")],
    "setdefault": [lambda d: d.setdefault("new", [1])],
    "update": [
        lambda d: d.update({"a": 2, "n": 1}),
        lambda d: d.update(a=2),
        lambda d: d.update([("a", 2)]),
        lambda d: d.update({"a": 3}, n=4),
    ],
    "__ior__": [lambda d: _in_place(d, "__ior__", {"a": 2}), lambda d: _in_place(d, "__ior__", [("n", 2)])],
    "pop": [lambda d: d.pop("a"), lambda d: d.pop("b", None)],
    "popitem": [lambda d: d.popitem()],
    "clear": [lambda d: d.clear()],
}
LIST_EDITS: dict[str, list[Edit]] = {
    "__setitem__": [
        lambda v: v.__setitem__(0, 5),
        lambda v: v.__setitem__(-1, {"x": 1}),
        lambda v: v.__setitem__(slice(0, 2), [7, [8], 9]),
        lambda v: v.__setitem__(slice(None, None, 2), "xy"),
    ],
    "__delitem__": [lambda v: v.__delitem__(0), lambda v: v.__delitem__(slice(0, 2))],
    "append": [lambda v: v.append({"x": 1})],
    "extend": [lambda v: v.extend([1, [2]]), lambda v: v.extend(number for number in (1, 2))],
    "__iadd__": [lambda v: _in_place(v, "__iadd__", [1, (2,)])],
    "__imul__": [lambda v: _in_place(v, "__imul__", 2), lambda v: _in_place(v, "__imul__", 0)],
    "insert": [lambda v: v.insert(1, [9])],
    "pop": [lambda v: v.pop(), lambda v: v.pop(0)],
    "remove": [lambda v: v.remove(3)],
    "clear": [lambda v: v.clear()],
    "sort": [lambda v: v.sort(key=str), lambda v: v.sort(key=str, reverse=True)],
    "reverse": [lambda v: v.reverse()],
}
# Where in a document the edited container stands: how to build the document around it, and the way to it.
PLACES: dict[str, tuple[Callable[[Any], Any], Edit]] = {
    "top": (lambda inner: inner, lambda document: document),
    "in a dict": (lambda inner: {"in": inner}, lambda document: document["in"]),
    "in a list": (lambda inner: [0, inner], lambda document: document[1]),
    "in a tuple": (lambda inner: {"pair": (0, inner)}, lambda document: document["pair"][1]),
    "in a mapping": (lambda inner: {"m": MappingProxyType({"in": inner})}, lambda document: document["m"]["in"]),
    "far below": (lambda inner: {"a": [{"b": [[inner]]}]}, lambda document: document["a"][0]["b"][0][0]),
}


def plain(document: Any) -> Any:
    """The document in plain dicts and lists."""
    return json.loads(json.dumps(document, default=dict))


def test_the_edits_here_are_all_there_are() -> None:
    """No mutating method of dict or list is left out."""
    assert set(DICT_EDITS) == set(_own_edits(MutableMapping)) | {"__ior__"}
    assert set(LIST_EDITS) == set(_own_edits(MutableSequence)) | {"sort", "__imul__"}
    assert set(DICT_EDITS) <= set(vars(TrackedDict))
    assert set(LIST_EDITS) <= set(vars(TrackedList))


def _own_edits(kind: type[Any]) -> list[str]:
    return [name for name, member in vars(kind).items() if callable(member) and name != "__class_getitem__"]


@pytest.mark.parametrize("place", PLACES)
def test_every_edit_is_noticed_and_saved(session: Session, sample_strategy: Strategy, place: str) -> None:
    """After any mutating method, anywhere in the document, the row is dirty and the database gets what Python has."""
    build, reach = PLACES[place]
    cases = [({"a": 1, "b": [2]}, edit) for edits in DICT_EDITS.values() for edit in edits]
    cases += [([3, 1, [2]], edit) for edits in LIST_EDITS.values() for edit in edits]  # type: ignore[misc] # of both kinds
    for start, edit in cases:
        sample_strategy.config_json = build(copy.deepcopy(start))
        session.flush()
        session.refresh(sample_strategy)
        assert sample_strategy not in session.dirty
        twin = copy.deepcopy(start)
        edit(twin)
        edit(reach(sample_strategy.config_json))
        assert sample_strategy in session.dirty
        session.flush()
        session.expire(sample_strategy)
        assert sample_strategy.config_json == plain(build(twin))


def test_reading_is_no_edit(session: Session, sample_strategy: Strategy) -> None:
    """Looking at a document, copying, comparing and iterating it leaves the row clean."""
    sample_strategy.config_json = {"a": [1, {"b": 2}]}
    session.flush()
    document = sample_strategy.config_json
    assert document.get("a") == document["a"]
    assert (list(document), len(document), "a" in document) == (["a"], 1, True)
    assert document.copy() == document | {} == dict(document.items())
    assert document["a"][:] == sorted(document["a"], key=str) == document["a"] + []
    assert document.setdefault("a", 5) == document["a"]
    with pytest.raises(KeyError):
        document.pop("no such key")
    with pytest.raises(ValueError, match="not in list"):
        document["a"].remove(99)
    assert sample_strategy not in session.dirty


def test_what_was_put_in_is_tracked_too(session: Session, sample_strategy: Strategy) -> None:
    """Containers that an edit brought in notice edits themselves, before and after the flush."""
    document = sample_strategy.config_json
    document["new"] = {"deep": [[]]}
    session.flush()
    document["new"]["deep"][0].append("x")
    assert sample_strategy in session.dirty
    session.flush()
    document["new"]["deep"] += [1]
    document["new"] |= {"more": (1, {})}
    session.flush()
    document["new"]["more"][1]["y"] = 1
    session.flush()
    session.expire(sample_strategy)
    assert sample_strategy.config_json["new"] == {"deep": [["x"], 1], "more": [1, {"y": 1}]}


def test_a_part_put_back_in_its_own_document_stays_the_same_object(session: Session, sample_strategy: Strategy) -> None:
    """Sorting or moving parts within their container loses no later edit through a name that the caller kept."""
    sample_strategy.config_json = {"grid": [{"level": 2}, {"level": 1}]}
    session.flush()
    grid = sample_strategy.config_json["grid"]
    first = grid[1]
    sample_strategy.config_json["grid"] = grid
    grid[:] = sorted(grid, key=lambda part: part["level"])
    first["level"] = 0
    session.flush()
    session.expire(sample_strategy)
    assert sample_strategy.config_json == {"grid": [{"level": 0}, {"level": 2}]}


def test_a_snapshot_does_not_follow_later_edits(
    session: Session, sample_strategy: Strategy, sample_account: BybitAccount
) -> None:
    """A document given to a second row is copied: editing one never changes, nor marks, the other."""
    run = stored(session, new_run(sample_account, sample_strategy, config_snapshot=sample_strategy.config_json))
    part = stored(session, new_strategy(sample_account, "ETHUSDT", config_json={"of": sample_strategy.config_json}))
    sample_strategy.config_json["levels"] = 99
    assert run not in session.dirty
    assert part not in session.dirty
    run.config_snapshot["seen"] = True  # type: ignore[index] # set above
    assert sample_strategy.config_json["levels"] == 99
    session.flush()
    session.expire_all()
    assert sample_strategy.config_json == {"levels": 99, "step": "0.2"}
    assert run.config_snapshot == {"levels": 20, "step": "0.2", "seen": True}
    assert part.config_json == {"of": {"levels": 20, "step": "0.2"}}


def test_plain_data_given_to_two_rows_is_not_shared(session: Session, sample_account: BybitAccount) -> None:
    """The caller's own dict is copied in; changing it afterwards changes no row."""
    config = {"levels": [1]}
    first, second = (stored(session, new_strategy(sample_account, symbol, config_json=config)) for symbol in ("A", "B"))
    config["levels"].append(2)
    first.config_json["levels"].append(3)
    session.flush()
    session.expire_all()
    assert (first.config_json, second.config_json) == ({"levels": [1, 3]}, {"levels": [1]})


def test_a_document_that_was_replaced_no_longer_marks_its_row(session: Session, sample_strategy: Strategy) -> None:
    """The old document is free: edits of it stay with it, and it can be given back."""
    old = sample_strategy.config_json
    sample_strategy.config_json = {"new": True}
    session.flush()
    old["levels"] = 7
    assert sample_strategy not in session.dirty
    sample_strategy.config_json = old
    assert sample_strategy.config_json is old
    session.flush()
    old["levels"] = 8
    session.flush()
    session.expire(sample_strategy)
    assert sample_strategy.config_json == {"levels": 8, "step": "0.2"}


def test_an_edit_through_an_expression_is_saved(session: Session, sample_strategy: Strategy) -> None:
    """A document keeps its row alive: also where nobody else holds the row, an edit reaches the database."""
    key, account = sample_strategy.strategy_id, sample_strategy.account_id
    repository = StrategyRepository.across_users(session)

    def edited(edit: Callable[[], None]) -> Any:
        session.expunge_all()
        edit()
        gc.collect()
        session.flush()
        session.expunge_all()
        return session.scalar(select(Strategy.config_json))

    def by_id() -> None:
        found = repository.get_by_id(key)
        assert found is not None
        config = found.config_json
        del found
        gc.collect()
        config["levels"] = 30

    def in_a_list() -> None:
        for config in [found.config_json for found in repository.get_enabled_strategies(account)]:
            config["grid"] = [{}]
            config["grid"][0]["deep"] = 1

    def in_one_line() -> None:
        session.get_one(Strategy, key).config_json["step"] = "0.3"

    del sample_strategy
    for edit, expected in (
        (by_id, {"levels": 30, "step": "0.2"}),
        (in_a_list, {"levels": 30, "step": "0.2", "grid": [{"deep": 1}]}),
        (in_one_line, {"levels": 30, "step": "0.3", "grid": [{"deep": 1}]}),
    ):
        assert edited(edit) == expected


def _expired(session: Session, strategy: Strategy) -> Any:
    document = strategy.config_json
    session.expire(strategy)
    return document


def _read_again(session: Session, strategy: Strategy) -> Any:
    document = strategy.config_json
    session.refresh(strategy)
    return document


def _rolled_back(session: Session, strategy: Strategy) -> Any:
    with session.begin_nested() as savepoint:
        strategy.config_json["levels"] = 5
        session.flush()
        document = strategy.config_json
        savepoint.rollback()
    return document


def _deleted(session: Session, strategy: Strategy) -> Any:
    document = strategy.config_json
    session.delete(strategy)
    session.flush()
    return document


def _a_column(session: Session, strategy: Strategy) -> Any:
    return session.scalars(select(Strategy.config_json)).one()


def _a_column_of_the_table(session: Session, strategy: Strategy) -> Any:
    return session.execute(select(Strategy.__table__)).mappings().one()["config_json"]


@pytest.mark.parametrize("lost", [_expired, _read_again, _rolled_back, _deleted, _a_column, _a_column_of_the_table])
def test_an_edit_that_no_row_would_save_is_refused(
    session: Session, sample_strategy: Strategy, lost: Callable[[Session, Strategy], Any]
) -> None:
    """By name, at any depth, with the document left as it was; reading it and copying it go on."""
    sample_strategy.config_json["grid"] = [{"a": 1}]
    session.flush()
    document = lost(session, sample_strategy)
    before = plain(document)
    edits: list[Callable[[], object]] = [
        lambda: document.update(levels=1),
        lambda: document.clear(),
        lambda: document["grid"].append(2),
        lambda: document["grid"][0].pop("a"),
    ]
    for edit in edits:
        with pytest.raises(StaleDocumentError, match="would be lost") as caught:
            edit()
        assert isinstance(caught.value, InvalidRequestError)
    assert plain(document) == before
    own = copy.deepcopy(document)
    own["grid"][0]["a"] = 2


def test_a_document_read_as_a_column_can_be_given_to_a_row(session: Session, sample_strategy: Strategy) -> None:
    """Assigned it is the row's document, and its edits are saved."""
    document = session.scalars(select(Strategy.config_json)).one()
    sample_strategy.config_json = document
    document["levels"] = 31
    session.flush()
    session.expire(sample_strategy)
    assert sample_strategy.config_json["levels"] == 31


def test_a_row_merged_without_loading_has_a_document_of_its_own(session: Session, sample_strategy: Strategy) -> None:
    """Onto a row that the session holds, and into a session that does not: an edit of the result is saved."""
    for held in (True, False):
        twin = pickle.loads(pickle.dumps(sample_strategy))
        if not held:
            session.expunge_all()
        merged = session.merge(twin, load=False)
        merged.config_json["levels"] = held
        assert merged in session.dirty
        assert twin.config_json["levels"] != merged.config_json["levels"]
        session.flush()
        session.refresh(merged)
        assert merged.config_json["levels"] is held
        sample_strategy = merged


def test_an_update_of_loaded_rows_gives_them_tracked_documents(session: Session, sample_strategy: Strategy) -> None:
    """Also where SQLAlchemy takes the value over from the statement."""
    session.execute(update(Strategy).values(config_json={"grid": []}))
    sample_strategy.config_json["grid"].append(1)
    session.flush()
    session.expire(sample_strategy)
    assert sample_strategy.config_json == {"grid": [1]}


def test_a_bare_value_that_another_program_stored_can_be_read(session: Session, sample_run: Run) -> None:
    """A JSON document is a dict or a list here; a number or text that stands in the column already loads too."""
    session.flush()
    for stored_text, value in (("5", 5), ('"text"', "text"), ("true", True), ("1.5", 1.5), ("null", None)):
        session.execute(text(f"UPDATE runs SET config_snapshot = '{stored_text}'"))
        session.expire(sample_run)
        assert cast(Any, sample_run.config_snapshot) == value
        sample_run.gridcore_version = stored_text
        session.flush()
        assert session.scalar(select(Run.config_snapshot)) == value
    sample_run.config_snapshot = {"again": "a document"}
    session.flush()


def test_an_edit_of_a_detached_row_is_saved_by_a_merge(session: Session, sample_strategy: Strategy) -> None:
    """Out of its session the document stays readable and can be edited; merging the row saves it, as a copy."""
    session.commit()
    session.expunge_all()
    sample_strategy.config_json["levels"] = 21
    merged = session.merge(sample_strategy)
    merged.config_json["step"] = "0.3"
    assert sample_strategy.config_json == {"levels": 21, "step": "0.2"}
    session.flush()
    session.expire_all()
    assert merged.config_json == {"levels": 21, "step": "0.3"}


def test_a_row_that_was_pickled_goes_on_tracking(session: Session, sample_strategy: Strategy) -> None:
    """An entity pickles with its document; edits of the unpickled one are noticed."""
    sample_strategy.config_json["grid"] = [{"level": 1}]
    session.flush()
    twin = pickle.loads(pickle.dumps(sample_strategy))
    assert twin.config_json == sample_strategy.config_json
    session.expunge(sample_strategy)
    session.add(twin)
    assert twin not in session.dirty
    twin.config_json["grid"][0]["level"] = 2
    assert twin in session.dirty
    session.flush()
    session.expire(twin)
    assert twin.config_json["grid"] == [{"level": 2}]


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))])
def test_copies_of_a_document_belong_to_nobody(
    session: Session, sample_strategy: Strategy, duplicate: Callable[[Any], Any]
) -> None:
    """copy, deepcopy and pickle give equal documents of the same kind whose edits mark no row."""
    sample_strategy.config_json = {"a": [1, {"b": [2]}], "n": None}
    session.flush()
    twin = duplicate(sample_strategy.config_json)
    assert twin == sample_strategy.config_json
    assert (type(twin), type(twin["a"]), type(twin["a"][1])) == (TrackedDict, TrackedList, TrackedDict)
    twin["a"][1]["b"].append(3)
    twin["new"] = 1
    assert sample_strategy not in session.dirty
    assert sample_strategy.config_json == {"a": [1, {"b": [2]}], "n": None}


def test_none_a_list_and_other_mappings_can_be_assigned(session: Session, sample_run: Run) -> None:
    """A document may be absent, a list, a tuple or any mapping; it comes back as None, list or dict."""
    for given, kept in (
        (None, None),
        ([1, {"a": 2}], [1, {"a": 2}]),
        ((1, 2), [1, 2]),
        (MappingProxyType({"a": 1}), {"a": 1}),
        ({}, {}),
    ):
        sample_run.config_snapshot = given  # type: ignore[assignment] # more than the annotation promises
        session.flush()
        session.expire(sample_run)
        assert sample_run.config_snapshot == kept


def test_a_statement_takes_tracked_documents(session: Session, sample_strategy: Strategy) -> None:
    """A tracked document can be given to Core, which takes its content."""
    sample_strategy.config_json["grid"] = [{"level": 1}]
    session.execute(update(Strategy).values(config_json=sample_strategy.config_json["grid"]))
    assert session.scalar(select(Strategy.config_json)) == [{"level": 1}]


def test_what_is_no_document_is_refused_on_assignment() -> None:
    """A scalar cannot become a document, nor what contains itself; the error names the column."""
    cycle: dict[str, Any] = {}
    cycle["again"] = [cycle]
    for value in ("text", 5, 1.5, True, {1, 2}, b"x", cycle):
        with pytest.raises(InvalidValueError) as caught:
            Strategy(config_json=value)
        assert caught.value.column == "strategies.config_json"
        assert caught.value.__cause__ is None
