"""Secrets of mapped objects: sealed to their row when it is written, opened when they are asked for.

A column type does not know the row that a value is of, and an attribute does. So whatever class has a `SecretText`
column gets an attribute that opens it, and leaves its secrets behind when it is pickled.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Table, event, inspect
from sqlalchemy.orm import InstrumentedAttribute, Mapper

from shared.db.encryption import PlainSecret, SecretText, StoredSecret, encryption_of, place_of, sealed
from shared.db.errors import DeclarationError


class SecretAttribute(InstrumentedAttribute[Any]):
    """The attribute of a `SecretText` column: plain text, whatever is stored.

    Raises `SecretError` where it is sealed and does not open.
    """

    __slots__ = ()
    inherit_cache = True

    def __get__(self, instance: Any, owner: Any) -> Any:
        """The secret in plain."""
        found = super().__get__(instance, owner)
        if isinstance(found, StoredSecret):
            (column,) = self.property.columns
            return found.open(place_of(column, getattr(instance, key_attribute(inspect(instance).mapper))))
        return str(found) if isinstance(found, PlainSecret) else found

    def __set__(self, instance: Any, value: Any) -> None:
        """Plain text, to be sealed when the row is written."""
        super().__set__(instance, PlainSecret(value) if isinstance(value, str) else value)


def secret_columns(table: Table) -> list[Any]:
    """The columns of a table that are sealed."""
    return [column for column in table.columns if isinstance(column.type, SecretText)]


def key_attribute(mapper: Mapper[Any]) -> str:
    """The name of the attribute with the primary key, to which secrets are sealed."""
    return mapper.get_property_by_column(mapper.primary_key[0]).key


def hold_secrets(model: Any) -> None:
    """Have a class that was just mapped seal and open its secrets.

    Raises `DeclarationError` where there is no key before the row is stored, to which they could be sealed.
    """
    table: Table = model.__table__
    names = [inspect(model).get_property_by_column(column).key for column in secret_columns(table)]
    if not names:
        return
    if len(table.primary_key.columns) != 1 or table.autoincrement_column is not None:
        table.metadata.remove(table)
        raise DeclarationError(
            model.__name__, f"{names[0]} is sealed to its row, which needs one key that is there before the row: a text"
        )
    for name in names:
        getattr(model, name).__class__ = SecretAttribute
    # Of a class's own ones it is for the class: what is still in plain refuses to be pickled.
    if model.__new__ is object.__new__:
        model.__new__ = staticmethod(_new)
    if model.__getstate__ is object.__getstate__:
        model.__getstate__ = _without_secrets
    event.listen(model, "unpickle", _load_again)
    event.listen(model, "before_insert", _seal)
    event.listen(model, "before_update", _seal)


def _new(cls: Any, *_: Any, **values: Any) -> Any:
    """A misspelt keyword is SQLAlchemy's `TypeError` before SQLAlchemy keeps the values in a traceback's frames."""
    unknown = [name for name in values if not hasattr(cls, name)]
    values.clear()
    if unknown:
        raise TypeError(f"{unknown[0]!r} is an invalid keyword argument for {cls.__name__}")
    return object.__new__(cls)


def _names(entity: object) -> list[str]:
    mapper = inspect(entity).mapper
    return [mapper.get_property_by_column(column).key for column in secret_columns(mapper.local_table)]


def _without_secrets(entity: Any) -> dict[str, Any]:
    """A pickle leaves them behind; the copy loads them, when it is asked for them in a session."""
    return {name: value for name, value in entity.__dict__.items() if name not in _names(entity)}


def _load_again(entity: Any, state: dict[str, Any]) -> None:
    inspect(entity).expired_attributes.update(_names(entity))


def _seal(mapper: Mapper[Any], connection: Connection, entity: Any) -> None:
    """Seal what was set, now that the row's key is certain and the connection tells the key ring."""
    key = key_attribute(mapper)
    default: Any = mapper.primary_key[0].default
    if getattr(entity, key) is None and default is not None:
        setattr(entity, key, default.arg(None))
    encryption = encryption_of(connection)
    for name in _names(entity) if encryption is not None else ():
        attribute = inspect(entity).attrs[name]
        secret = entity.__dict__.get(name)
        if isinstance(secret, str) and attribute.history.added:
            (column,) = mapper.attrs[name].columns
            setattr(entity, name, sealed(secret, column, getattr(entity, key), encryption))
