"""Every guard that keeps users apart, each with the source in which it is gone.

The statements are found in the syntax tree: every `raise`, every call made for its effect, every event listener. What
guards by an expression (a condition, a criterion, a pattern, an entry of the ownership map) is listed by hand.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import shared.db.tests

PACKAGE = Path(shared.db.tests.__file__).parents[1]


@dataclass(frozen=True)
class Mutation:
    """One guard taken away: `module` (a path below shared/db) then has `source`."""

    module: str
    line: int
    what: str
    source: str

    @property
    def name(self) -> str:
        """The place and what was there."""
        return f"{self.module}:{self.line} {self.what}"


# Modules whose every statement of these kinds is a guard.
_WHOLLY = (
    "tenancy/session_scope.py",
    "tenancy/flush_guard.py",
    "tenancy/statement_guard.py",
    "tenancy/guard.py",
    "tenancy/confined_sql.py",
)
# Modules of which only some are, by what the statement's text contains.
_PARTLY = {
    "bulk/create.py": (".violation(", "_prove", "check_rows(", "session.connection()"),
    "bulk/update.py": ("check_rows(", "RowNotFoundError("),
    "repositories.py": ("TenantScopeError(", "agreed_user(", "discard_changes(", "raise RowNotFoundError(self.model"),
}
# Calls that are made for their effect and guard nothing.
_NO_GUARDS = ("super().__init__", ".append(", ".extend(", ".add(", ".setdefault(", "to_visit.", "NotImplementedError")


def mutations() -> Iterator[Mutation]:
    """All of them."""
    for module in (*_WHOLLY, *_PARTLY):
        yield from _statements(module)
    for module, what, old, new in LISTED:
        text = (PACKAGE / module).read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{module} has {text.count(old)} times: {old}"
        yield Mutation(module, text[: text.index(old)].count("\n") + 1, what, text.replace(old, new))


def _statements(module: str) -> Iterator[Mutation]:
    text = (PACKAGE / module).read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    for function in ast.walk(ast.parse(text)):
        if not isinstance(function, ast.FunctionDef):
            continue
        for decorator in function.decorator_list:
            if "listens_for" in ast.unparse(decorator):
                mutated = _without(lines, decorator.lineno, decorator.end_lineno or 0, "")
                yield Mutation(module, decorator.lineno, f"the listener {function.name}()", mutated)
        for node in ast.walk(function):
            called = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
            if not (called or isinstance(node, ast.Raise)):
                continue
            assert isinstance(node, (ast.Expr, ast.Raise))
            said = ast.unparse(node)
            if any(word in said for word in _NO_GUARDS) or said == "raise":
                continue
            if module in _PARTLY and not any(word in said for word in _PARTLY[module]):
                continue
            indent = " " * node.col_offset
            mutated = _without(lines, node.lineno, node.end_lineno or 0, f"{indent}pass\n")
            short = said if len(said) <= 70 else said[:67] + "..."
            yield Mutation(module, node.lineno, f"{function.name}(): {short}", mutated)


def _without(lines: list[str], first: int, last: int, instead: str) -> str:
    return "".join([*lines[: first - 1], instead, *lines[last:]])


_TO_XML = r"(query|table|cursor|schema|database)_to_xml(schema|_and_xmlschema)?|"
# (module, what is taken away, the text, the text without it)
LISTED: list[tuple[str, str, str, str]] = [
    # The map
    (
        "tenancy/ownership.py",
        "a run's account",
        '            Reference("account_id", BybitAccount),\n            Ref',
        "            Ref",
    ),
    (
        "tenancy/ownership.py",
        "a run's strategy",
        '            Reference("strategy_id", Strategy, agrees=("account_id",)),\n',
        "",
    ),
    ("tenancy/ownership.py", "that strategy and run agree", ', agrees=("account_id",)', ""),
    ("tenancy/ownership.py", "an execution's account", ', references=(Reference("account_id", BybitAccount),)', ""),
    (
        "tenancy/ownership.py",
        "owned_by(): the parent's owner",
        "column.in_(owned_keys(ownership.parent, user_id))\n    )\n    return",
        "column.is_not(None)\n    )\n    return",
    ),
    # The session
    (
        "tenancy/session_scope.py",
        "merge_all() merges one by one",
        "[self.merge(instance, load=load, options=options) for instance in instances]",
        "super().merge_all(instances, load=load, options=options)",
    ),
    (
        "tenancy/session_scope.py",
        "connection_for(): require_tenant",
        "    if isinstance(session, TenantRequiredSession):",
        "    if False:",
    ),
    (
        "tenancy/session_scope.py",
        "require_tenant confines statements",
        "    state.statement = state.statement.options(session.no_users_rows)\n",
        "",
    ),
    (
        "tenancy/session_scope.py",
        "_confine() confines statements",
        "    state.statement = state.statement.options(session._own_rows_to_load if loading else session.own_rows)\n",
        "",
    ),
    (
        "tenancy/session_scope.py",
        "_confine(): relationship loads",
        "    state.statement = state.statement.options(session._own_rows_to_load if loading else session.own_rows)\n",
        "    if not loading:\n        state.statement = state.statement.options(session.own_rows)\n",
    ),
    (
        "tenancy/session_scope.py",
        "_confine(): Core tables of the caller",
        "session._own_rows_to_load if loading else session.own_rows",
        "session._own_rows_to_load",
    ),
    (
        "tenancy/session_scope.py",
        "deletes before a flush",
        "    for entity in (*session.new, *session.dirty, *session.deleted):\n",
        "    for entity in (*session.new, *session.dirty):\n",
    ),
    (
        "tenancy/session_scope.py",
        "changes before a flush",
        "    for entity in (*session.new, *session.dirty, *session.deleted):\n",
        "    for entity in (*session.new, *session.deleted):\n",
    ),
    (
        "tenancy/session_scope.py",
        "new rows before a flush",
        "    for entity in (*session.new, *session.dirty, *session.deleted):\n",
        "    for entity in (*session.dirty, *session.deleted):\n",
    ),
    (
        "tenancy/session_scope.py",
        "require_tenant: new rows",
        "for entity in (*session.new, *session.dirty, *session.deleted)):",
        "for entity in (*session.dirty, *session.deleted)):",
    ),
    (
        "tenancy/session_scope.py",
        "require_tenant: changes",
        "for entity in (*session.new, *session.dirty, *session.deleted)):",
        "for entity in (*session.new, *session.deleted)):",
    ),
    (
        "tenancy/session_scope.py",
        "require_tenant: deletes",
        "for entity in (*session.new, *session.dirty, *session.deleted)):",
        "for entity in (*session.new, *session.dirty)):",
    ),
    ("tenancy/session_scope.py", "the session's user in info", '        self.info["user_id"] = user_id\n', ""),
    # The flush
    (
        "tenancy/flush_guard.py",
        "changes of owner or parent",
        "        if _moves(inspect(entity)):",
        "        if False:",
    ),
    ("tenancy/flush_guard.py", "new rows", "        if ownership_of(model) is not None:", "        if False:"),
    (
        "tenancy/flush_guard.py",
        "what is stored of a changed row",
        "            guard.forget(type(entity), inspect(entity).identity)\n            row = written_values(session, entity) if complete else column_values(entity)",
        "            guard.forget(type(entity), inspect(entity).identity)\n            row = column_values(entity)",
    ),
    (
        "tenancy/flush_guard.py",
        "what is stored of a new row",
        "            row = written_values(session, entity) if complete else column_values(entity)\n            rows_of.setdefault(model",
        "            row = column_values(entity)\n            rows_of.setdefault(model",
    ),
    (
        "tenancy/flush_guard.py",
        "expressions: selects",
        "(SelectBase, TableClause, AliasedReturnsRows)",
        "(TableClause, AliasedReturnsRows)",
    ),
    (
        "tenancy/flush_guard.py",
        "expressions: tables",
        "(SelectBase, TableClause, AliasedReturnsRows)",
        "(SelectBase, AliasedReturnsRows)",
    ),
    (
        "tenancy/flush_guard.py",
        "expressions: aliases",
        "(SelectBase, TableClause, AliasedReturnsRows)",
        "(SelectBase, TableClause)",
    ),
    (
        "tenancy/flush_guard.py",
        "expressions: columns",
        "isinstance(element, ColumnClause) and element.table",
        "False and element.table",
    ),
    (
        "tenancy/flush_guard.py",
        "expressions: attributes",
        'value.__clause_element__() if hasattr(value, "__clause_element__") else value',
        "value",
    ),
    # Statements
    ("tenancy/statement_guard.py", "INSERT is checked", "    if isinstance(statement, Insert):", "    if False:"),
    ("tenancy/statement_guard.py", "UPDATE is checked", "    elif state.is_update:", "    elif False:"),
    (
        "tenancy/statement_guard.py",
        "UPDATE: values()",
        "    assigned = [*(statement._values or {})]",
        "    assigned: Any = []",
    ),
    (
        "tenancy/statement_guard.py",
        "UPDATE: ordered_values()",
        '    assigned += [column for column, _ in getattr(statement, "_ordered_values", None) or ()]\n',
        "",
    ),
    (
        "tenancy/statement_guard.py",
        "UPDATE: columns of a list",
        "        assigned += [name for row in parameters for name in row if name != key]\n",
        "",
    ),
    ("tenancy/statement_guard.py", "UPDATE: parameters", "        assigned += list(parameters or ())", "        pass"),
    (
        "tenancy/statement_guard.py",
        "UPDATE: its key",
        "fixed = {primary_key(model), *ownership.columns}",
        "fixed = ownership.columns",
    ),
    (
        "tenancy/statement_guard.py",
        "UPDATE: owner and parents",
        "fixed = {primary_key(model), *ownership.columns}",
        "fixed = {primary_key(model)}",
    ),
    (
        "tenancy/statement_guard.py",
        "upsert: DO UPDATE is checked",
        "    if upsert is not None and not isinstance(",
        "    if False and not isinstance(",
    ),
    (
        "tenancy/statement_guard.py",
        "upsert: a label is no column",
        "(isinstance(column, ColumnClause) and not column.is_literal)",
        "True",
    ),
    ("tenancy/statement_guard.py", "upsert: a literal is no column", " and not column.is_literal", ""),
    (
        "tenancy/statement_guard.py",
        "INSERT: bindparam() of a name",
        " and value.unique and value.callable is None",
        " and value.callable is None",
    ),
    (
        "tenancy/statement_guard.py",
        "INSERT: bindparam() of a function",
        " and value.unique and value.callable is None",
        " and value.unique",
    ),
    ("tenancy/statement_guard.py", "INSERT: several values()", "    for row in multiple:\n", "    for row in ():\n"),
    ("tenancy/statement_guard.py", "INSERT: a list of rows", "    for row in given:\n", "    for row in ():\n"),
    ("tenancy/statement_guard.py", "INSERT: values()", "        yield common\n", "        pass\n"),
    # Rows and users
    ("tenancy/guard.py", "a user id is text", "isinstance(user_id, str) and 0 <", "0 <"),
    ("tenancy/guard.py", "a user id is not empty", "0 < len(user_id) <=", "len(user_id) <="),
    ("tenancy/guard.py", "a user id is not over-long", "0 < len(user_id) <= ID_LENGTH", "0 < len(user_id)"),
    ("tenancy/guard.py", "a user id has no NUL", ' and "\\0" not in user_id', ""),
    ("tenancy/guard.py", "an owner that is not given", "(complete or owner is not None)", "owner is not None"),
    ("tenancy/guard.py", "proved means owned", "), key_column.in_(owned))", "))"),
    (
        "tenancy/guard.py",
        "what is linked to an object",
        "                found += [other for other in state.attrs[relation.key].history.added or () if other is not None]",
        "                pass",
    ),
    (
        "tenancy/guard.py",
        "a tool's rows are one user's",
        "OwnershipGuard(user_id or _owner(session, written))",
        "OwnershipGuard(user_id or written.user_id)",
    ),
    (
        "tenancy/guard.py",
        "what is not loaded is looked up",
        "            values.update(Session.connection(session).execute(stored).mappings().one())",
        "            pass",
    ),
    # Written SQL
    (
        "tenancy/confined_sql.py",
        "the session's confinement, not the caller's",
        "given[-1] if given",
        "given[0] if given",
    ),
    (
        "tenancy/confined_sql.py",
        "the user's own parameter",
        "                    found[name] = user.value",
        "                    found.setdefault(name, user.value)",
    ),
    (
        "tenancy/confined_sql.py",
        "the user of this execution",
        "                user = next(here for there, here in pairs if there is user)",
        "                pass",
    ),
    (
        "tenancy/confined_sql.py",
        "tables in FROM",
        "        if condition is None:\n            return text\n        name",
        "        if True:\n            return text\n        name",
    ),
    ("tenancy/confined_sql.py", "conditions in WHERE", "select.where(*conditions) if conditions else select", "select"),
    ("tenancy/confined_sql.py", "full joins", "            if not source.full:", "            if True:"),
    (
        "tenancy/confined_sql.py",
        "a subquery's conditions end with it",
        "            self._conditioned = enclosing",
        "            pass",
    ),
    (
        "tenancy/confined_sql.py",
        "UPDATE of own rows",
        "update_stmt if condition is None else update_stmt.where(condition)",
        "update_stmt",
    ),
    (
        "tenancy/confined_sql.py",
        "DELETE of own rows",
        "delete_stmt if condition is None else delete_stmt.where(condition)",
        "delete_stmt",
    ),
    (
        "tenancy/confined_sql.py",
        "children of own parents",
        "column.in_(select(parents.c[primary_key(ownership.parent)]).correlate(None))",
        "column.is_not(None)",
    ),
    (
        "tenancy/confined_sql.py",
        "parents are not correlated",
        "(select(parents.c[primary_key(ownership.parent)]).correlate(None))",
        "(select(parents.c[primary_key(ownership.parent)]))",
    ),
    ("tenancy/confined_sql.py", "Core tables", "    return named - mapped", "    return set()"),
    (
        "tenancy/confined_sql.py",
        "Core tables: every child",
        "ClauseElement.get_children(element)",
        "element.get_children()",
    ),
    ("tenancy/confined_sql.py", "operators with comments", r"(?!.*(--|/\*))", ""),
    ("tenancy/confined_sql.py", "operators of text", "[-+*/<>=~!@#%^&|?]+", ".+"),
    ("tenancy/confined_sql.py", "types of text", r'_TYPE_NAME = re.compile(r"\w+', r'_TYPE_NAME = re.compile(r".*|\w+'),
    ("tenancy/confined_sql.py", "query_to_xml() and its like", _TO_XML, ""),
    ("tenancy/confined_sql.py", "ts_stat()", "ts_stat|", ""),
    ("tenancy/confined_sql.py", "ts_rewrite()", "ts_rewrite|", ""),
    ("tenancy/confined_sql.py", "set_config()", "set_config|", ""),
    ("tenancy/confined_sql.py", "dblink()", r"dblink\w*|", ""),
    ("tenancy/confined_sql.py", "crosstab()", r"crosstab\w*|", ""),
    ("tenancy/confined_sql.py", "connectby()", "connectby|", ""),
    ("tenancy/confined_sql.py", "load_extension()", "load_extension|", ""),
    ("tenancy/confined_sql.py", "lo_import() and its like", r"lo_\w+|", ""),
    ("tenancy/confined_sql.py", "pg_read_file() and its like", r"|pg_read_\w+", ""),
    ("tenancy/confined_sql.py", "functions in capitals", "\n    re.IGNORECASE,", ""),
    # PostgreSQL's policies
    ("tenancy/row_security.py", "USING", "Policy(_own(model.__tablename__, entry), ", 'Policy("true", '),
    (
        "tenancy/row_security.py",
        "WITH CHECK: the owner",
        "    conditions = [_own(table, entry)]",
        '    conditions = ["true"]',
    ),
    (
        "tenancy/row_security.py",
        "WITH CHECK: the parents",
        "        conditions.append(_names_own(table, reference))\n",
        "",
    ),
    (
        "tenancy/row_security.py",
        "WITH CHECK: parents that agree",
        "            conditions.append(f\"EXISTS (SELECT 1 FROM {parent} p WHERE {' AND '.join(same)})\")",
        "            pass",
    ),
    (
        "tenancy/row_security.py",
        "row-level security is on",
        '        connection.execute(text(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY"))\n',
        "",
    ),
    (
        "tenancy/row_security.py",
        "the role ends with the transaction",
        "set_config('role', %(role)s, true)",
        "set_config('role', %(role)s, false)",
    ),
    (
        "tenancy/row_security.py",
        "the user ends with the transaction",
        "set_config('shared_db.user_id', %(user_id)s, true)",
        "set_config('shared_db.user_id', %(user_id)s, false)",
    ),
    ("tenancy/row_security.py", "the role is adopted", "SELECT set_config('role', %(role)s, true), ", "SELECT "),
    (
        "tenancy/row_security.py",
        "a refusal has its name",
        "    table = str(error).partition",
        "    return None\n    table = str(error).partition",
    ),
    (
        "tenancy/row_security.py",
        "half the policies are none",
        "set(expected_policies(connection)) <= _tables_with_security(connection) & set(_live_policies(connection))",
        "bool(_tables_with_security(connection))",
    ),
    # The doors
    ("database.py", "get_session() checks the user", "        user_id = checked_user_id(user_id)\n", ""),
    (
        "database.py",
        "None opens no plain session",
        "        if user_id is UNSET:\n            return factory",
        "        if user_id is UNSET or user_id is None:\n            return factory",
    ),
    ("database.py", "require_tenant", "TenantRequiredSession if self.settings.require_tenant else Session", "Session"),
    ("database.py", "engines are confined", "    confined_sql.confine(engine)\n", ""),
    (
        "database.py",
        "policies are adopted",
        "(self.settings.tenant_role, user_id) if self._policies_installed else None",
        "None",
    ),
    (
        "bulk/create.py",
        "bulk_create: the session's guard",
        "        guard = session.guard\n    table",
        "        pass\n    table",
    ),
    (
        "bulk/create.py",
        "bulk_create: owner and parents",
        "named = {ownership.column}.union(*({reference.column, *reference.agrees} for reference in ownership.parents))",
        "named = {ownership.column}",
    ),
    (
        "bulk/create.py",
        "bulk_create: COPY as the tenant",
        "as_tenant = isinstance(self._session, UserSession) and self._session.confined_by_server",
        "as_tenant = False",
    ),
    ("bulk/update.py", "bulk_update: the session's guard", "        guard = session.guard\n", "        pass\n"),
    (
        "bulk/update.py",
        "bulk_update: own rows",
        "statement if criterion is None else statement.where(criterion)",
        "statement",
    ),
    (
        "bulk/streams.py",
        "ranges: own rows",
        "_undecoded(columns, dialect_of(session))).where(*rows.confined)",
        "_undecoded(columns, dialect_of(session)))",
    ),
    (
        "bulk/streams.py",
        "ranges of objects: own rows",
        "where(*(() if isinstance(session, UserSession) else rows.confined))",
        "where()",
    ),
    (
        "bulk/streams.py",
        "require_tenant: ranges",
        "    return connection_for(session, statement)",
        "    return Session.connection(session)",
    ),
    (
        "bulk/summaries.py",
        "totals: own rows",
        "where(*executions.criteria(), *executions.confined)",
        "where(*executions.criteria())",
    ),
    ("bulk/reading.py", "ranges: the user", "None if user is None else owned_by(PrivateExecution, user)", "None"),
    # Repositories
    (
        "repositories.py",
        "the session's user counts",
        'user = agreed_user(self.session.info.get("user_id", UNSET), self._user_id, user_id)',
        "user = agreed_user(self._user_id, user_id)",
    ),
    (
        "repositories.py",
        "the constructor's user counts",
        'user = agreed_user(self.session.info.get("user_id", UNSET), self._user_id, user_id)',
        'user = agreed_user(self.session.info.get("user_id", UNSET), user_id)',
    ),
    (
        "repositories.py",
        "the call's user counts",
        'user = agreed_user(self.session.info.get("user_id", UNSET), self._user_id, user_id)',
        'user = agreed_user(self.session.info.get("user_id", UNSET), self._user_id)',
    ),
    (
        "repositories.py",
        "reads: own rows",
        "return statement if criterion is None else statement.where(criterion)",
        "return statement",
    ),
    (
        "repositories.py",
        "writes: own rows",
        "        return acting_for(self.session, user, operation, entity)",
        "        return nullcontext()",
    ),
    (
        "repositories.py",
        "bulk writes: own rows",
        "return self.session.guard if isinstance(self.session, UserSession) else OwnershipGuard(user)",
        "return None",
    ),
    (
        "repositories.py",
        "create: nothing refused stays",
        "with discarding_what_is_refused(self.session, entity), self._acting_for(user",
        "with self._acting_for(user",
    ),
    (
        "repositories.py",
        "update: nothing refused stays",
        "        with discarding_what_is_refused(self.session, entity):\n            owner",
        "        with nullcontext():\n            owner",
    ),
    (
        "repositories.py",
        "update and delete: own rows",
        "foreign = user not in (None, owner) and ownership_of(self.model) is not None",
        "foreign = False",
    ),
    (
        "repositories.py",
        "the last execution: own rows",
        "self.session.scalar(self._confined(newest, user_id))",
        "self.session.scalar(newest)",
    ),
    (
        "repositories.py",
        "an execution's existence: own rows",
        "self.session.scalar(self._confined(found, user_id).limit(1))",
        "self.session.scalar(found.limit(1))",
    ),
]
