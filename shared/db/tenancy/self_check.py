"""A proof, once a process and dialect, that the compiler confines: another SQLAlchemy may ask for text by other names.

What `ConfinedCompiler` overrides it overrides by name. If a release writes tables, text or names out by a method that
is called differently, its statements would be those of everybody, and nothing else would say so. So before the first
user's session a few statements are written out, none of which is sent, and their text is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import sqlalchemy
from sqlalchemy import (
    CHAR,
    Integer,
    Sequence,
    cast,
    column,
    delete,
    extract,
    func,
    insert,
    literal_column,
    select,
    text,
    true,
    update,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.elements import ClauseElement, ColumnElement, UnaryExpression, quoted_name
from sqlalchemy.sql.operators import custom_op

from shared.db.errors import TenantError, TenantScopeError
from shared.db.models import PublicTrade, Run, Strategy, User
from shared.db.tenancy.confined_sql import USER_PARAMETER, OwnRows

_SQL = "(SELECT 1)"
_proved: set[type[Any]] = set()


class _Template(ColumnElement[str]):
    """What SQLAlchemy 2.1 makes of a template string of Python 3.14, as far as its compiler can tell."""

    __visit_name__ = "tstring"
    inherit_cache = False


class _Construct(ColumnElement[str]):
    inherit_cache = False


@compiles(_Construct)
def _construct(element: _Construct, compiler: Any, **how: Any) -> str:
    return _SQL


def prove(dialect: Any) -> None:
    """Raise `TenantScopeError` if statements of this dialect are not written out as users' sessions need it."""
    if dialect.statement_compiler in _proved:
        return
    try:
        problem = next(_problems(dialect), None)
    except TenantError:
        raise
    except Exception as error:
        raise _refusal(repr(error)) from error
    if problem is not None:
        raise _refusal(problem)
    _proved.add(dialect.statement_compiler)


def _refusal(problem: str) -> TenantScopeError:
    return TenantScopeError(
        f"users' sessions are closed: SQLAlchemy {sqlalchemy.__version__} does not write statements out as they are "
        f"confined here ({problem}); install a SQLAlchemy that this package's dependencies allow"
    )


def _problems(dialect: Any) -> Iterator[str]:
    ann, bob = (OwnRows(user_id, policed=False) for user_id in ("ann", "bob"))
    for what, (statement, conditions) in _confined().items():
        compiled = ann.on(statement).compile(dialect=dialect)
        if _conditions(compiled) != conditions:
            yield f"{what} is not confined"
        given = compiled.construct_params({f"{USER_PARAMETER}_1": "bob", f"{USER_PARAMETER}_2": "bob"})
        if {value for name, value in given.items() if USER_PARAMETER in name} != {"ann"}:
            yield f"{what} takes another user"
    for what, statement in _writing().items():
        asking = _Asking("ann", policed=False)
        asking.on(statement).compile(dialect=dialect)
        if Run.__table__ not in asking.to_write:
            yield f"{what} takes what may only be read"
    for what, make in _refused().items():
        try:
            ann.on(make()).compile(dialect=dialect)
        except TenantError:
            continue
        yield f"{what} passes"
    # The text is kept, and sent again with another user's values.
    first, second = (own.on(select(Run.run_id))._generate_cache_key() for own in (ann, bob))
    kept = ann.on(select(Run.run_id)).compile(dialect=dialect, cache_key=first)
    again = kept.construct_params(extracted_parameters=second.bindparams)
    if [value for name, value in again.items() if USER_PARAMETER in name] != ["bob"]:
        yield "a text that is kept goes on with its first user"


def _conditions(compiled: Any) -> int:
    """How often the text asks whose a row is."""
    if compiled.positional:
        return sum(USER_PARAMETER in name for name in compiled.positiontup)
    return int(compiled.string.count(f"%({USER_PARAMETER}"))


def _confined() -> dict[str, tuple[Any, int]]:
    """Statements, and how many conditions make them the user's."""
    runs = select(Run.run_id)
    return {
        "a SELECT": (runs, 1),
        "a SELECT of a child": (select(Strategy.strategy_id), 1),
        "a subquery": (select(func.count()).select_from(runs.subquery()), 1),
        "a full join": (select(Run.run_id, User.user_id).join(User, true(), full=True), 2),
        "an UPDATE": (update(Run).values(gridcore_version="1"), 1),
        "a DELETE": (delete(Run), 1),
        "RETURNING of an INSERT": (insert(PublicTrade).values(symbol="x").returning(runs.scalar_subquery()), 1),
    }


class _Asking(OwnRows):
    """Notes what is said to be written of."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.to_write: set[Any] = set()

    def condition(self, table: Any, source: Any, *, to_write: bool) -> Any:
        if to_write:
            self.to_write.add(table)
        return super().condition(table, source, to_write=to_write)


def _writing() -> dict[str, Any]:
    """Statements that write rows, or lock them."""
    return {
        "a SELECT FOR UPDATE": select(Run.run_id).with_for_update(),
        "a SELECT FOR UPDATE of a subquery": select(select(Run.run_id).subquery()).with_for_update(),
        "a SELECT FOR UPDATE of a table": select(Run.run_id, User.user_id).with_for_update(of=Run),
        "an UPDATE": update(Run).values(gridcore_version="1"),
        "a DELETE": delete(Run),
    }


def _refused() -> dict[str, Callable[[], Any]]:
    """Raw SQL, and its disguises."""

    def written(element: ClauseElement) -> Callable[[], Any]:
        return lambda: select(element)  # type: ignore[call-overload] # it takes more than its types tell

    id_ = PublicTrade.id.expression
    return {
        "text()": written(text(_SQL)),
        "a template string": written(_Template()),
        "literal_column()": written(literal_column(_SQL)),
        "a hint": lambda: select(id_).with_statement_hint(_SQL),
        "a hint of a table": lambda: select(id_).with_hint(PublicTrade, _SQL),
        "an operator": written(id_.op(_SQL)(1)),
        "an operator before its operand": written(UnaryExpression(id_, operator=custom_op(_SQL))),
        "an operator behind its operand": written(UnaryExpression(id_, modifier=custom_op(_SQL))),
        # By a dialect's own compiler it is looked up in a list.
        "a field of EXTRACT": written(extract(_SQL, PublicTrade.exchange_ts)),
        "a type": written(cast(id_, CHAR(collation=f'"{_SQL}'))),
        "a function": written(func.query_to_xml(_SQL)),
        "a sequence": written(Sequence("x").next_value()),
        "a name": written(column(quoted_name(_SQL, False))),
        "a construct": written(_Construct()),
        "a CTE that writes": lambda: select(id_).add_cte(delete(PublicTrade).returning(PublicTrade.id).cte()),
        "a CTE that inserts": lambda: select(id_).add_cte(
            insert(PublicTrade).values(symbol="x").returning(PublicTrade.id).cte()
        ),
        "a CTE that changes": lambda: select(id_).add_cte(
            update(PublicTrade).values(symbol="x").returning(PublicTrade.id).cte()
        ),
        "a CTE named like a table": lambda: select(Run.run_id).add_cte(
            select(literal_column("1", Integer).label("run_id")).cte("runs")
        ),
    }
