"""The audit trail: who changed what and when, written by the session itself in the transaction of the change.

It is on where its newest entry about itself says so (`DatabaseFactory.enable_audit()`): the switch stands in the
database, so that no process's own setting ends the record of others. Recorded are flushes, INSERT, UPDATE and DELETE
statements given to `session.execute()`, and the bulk paths; not what goes round the session (raw SQL, an engine's own
connection, SQLAlchemy's legacy `bulk_*` methods), and not what the database's cascade removes: the deletion of the
parent stands for it. Public trades and executions come by the million, so their inserts, and statements over them,
are one entry with a row count.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Dialect, Table, event, exists, insert, inspect, select, text
from sqlalchemy.orm import InstanceState, ORMExecuteState, Session, UOWTransaction
from sqlalchemy.sql.elements import ClauseElement

from shared.db.dialects import port_of
from shared.db.errors import AuditError, PermissionDeniedError, StatementRefusedError
from shared.db.models import AuditAction, AuditLog
from shared.db.tables import model_of, ownership_of, primary_key, streams
from shared.db.tenancy.entity_values import column_values
from shared.db.tenancy.session_scope import user_of
from shared.db.tenancy.statement_guard import inserted_rows
from shared.db.tenancy.user_ids import UNSET
from shared.db.value_forms.forms import secrets_of

_log = logging.getLogger(__name__)
_ATTRIBUTE = "shared_db_audited"
_ENTRIES: Any = AuditLog.__table__
_KEYS_AT_ONCE = 500
_REFUSAL = "the audit log is append-only"


@event.listens_for(_ENTRIES, "after_create")
def _refuse_changes(_table: Table, connection: Connection, **_how: Any) -> None:
    """Create the triggers that refuse every change to what the table holds, or renew them."""
    for statement in port_of(connection).append_only(_ENTRIES.name, _REFUSAL):
        connection.execute(text(statement))


@event.listens_for(_ENTRIES, "after_drop")
def _refuse_no_more(_table: Table, connection: Connection, **_how: Any) -> None:
    for statement in port_of(connection).append_only_no_more(_ENTRIES.name):
        connection.execute(text(statement))


# The newest entry about the log itself. One that holds others alone is from the time when to be there was to be on.
_SWITCH = select(
    select(_ENTRIES.c.new_values)
    .filter_by(entity="AuditLog", entity_id="recording", user_id=None)
    .order_by(_ENTRIES.c.id.desc())
    .limit(1)
    .scalar_subquery(),
    exists(select(_ENTRIES.c.id)),
)


def switch(connection: Connection, recording: bool, actor: str | None) -> None:
    """Write down that the log is on, or off, from now on, unless it is; what refuses changes is renewed."""
    if recording:
        _refuse_changes(_ENTRIES, connection)
    if look(connection) != recording:
        connection.execute(text(switching(recording, ":actor")), {"actor": actor})


def switching(recording: bool, actor: str = "NULL") -> str:
    """The statement that does so, on every database."""
    return (
        "INSERT INTO audit_log (actor, action, entity, entity_id, new_values) "
        f"VALUES ({actor}, 'update', 'AuditLog', 'recording', '{{\"recording\": {str(recording).lower()}}}')"
    )


def look(connection: Connection) -> bool:
    """Find out whether the log is on; the sessions of the engine go by the answer.

    A login that may not read the log does not write it: whether it should, only the log could say. A database that is
    to be brought forward may have none yet.
    """
    try:
        with connection.begin_nested():
            newest, filled = connection.execute(_SWITCH).one()
        recording = bool(filled if newest is None else newest["recording"])
    except StatementRefusedError:
        recording = False
    except PermissionDeniedError:
        recording = False
        _log.warning("this login may not read audit_log, and nothing it writes is recorded: GRANT SELECT, INSERT ON it")
    remember(connection.dialect, recording)
    return recording


def remember(dialect: Dialect, recording: bool | None) -> None:
    """Tell the sessions of this engine whether the log is on, or to find out anew."""
    setattr(dialect, _ATTRIBUTE, recording)


def watch(sessions: Any) -> None:
    """Record what is written by these sessions: a session class or a sessionmaker."""
    event.listen(sessions, "before_flush", _before_flush)
    event.listen(sessions, "after_flush", _after_flush)
    # First of all: a user's session confines and checks what is executed here, as it does any other statement.
    event.listen(sessions, "do_orm_execute", _execute, insert=True)


def record_bulk(
    session: Session, model: type[Any], action: AuditAction, row_count: int, user_id: str | None = None
) -> None:
    """One entry for rows that were written past the ORM; `user_id` is whose they are."""
    if row_count and _is_on(session):
        trail = _Trail(session)
        trail.add(action, model, {}, user_id=user_id, row_count=row_count)
        trail.write()


def _is_on(session: Session) -> bool:
    known: bool | None = getattr((session.bind or session.get_bind()).dialect, _ATTRIBUTE, None)
    return look(Session.connection(session)) if known is None else known


@dataclass
class _Trail:
    """The entries of one flush or statement."""

    session: Session
    # What a flush is about to overwrite without having loaded it, by object and column name.
    unloaded: dict[InstanceState[Any], dict[str, Any]] = field(default_factory=dict)
    _entries: list[dict[str, Any]] = field(default_factory=list)
    _owners: dict[tuple[type[Any], Any], str | None] = field(default_factory=dict)

    def add(
        self,
        action: AuditAction,
        model: type[Any],
        row: Mapping[str, Any],
        *,
        old: Mapping[str, Any] | None = None,
        new: Mapping[str, Any] | None = None,
        user_id: str | None = None,
        row_count: int = 1,
    ) -> None:
        """Add an entry. `row` is what is known of the row: it tells the key and the owner."""
        info, user = self.session.info, user_of(self.session)
        key = row.get(primary_key(model))
        self._entries.append(
            {
                "created_at": datetime.now(UTC),
                "user_id": user_id or self._owner(model, row),
                "actor": info.get("actor", None if user is UNSET else user),
                "action": action,
                "entity": model.__name__,
                "entity_id": None if key is None or isinstance(key, ClauseElement) else str(key),
                "row_count": row_count,
                "old_values": None if old is None else _shown(model, old),
                "new_values": None if new is None else _shown(model, new),
                "ip_address": info.get("ip_address"),
                "user_agent": info.get("user_agent"),
            }
        )

    def write(self) -> None:
        """Insert the entries, in the session's transaction."""
        if self._entries:
            Session.connection(self.session).execute(insert(_ENTRIES), self._entries)

    def _owner(self, model: type[Any], row: Mapping[str, Any]) -> str | None:
        user, ownership = user_of(self.session), ownership_of(model)
        if user is not UNSET:
            return user
        if ownership is None:
            return None
        value = row.get(ownership.column)
        if ownership.parent is None or not isinstance(value, str):
            return value if isinstance(value, str) else None
        place = (ownership.parent, value)
        if place not in self._owners:
            parent = stored_values(Session.connection(self.session), ownership.parent, value)
            self._owners[place] = self._owner(ownership.parent, parent)
        return self._owners[place]


def stored_values(connection: Connection, model: type[Any], key: Any) -> Mapping[str, Any]:
    """What the database has of one row, by column name; nothing if it is not there."""
    table: Table = model.__table__
    found = connection.execute(select(table).where(table.c[primary_key(model)] == key)).mappings().first()
    return {} if found is None else dict(found)


@event.listens_for(AuditLog, "before_insert")
@event.listens_for(AuditLog, "before_update")
@event.listens_for(AuditLog, "before_delete")
def _refuse_entry(*_: Any) -> None:
    raise AuditError(f"{_REFUSAL}, and written by the sessions themselves; do not add, change or delete entries")


def _before_flush(session: Session, context: UOWTransaction, instances: Any) -> None:
    if not _is_on(session):
        return
    trail = context.attributes[_ATTRIBUTE] = _Trail(session)
    for entity in session.deleted:
        state = inspect(entity)
        old = column_values(entity) | _not_loaded(session, state, list(state.mapper.columns.keys()))
        trail.add(AuditAction.DELETE, type(entity), old, old=old)
    for entity in session.dirty:
        state = inspect(entity)
        changed = [key for key, _ in state.mapper.columns.items() if state.attrs[key].history.added]
        unknown = [key for key in changed if not state.attrs[key].history.deleted]
        trail.unloaded[state] = _not_loaded(session, state, unknown, overwritten=True)


def _after_flush(session: Session, context: UOWTransaction) -> None:
    trail: _Trail | None = context.attributes.get(_ATTRIBUTE)
    if trail is None:
        return
    inserted: dict[tuple[type[Any], str | None], int] = {}
    for entity in session.new:
        model, row = type(entity), column_values(entity)
        if model in streams():
            place = model, trail._owner(model, row)
            inserted[place] = inserted.get(place, 0) + 1
        else:
            trail.add(AuditAction.CREATE, model, row, new=row)
    for (model, user_id), count in inserted.items():
        trail.add(AuditAction.CREATE, model, {}, user_id=user_id, row_count=count)
    for entity in session.dirty:
        old, new = _changes(inspect(entity), trail.unloaded.get(inspect(entity), {}))
        if new:
            trail.add(AuditAction.UPDATE, type(entity), column_values(entity), old=old, new=new)
    trail.write()


def _changes(state: InstanceState[Any], unloaded: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    old, new = {}, {}
    for key, column in state.mapper.columns.items():
        history = state.attrs[key].history
        if history.added:
            new[column.name] = history.added[0]
            old[column.name] = history.deleted[0] if history.deleted else unloaded.get(column.name)
    return old, new


def _not_loaded(
    session: Session, state: InstanceState[Any], keys: Iterable[str], *, overwritten: bool = False
) -> dict[str, Any]:
    """The stored values of those attributes that the object does not have, by column name."""
    names = [state.mapper.columns[key].name for key in keys if overwritten or key not in state.dict]
    if not names:
        return {}
    assert state.identity is not None, "only a stored row is changed or deleted"
    stored = stored_values(Session.connection(session), state.mapper.class_, state.identity[0])
    return {name: stored.get(name) for name in names}


def _execute(state: ORMExecuteState) -> Any:
    if not (state.is_insert or state.is_update or state.is_delete):
        return None
    statement: Any = state.statement
    model = model_of(getattr(statement, "element", statement).table)  # from_statement() has one within
    if model is AuditLog:
        raise AuditError(f"{_REFUSAL}, and written by the sessions alone; do not name it in a statement")
    if model is None or not _is_on(state.session):
        return None
    trail = _Trail(state.session)
    if state.is_insert:
        result = _insert(trail, state, model)
    elif model in streams():
        result = state.invoke_statement()
        action = AuditAction.UPDATE if state.is_update else AuditAction.DELETE
        trail.add(action, model, {}, new=_assigned(state) or None, row_count=_row_count(result))
    else:
        result = _change(trail, state, model)
    trail.write()
    return result


def _insert(trail: _Trail, state: ORMExecuteState, model: type[Any]) -> Any:
    given: Any = state.statement
    result: Any
    if model in streams() or given.select is not None:
        rows = list(inserted_rows(given, state.parameters))
        result = state.invoke_statement()
        row_count = _row_count(result) if given.select is not None else len(rows)
        trail.add(AuditAction.CREATE, model, rows[0] if len(rows) == 1 else {}, row_count=row_count)
        return result
    statement, parameters = _with_keys(state, model)
    result = state.invoke_statement(statement, parameters)
    for row in inserted_rows(statement, parameters or state.parameters):
        trail.add(AuditAction.CREATE, model, row, new=row)
    return result


def _with_keys(state: ORMExecuteState, model: type[Any]) -> tuple[Any, Any]:
    """Statement and parameters with the rows' keys in them, where Python makes them: an entry has to name its row."""
    statement: Any = state.statement
    column = model.__table__.c[primary_key(model)]
    if column.default is None or statement._multi_values:
        return statement, None
    if isinstance(state.parameters, Mapping) or not state.parameters:
        named = {*(state.parameters or {}), *(_name(key) for key in statement._values or {})}
        return (statement if column.name in named else statement.values({column.name: column.default.arg(None)})), None
    return statement, [{column.name: column.default.arg(None)} | dict(row) for row in state.parameters]


def _change(trail: _Trail, state: ORMExecuteState, model: type[Any]) -> Any:
    """Run an UPDATE or DELETE between two looks at its rows, which the first one locks."""
    statement: Any = state.statement
    key = primary_key(model)
    found = select(*_attributes(model)).with_for_update(of=model)
    if isinstance(state.parameters, list):
        # UPDATE by primary key, one mapping per row.
        before = _rows_of(state.session, model, [row.get(key) for row in state.parameters], found)
    else:
        chosen = state.session.execute(found.where(*statement._where_criteria), state.parameters)
        before = {row[key]: dict(row) for row in _named(model, chosen)}
    result = state.invoke_statement()
    if state.is_delete:
        for row in before.values():
            trail.add(AuditAction.DELETE, model, row, old=row)
        return result
    assigned, secrets = _assigned(state), secrets_of(model.__table__)
    after = _rows_of(state.session, model, list(before), select(*_attributes(model)))
    for identity, row in before.items():
        # For a secret, record that it was written, not what: sealed anew, it differs even where it is the same.
        changed = [
            name
            for name, value in after.get(identity, row).items()
            if (name in assigned if name in secrets else value != row[name])
        ]
        if changed:
            old, new = ({name: values[name] for name in changed} for values in (row, after.get(identity, row)))
            trail.add(AuditAction.UPDATE, model, row, old=old, new=new)
    return result


def _rows_of(session: Session, model: type[Any], keys: list[Any], found: Any) -> dict[Any, dict[str, Any]]:
    key = primary_key(model)
    rows: dict[Any, dict[str, Any]] = {}
    for start in range(0, len(keys), _KEYS_AT_ONCE):
        chosen = found.where(getattr(model, key).in_(keys[start : start + _KEYS_AT_ONCE]))
        rows |= {row[key]: dict(row) for row in _named(model, session.execute(chosen))}
    return rows


def _attributes(model: type[Any]) -> list[Any]:
    return [getattr(model, attribute.key) for attribute in inspect(model).column_attrs]


def _named(model: type[Any], result: Any) -> Iterable[dict[str, Any]]:
    names = [attribute.columns[0].name for attribute in inspect(model).column_attrs]
    return (dict(zip(names, row, strict=True)) for row in result)


def _assigned(state: ORMExecuteState) -> dict[str, Any]:
    """The columns that an UPDATE assigns, by name; with one mapping per row, those of the first."""
    statement: Any = state.statement
    if not state.is_update:
        return {}
    values = dict(statement._values or {}) | dict(getattr(statement, "_ordered_values", None) or ())
    assigned = {_name(column): value for column, value in values.items()}
    given = state.parameters[0] if isinstance(state.parameters, list) else {}
    return assigned | dict(given)


def _name(column: Any) -> str:
    return column if isinstance(column, str) else str(column.name)


def _row_count(result: Any) -> int:
    return max(int(getattr(result, "rowcount", 0)), 0)


def _shown(model: type[Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """The values as the log has them: no secret, and no SQL expression, whose value only the database knows."""
    mapper, secrets = inspect(model), secrets_of(model.__table__)
    shown: dict[str, Any] = {}
    for key, value in row.items():
        name = mapper.columns[key].name if key in mapper.columns else key
        value = getattr(value, "effective_value", value)
        shown[name] = (
            "changed" if name in secrets else "an SQL expression" if isinstance(value, ClauseElement) else value
        )
    return shown
