"""SQL that is written out with one user's rows only.

SQLAlchemy turns every statement into text in one place, its compiler. The one made here writes each table that
holds users' rows together with the condition that they are the session's user's: in WHERE where that says the same,
else by reading from `(SELECT * FROM runs WHERE user_id = ?)` in place of `runs`. So it does not matter how a table
got into a statement (entity, alias, join, eager load, subquery, RETURNING, UPDATE ... FROM). What is passed through
and not written out, raw SQL, is refused here too. Both happen once for each new form of statement: SQLAlchemy keeps
the text, and the user in it is a bound parameter.

The tempting alternative, SQLAlchemy's loader criteria, reaches neither full outer joins, nor subqueries inside a
statement that is not itself an ORM one (LIMIT, CASE, window functions, ON, VALUES), nor any subquery of an INSERT.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, lru_cache
from itertools import chain
from typing import Any, Final

import sqlalchemy
from sqlalchemy import (
    ColumnElement,
    Engine,
    Executable,
    FromClause,
    Insert,
    Join,
    String,
    Table,
    TableClause,
    Values,
    bindparam,
    select,
)
from sqlalchemy.orm import FromStatement, UserDefinedOption
from sqlalchemy.sql.cache_key import HasCacheKey
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ClauseElement, ColumnClause
from sqlalchemy.sql.selectable import AliasedReturnsRows, FromGrouping, ScalarValues
from sqlalchemy.sql.util import surface_selectables_only
from sqlalchemy.sql.visitors import InternalTraversal

from shared.db.dialects import port_of
from shared.db.errors import TenantError, TenantScopeError, TenantViolation, UndeclaredTableError
from shared.db.tables import Ownership, is_shared, is_table_name, model_of, ownership_of, primary_key
from shared.db.tenancy.functions import is_allowed, writes_its_own_text
from shared.db.tenancy.ownership import is_own, or_public
from shared.db.tenancy.written_text import check_types, checking_names, is_operator, writing

ON_SQLALCHEMY_2_0: Final = sqlalchemy.__version__.startswith("2.0.")
USER_PARAMETER: Final = "shared_db_user_id"
_REMEDY = "use mapped classes (select(Run)), or a plain session from db.get_session() for raw SQL"
_TENANT_REQUIRED = (
    "require_tenant is set, and this session without a user would touch users' data; open "
    "db.get_session(user_id=...), or for a tool a DatabaseFactory whose settings have require_tenant=False"
)

# count(*), EXISTS (SELECT 1 ...), LIKE '%' || ...: what SQLAlchemy, and the guard, write as a literal column.
_HARMLESS_LITERAL = re.compile(r"\*|[0-9]+|'%'")

LASTING: Final = "shared_db_lasting"
"""Execution option of a statement that is made once, without values, and asked again and again."""

ALONE: Final = "shared_db_alone"
"""Execution option of a SELECT without raw SQL that calls nothing: in a read-only session it may be a transaction."""

CONFINED_TO: Final = "shared_db_confined_to"
"""Execution option with the `Confinement` of a session: what is sent for it must have been written out with that."""


class Confinement(HasCacheKey, UserDefinedOption):
    """A statement option that says whose rows the compiler may write out, and whether raw SQL passes."""

    raw_sql = False

    def condition(self, table: Any, source: Any, *, to_write: bool) -> ColumnElement[bool] | None:
        """What rows of `source` (`table` itself or an alias of it) must fulfil; None if they are all allowed.

        Of those that are changed, deleted or locked (`to_write`) more may be asked than of those that are read.
        """
        raise NotImplementedError

    def refusal(self, what: str) -> TenantError:
        """The error for a part of a statement through which nobody can see whose rows it touches."""
        raise NotImplementedError

    def check(self, statement: Any) -> None:
        """Raise for what a statement as a whole may not be."""

    def binds(self, compiled: ConfinedCompiler, values: Iterable[Mapping[str, Any]]) -> bool:
        """Whether text and values that are about to be sent are confined to these rows."""
        return type(compiled.confinement) is type(self)


class OwnRows(Confinement):
    """The rows of one user.

    Where PostgreSQL's own policies confine it too (`policed`), text and Core tables pass.
    """

    _traverse_internals = [  # noqa: RUF012 # SQLAlchemy's own spelling; it reads the list
        ("user", InternalTraversal.dp_clauseelement),
        ("policed", InternalTraversal.dp_boolean),
        ("raw_sql", InternalTraversal.dp_boolean),
        ("statement_of_caller", InternalTraversal.dp_boolean),
    ]

    def __init__(
        self, user_id: str, *, policed: bool, raw_sql: bool | None = None, statement_of_caller: bool = True
    ) -> None:
        super().__init__()
        self.user_id = user_id
        self.user = bindparam(USER_PARAMETER, user_id, String(), unique=True)
        self.policed = policed
        self.raw_sql = policed if raw_sql is None else raw_sql
        self.statement_of_caller = statement_of_caller

    def on(self, statement: Any) -> Any:
        """The statement with this option."""
        lasting = statement.get_execution_options().get(LASTING)
        return _with_option(statement, self) if lasting else statement.options(self)

    @cached_property
    def to_load(self) -> OwnRows:
        """A copy for SQLAlchemy's own attribute loads, which name tables without their mapped class."""
        return OwnRows(self.user_id, policed=self.policed, raw_sql=self.raw_sql, statement_of_caller=False)

    @cached_property
    def alone(self) -> OwnRows:
        """A copy that refuses raw SQL even where PostgreSQL's policies would confine it."""
        return OwnRows(self.user_id, policed=self.policed, raw_sql=False)

    def condition(self, table: Any, source: Any, *, to_write: bool) -> ColumnElement[bool] | None:
        """The criterion that a row of `source`, which is `table` under any name, is the user's; None for all rows.

        To be read it may also be public.
        """
        model = model_of(table)
        if model is None:
            # Neither is it known to the policies, even where raw SQL may name what the role was granted.
            if isinstance(table, Table):
                raise UndeclaredTableError(table.name)
            if self.raw_sql:
                return None
            raise self.refusal(f"the table {table.name}")
        ownership = ownership_of(model)
        if ownership is None:
            return None
        own = self._own(ownership, source)
        return own if to_write else or_public(model, source, own)

    def _own(self, ownership: Ownership, source: Any) -> ColumnElement[bool]:
        keys = None
        if ownership.parent is not None:
            # Of a parent's table the compiler writes out own rows only anyway, but for those that are public. With a
            # single table in FROM it is not correlated to the enclosing query's.
            parent: Any = ownership.parent.__table__
            keys = select(parent.c[primary_key(ownership.parent)])
            above = ownership_of(ownership.parent)
            if above is not None and above.public is not None:
                keys = keys.where(self._own(above, parent))
        return is_own(source.c[ownership.column], self.user, keys, policed=self.policed)

    def refusal(self, what: str) -> TenantError:
        """`TenantViolation`."""
        return TenantViolation("raw SQL", what, self.user_id, _REMEDY)

    def check(self, statement: Any) -> None:
        """Refuse Core tables: they would be confined, but PostgreSQL's policies are asked for where they are meant."""
        if self.statement_of_caller and not self.raw_sql:
            for table in unmapped_tables(statement):
                raise self.refusal(f"the table {table.name}")

    def binds(self, compiled: ConfinedCompiler, values: Iterable[Mapping[str, Any]]) -> bool:
        """Also whether the user among the values is this one: the text may have been made for another."""
        names = compiled.user_parameters
        for row in values if names else ():
            for name in names:
                if row[name] != self.user_id:
                    return False
        return type(compiled.confinement) is OwnRows


@lru_cache(maxsize=1024)
def own_rows_of(user_id: str, *, policed: bool) -> OwnRows:
    """The option of all sessions of one user."""
    return OwnRows(user_id, policed=policed)


# Its key for SQLAlchemy's caches is worked out once for each object, which is a third of what confinement costs a read.
@lru_cache(maxsize=1024)
def _with_option(statement: Any, option: OwnRows) -> Any:
    return statement.options(option)


class NoUsersRows(Confinement):
    """Nobody's rows: users' tables, and raw SQL that may hide them, are refused (`require_tenant`)."""

    _traverse_internals: list[Any] = []  # noqa: RUF012 # SQLAlchemy's own spelling; it reads the list

    def condition(self, table: Any, source: Any, *, to_write: bool) -> ColumnElement[bool] | None:
        """None for what is shared by all."""
        if is_shared(table):
            return None
        raise self.refusal(table.name)

    def refusal(self, what: str) -> TenantError:
        """`TenantScopeError`."""
        return TenantScopeError(_TENANT_REQUIRED)


def confine(engine: Engine) -> None:
    """Have `engine` obey a statement's `Confinement`. Statements without one are written as ever."""
    compiler: Any = engine.dialect.statement_compiler
    # Each engine has a dialect of its own.
    engine.dialect.statement_compiler = _confined(compiler)
    check_types(engine.dialect)


def refuse_unconfined(context: Any) -> None:
    """Before a statement is sent: what a session confined is not sent as another one, whoever put that there."""
    required: Confinement | None = context.execution_options.get(CONFINED_TO)
    if required is not None:
        compiled = context.compiled
        if not isinstance(compiled, ConfinedCompiler) or not required.binds(compiled, context.compiled_parameters):
            raise required.refusal("a statement in place of the one that was confined")


def is_confined(engine: Any) -> bool:
    """Whether `confine()` was called for this engine or connection."""
    return issubclass(engine.dialect.statement_compiler, ConfinedCompiler)


@lru_cache
def _confined(compiler: Any) -> Any:
    return type(f"Confined{compiler.__name__}", (ConfinedCompiler, compiler), {})


_Untyped: Any = SQLCompiler


class ConfinedCompiler(_Untyped):  # type: ignore[misc] # SQLAlchemy's compilers have no types
    """A dialect's compiler that obeys a `Confinement`."""

    confinement: Confinement | None = None
    # The FROM elements of the SELECT being written whose condition stands in its WHERE.
    _conditioned: frozenset[int] = frozenset()
    # The FROM elements whose rows are locked, which as much as writing them keeps others away; None for all.
    _locked: frozenset[Any] | None = frozenset()
    # Whether it holds raw SQL, or what may be as much: then nobody knows what running it leaves behind.
    passed_raw_sql = False

    def __init__(self, dialect: Any, statement: Any, *args: Any, **options: Any) -> None:
        given: list[Confinement] = []
        if isinstance(statement, Executable):
            given = [option for option in statement._with_options if isinstance(option, Confinement)]
        if not given:
            super().__init__(dialect, statement, *args, **options)
            return
        # The last one: it is the session's, which adds it to what the caller gave.
        self.confinement = given[-1]
        self.confinement.check(statement)
        self._check_constructs(statement)
        with writing(self):
            super().__init__(dialect, statement, *args, **options)

    @property
    def preparer(self) -> Any:
        """What quotes names, also when a schema is filled in later."""
        return self._preparer

    @preparer.setter
    def preparer(self, given: Any) -> None:
        self._preparer = given if self.confinement is None else checking_names(given, self)

    @cached_property
    def user_parameters(self) -> list[str]:
        """The names of the parameters that hold the session's user."""
        return [name for bind, name in self.bind_names.items() if USER_PARAMETER in bind.key]

    @cached_property
    def _place_of_user(self) -> int:
        confinement: Any = self.confinement
        places = enumerate(self.cache_key.bindparams)
        return next(place for place, there in places if there is confinement.user)

    def construct_params(self, params: Any = None, extracted_parameters: Any = None, *args: Any, **options: Any) -> Any:
        """The values of one execution. No parameter of the caller can replace the session's user."""
        if self.isinsert and self._has_params_of_its_own(options):
            # They would take the place of values that the session has checked.
            self.refuse("params() of an INSERT")
        found = super().construct_params(params, extracted_parameters, *args, **options)
        if isinstance(self.confinement, OwnRows):
            user = self.confinement.user
            if extracted_parameters:
                # This text was made for another execution, perhaps of another user: take the bound parameter of
                # this one that stands where that one's stood.
                user = extracted_parameters[self._place_of_user]
            for name in self.user_parameters:
                found[name] = user.value
        return found

    def _has_params_of_its_own(self, options: Mapping[str, Any]) -> bool:
        if ON_SQLALCHEMY_2_0:
            return False  # there params() are for the statement they are called on
        return bool(options.get("_collected_params") or (self._collect_params and self._collected_params))

    def visit_table(self, table: Any, asfrom: bool = False, iscrud: bool = False, **options: Any) -> Any:
        """A table in FROM. The target of an UPDATE or DELETE has its condition in WHERE."""
        text = super().visit_table(table, asfrom=asfrom, iscrud=iscrud, **options)
        if self.confinement is None or not asfrom or iscrud:
            return text
        alias = options.get("enclosing_alias")
        source = alias if alias is not None and alias.element is table else table
        if id(source) in self._conditioned:
            return text
        condition = self.confinement.condition(table, table, to_write=self._is_locked(source))
        if condition is None:
            return text
        name = self.preparer.quote(table.name)
        own = f"(SELECT * FROM {name} WHERE {self.process(condition)})"
        return own if source is alias else own + self.get_render_as_alias_suffix(name)

    def _compose_select_body(
        self, text: Any, select: Any, compile_state: Any, inner_columns: Any, froms: Any, *rest: Any
    ) -> Any:
        # Without this method the result would be as safe, since visit_table() would confine every table. But a
        # condition in WHERE is what the databases' planners know best, and PostgreSQL lets a query group by the
        # key of a table, not of a subselect.
        if self.confinement is None:
            return super()._compose_select_body(text, select, compile_state, inner_columns, froms, *rest)
        # What the ORM put in: criteria of options and relationships, properties made of expressions.
        self._check_constructs(select)
        with self._locking(select._for_update_arg):
            conditions = []
            here = set()
            for source in _rows_needed(froms):
                table = source.element if isinstance(source, AliasedReturnsRows) else source
                condition = self.confinement.condition(table, source, to_write=self._is_locked(source))
                here.add(id(source))
                if condition is not None:
                    conditions.append(condition)
            with self._conditions_in_where(frozenset(here)):
                own = select.where(*conditions) if conditions else select
                return super()._compose_select_body(text, own, compile_state, inner_columns, froms, *rest)

    def _is_locked(self, source: Any) -> bool:
        return self._locked is None or source in self._locked

    @contextmanager
    def _locking(self, lock: Any) -> Iterator[None]:
        enclosing = self._locked
        if lock is not None and enclosing is not None:
            named = lock.of if port_of(self.dialect).locks_by_name else None
            tables = {table for one in named or () for table in surface_selectables_only(one)}
            self._locked = enclosing | tables if tables and all(map(_is_table, tables)) else None
        try:
            yield
        finally:
            self._locked = enclosing

    def visit_insert(self, insert_stmt: Any, visiting_cte: Any = None, **options: Any) -> Any:
        """What the new rows may be is for the session to check: it knows their values."""
        self._condition_of_target(insert_stmt, visiting_cte)
        return super().visit_insert(insert_stmt, visiting_cte=visiting_cte, **options)

    def visit_update(self, update_stmt: Any, visiting_cte: Any = None, **options: Any) -> Any:
        """UPDATE of own rows."""
        condition = self._condition_of_target(update_stmt, visiting_cte)
        own = update_stmt if condition is None else update_stmt.where(condition)
        return super().visit_update(own, visiting_cte=visiting_cte, **options)

    def visit_delete(self, delete_stmt: Any, visiting_cte: Any = None, **options: Any) -> Any:
        """DELETE of own rows."""
        condition = self._condition_of_target(delete_stmt, visiting_cte)
        own = delete_stmt if condition is None else delete_stmt.where(condition)
        return super().visit_delete(own, visiting_cte=visiting_cte, **options)

    def _condition_of_target(self, statement: Any, visiting_cte: Any) -> ColumnElement[bool] | None:
        if self.confinement is None:
            return None
        if visiting_cte is not None:
            self.refuse("a data-changing CTE")
        return self.confinement.condition(statement.table, statement.table, to_write=True)

    def visit_cte(self, cte: Any, *args: Any, **options: Any) -> Any:
        """A CTE hides the table of the same name, also from the conditions that look up the user's parents there."""
        if self.confinement is not None and is_table_name(cte.name):
            raise self.confinement.refusal(f"a CTE named {cte.name}")
        return super().visit_cte(cte, *args, **options)

    def visit_textclause(self, textclause: Any, **options: Any) -> Any:
        """Raw SQL; prefixes, suffixes and text with declared columns come this way too."""
        self.refuse("text()")
        return super().visit_textclause(textclause, **options)

    def visit_tstring(self, tstring: Any, **options: Any) -> Any:
        """Raw SQL from a template string (SQLAlchemy 2.1 on Python 3.14)."""
        self.refuse("tstring()")
        return super().visit_tstring(tstring, **options)

    def visit_column(self, column: Any, *args: Any, **options: Any) -> Any:
        """Literal columns are raw SQL."""
        if column.is_literal and not _HARMLESS_LITERAL.fullmatch(column.name):
            self.refuse("literal_column()")
        return super().visit_column(column, *args, **options)

    def format_from_hint_text(self, *given: Any) -> Any:
        """Those of a table too: MySQL writes any text behind its name."""
        self.refuse("a hint")
        return super().format_from_hint_text(*given)

    def update_tables_clause(self, update_stmt: Any, from_table: Any, extra_froms: Any, **options: Any) -> Any:
        """MySQL has the target among the other tables; its condition stands in WHERE all the same."""
        with self._conditions_in_where(self._conditioned | {id(from_table)}):
            return super().update_tables_clause(update_stmt, from_table, extra_froms, **options)

    def delete_extra_from_clause(self, delete_stmt: Any, from_table: Any, *rest: Any, **options: Any) -> Any:
        """The same of a DELETE."""
        with self._conditions_in_where(self._conditioned | {id(from_table)}):
            return super().delete_extra_from_clause(delete_stmt, from_table, *rest, **options)

    @contextmanager
    def _conditions_in_where(self, conditioned: frozenset[int]) -> Iterator[None]:
        enclosing, self._conditioned = self._conditioned, conditioned
        try:
            yield
        finally:
            self._conditioned = enclosing

    def get_statement_hint_text(self, hint_texts: Any) -> Any:
        """Hints are raw SQL."""
        self.refuse("a hint")
        return super().get_statement_hint_text(hint_texts)

    def visit_custom_op_binary(self, element: Any, operator: Any, **options: Any) -> Any:
        """`column.op("...")`."""
        self._check_operator(operator)
        return super().visit_custom_op_binary(element, operator, **options)

    def visit_custom_op_unary_operator(self, element: Any, operator: Any, **options: Any) -> Any:
        """The same before its operand."""
        self._check_operator(operator)
        return super().visit_custom_op_unary_operator(element, operator, **options)

    def visit_custom_op_unary_modifier(self, element: Any, operator: Any, **options: Any) -> Any:
        """The same behind its operand."""
        self._check_operator(operator)
        return super().visit_custom_op_unary_modifier(element, operator, **options)

    def visit_extract(self, extract: Any, **options: Any) -> Any:
        """The field of EXTRACT is written as it was given."""
        if not str(extract.field).isidentifier():
            self.refuse("extract() of what is no field")
        return super().visit_extract(extract, **options)

    def visit_function(self, func: Any, *args: Any, **options: Any) -> Any:
        """Functions may run SQL that they are given as text, and show or change what is not the user's."""
        if not is_allowed(func):
            self.refuse(f"the function {func.name}, which is not among those that allow_functions() knows")
        return super().visit_function(func, *args, **options)

    def _check_operator(self, operator: Any) -> None:
        if not is_operator(operator.opstring):
            self.refuse("an operator made of text")

    def _check_constructs(self, statement: Any) -> None:
        for element in elements_of(statement):
            if writes_its_own_text(element):
                self.refuse(f"{type(element).__name__}, which a @compiles function writes out")

    def refuse(self, what: str) -> None:
        """Raise, unless raw SQL passes."""
        if self.confinement is not None and not self.confinement.raw_sql:
            raise self.confinement.refusal(what)
        self.passed_raw_sql = True


def _rows_needed(froms: Iterable[FromClause]) -> Iterator[Any]:
    """The tables and aliases whose rows no outer join can make up: a condition on them may stand in WHERE."""
    for source in froms:
        if isinstance(source, FromGrouping):
            yield from _rows_needed([source.element])
        elif isinstance(source, Join):
            if not source.full:
                yield from _rows_needed([source.left] if source.isouter else [source.left, source.right])
        elif _is_table(source):
            yield source


def _is_table(source: Any) -> bool:
    """Whether it is a table, under its own name or another."""
    return isinstance(source.element if isinstance(source, AliasedReturnsRows) else source, TableClause)


def unmapped_tables(statement: Any) -> set[Any]:
    """The tables of users that a statement names without their mapped class: Core tables."""
    mapped: set[Any] = set()
    named: set[Any] = set()
    for element in elements_of(statement):
        table = element.table if isinstance(element, ColumnClause) else element
        if isinstance(table, AliasedReturnsRows):
            table = table.element
        if isinstance(table, TableClause) and not is_shared(table):
            # Whatever the ORM has had in its hands it has annotated.
            (mapped if element._annotations else named).add(table)
    return named - mapped


def elements_of(statement: Any) -> Iterator[Any]:
    """A statement and all that it is made of."""
    seen: dict[int, Any] = {}  # with the elements, so that none is gone and its number another's
    to_visit = [statement.element if isinstance(statement, FromStatement) else statement]
    while to_visit:
        element = to_visit.pop()
        if id(element) in seen:
            continue
        seen[id(element)] = element
        yield element
        # A Select's own get_children() leaves out a mapped class whose table it has met in a column.
        to_visit.extend(ClauseElement.get_children(element))
        to_visit.extend(part for part in _no_children_of(element) if isinstance(part, ClauseElement))


def _no_children_of(element: Any) -> Iterator[Any]:
    """What is written out with an element, and is none of its children to SQLAlchemy."""
    several: Any = ()
    if isinstance(element, Insert):
        several = element._multi_values
    elif isinstance(element, (Values, ScalarValues)):
        several = element._data
    for row in chain.from_iterable(several):
        yield from row.values() if isinstance(row, Mapping) else row
    own = vars(element)
    yield from (part for part, dialect in (*own.get("_prefixes", ()), *own.get("_suffixes", ())))
    yield from own.get("inferred_target_elements") or ()  # of an ON CONFLICT
