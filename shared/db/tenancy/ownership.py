"""ONE map: each model's path to the user who owns its rows, or that it is shared by all.

Repository checks, the user's session and PostgreSQL's policies are all made from it. A model without an entry is
refused by `ownership_of` and fails a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from sqlalchemy import ColumnElement, Table, null, select

from shared.db.models import (
    ApiCredential,
    AuditLog,
    Base,
    BybitAccount,
    PrivateExecution,
    PublicTrade,
    Run,
    Strategy,
    User,
)


@dataclass(frozen=True)
class Reference:
    """A column that names a row of `parent`, which must belong to the same user.

    `agrees` names columns that must hold the same value here and there: a run's strategy must be one of the
    run's own account.
    """

    column: str
    parent: type[Base]
    agrees: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ownership:
    """Where a model's owner is found.

    `column` holds the user id itself when `parent` is None, else the key of a `parent` row with the same owner.
    `references` are further parents, which must belong to that user too.
    """

    column: str
    parent: type[Base] | None = None
    references: tuple[Reference, ...] = ()

    @cached_property
    def parents(self) -> tuple[Reference, ...]:
        """Every row that a row of this model names and whose owner must be its own."""
        leading = () if self.parent is None else (Reference(self.column, self.parent),)
        return leading + self.references

    @cached_property
    def columns(self) -> frozenset[str]:
        """The columns that say whose a row is."""
        return frozenset({self.column, *(reference.column for reference in self.parents)})


SHARED_BY_ALL = None

OWNERSHIP: Mapping[type[Base], Ownership | None] = {
    User: Ownership("user_id"),
    BybitAccount: Ownership("user_id"),
    ApiCredential: Ownership("account_id", parent=BybitAccount),
    Strategy: Ownership("account_id", parent=BybitAccount),
    Run: Ownership(
        "user_id",
        references=(
            Reference("account_id", BybitAccount),
            Reference("strategy_id", Strategy, agrees=("account_id",)),
        ),
    ),
    PrivateExecution: Ownership("run_id", parent=Run, references=(Reference("account_id", BybitAccount),)),
    PublicTrade: SHARED_BY_ALL,
    AuditLog: Ownership("user_id"),
}


def ownership_of(model: type[Any]) -> Ownership | None:
    """The entry of `model`: its ownership, or None for a table shared by all. `LookupError` without an entry."""
    try:
        return OWNERSHIP[model]
    except KeyError:
        raise LookupError(
            f"{model.__name__} has no entry in shared/db/tenancy/ownership.py; "
            "say whose rows it holds, or that it is SHARED_BY_ALL"
        ) from None


def owned_by(model: type[Any], user_id: Any) -> ColumnElement[bool] | None:
    """The criterion that a row of `model` belongs to `user_id`; None if the model is shared by all."""
    ownership = ownership_of(model)
    if ownership is None:
        return None
    column: Any = getattr(model, ownership.column)
    criterion: ColumnElement[bool] = (
        column == user_id if ownership.parent is None else column.in_(owned_keys(ownership.parent, user_id))
    )
    return criterion


def owned_keys(model: type[Any], user_id: Any) -> Any:
    """A SELECT of the primary keys of the rows of `model` that belong to `user_id`."""
    # Never correlated: the enclosing query may read the same table, for other rows.
    return select(model.__table__.c[primary_key(model)]).where(owned_rows(model, user_id)).correlate(None)


def owned_rows(model: type[Any], user_id: Any) -> ColumnElement[bool]:
    """The criterion that a row of the table of `model`, which holds users' rows, belongs to `user_id`."""
    table: Table = model.__table__
    ownership = ownership_of(model)
    assert ownership is not None, "only owned rows are named as parents"
    column = table.c[ownership.column]
    return column == user_id if ownership.parent is None else column.in_(owned_keys(ownership.parent, user_id))


def owner_of(model: type[Any], key: Any) -> Any:
    """A SELECT of the user who owns the row of `model` with this primary key; NULL if the row is shared by all."""
    table: Table = model.__table__
    ownership = ownership_of(model)
    if ownership is None:
        return select(null()).where(table.c[primary_key(model)] == key)
    named = select(table.c[ownership.column]).where(table.c[primary_key(model)] == key)
    return named if ownership.parent is None else owner_of(ownership.parent, named.scalar_subquery())


def primary_key(model: type[Any]) -> str:
    """The name of the model's single primary-key column."""
    (column,) = model.__table__.primary_key.columns
    return str(column.name)


@lru_cache
def columns_to_agree(parent: type[Any]) -> tuple[str, ...]:
    """The columns of `parent` that rows naming it must agree with."""
    references = [reference for entry in OWNERSHIP.values() if entry is not None for reference in entry.parents]
    named = {column for reference in references if reference.parent is parent for column in reference.agrees}
    return tuple(sorted(named))
