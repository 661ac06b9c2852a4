"""The questions a bot asks: one small class a table, on one base.

A repository method builds a statement, confines it to its user, and runs it. Repositories flush and never commit:
the session's context does. All times are aware UTC; bounds are inclusive; a limit is one that the caller gave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from functools import cache, lru_cache
from typing import Any, Generic, Self, TypeVar

from sqlalchemy import ColumnElement, Select, String, bindparam, func, inspect, select
from sqlalchemy.orm import Session

from shared.db.asking import Asking
from shared.db.bulk import BATCH_SIZE, BulkResult, OnBadRow, OnConflict, bulk_create, bulk_update
from shared.db.errors import InvalidValueError, RowNotFoundError, RunEndedError, TenantScopeError
from shared.db.merging import merge_changes
from shared.db.models import (
    AccountStatus,
    ApiCredential,
    AuditLog,
    Base,
    BybitAccount,
    PrivateExecution,
    PublicTrade,
    Run,
    RunStatus,
    Strategy,
    User,
    UserStatus,
)
from shared.db.natural_keys import ByNaturalKey
from shared.db.ranges.bounds import RowRange, source_of
from shared.db.ranges.reading import ExecutionReading, StreamReading, TradeReading
from shared.db.tables import holds_users_rows, ownership_of, primary_key
from shared.db.tenancy.confined_sql import ALONE, LASTING
from shared.db.tenancy.entity_values import key_of
from shared.db.tenancy.guard import OwnershipGuard
from shared.db.tenancy.ownership import owned_by, owner_of, readable_by
from shared.db.tenancy.plain_writes import acting_for, discard_changes, discarding_what_is_refused
from shared.db.tenancy.session_scope import UserSession, user_of
from shared.db.tenancy.user_ids import UNSET, UserId, agreed_user

T = TypeVar("T", bound=Base)
Question = Callable[[Any], Select[Any]]


@lru_cache
def _require_model(kind: type[Any], named: type[Any] | None) -> None:
    """Refuse a repository without a model, with another one than its class is of, or one that declared nothing."""
    own = getattr(kind, "model", None)
    if named is None:
        raise InvalidValueError(f"name the class of the rows: {kind.__name__}(session, Order)")
    if own is not None and not issubclass(named, own):
        raise InvalidValueError(f"{kind.__name__} is of {own.__name__}, not of {named.__name__}")
    ownership_of(named)


class BaseRepository(Asking, Generic[T]):
    """Create, read, update and delete for one model, confined to one user where its rows belong to users.

    The user comes from the session, from `user_id` here, or from the `user_id` of a call; all that are given
    must agree. For a model whose rows belong to users, a call without any raises `TenantScopeError` and runs no
    query.
    """

    model: type[T]

    def __init__(self, session: Session, model: type[T] | UserId = UNSET, user_id: UserId = UNSET) -> None:
        """Of `session`'s rows of `model`, which a subclass names for itself: `RunRepository(session, user_id)`."""
        if isinstance(model, type):
            self.model, model = model, UNSET
        kind: Any = type(self)
        _require_model(kind, getattr(self, "model", None))
        super().__init__(session)
        self._user_id = agreed_user(agreed_user(user_of(session), model), user_id)
        self._every_user = False

    @classmethod
    def across_users(cls, session: Session, model: type[T] | None = None) -> Self:
        """A repository that sees every user's rows: for tools. Refused in a user's session."""
        if user_of(session) is not UNSET:
            raise TenantScopeError("a user's session never looks across users; open a plain one: db.get_session()")
        repository = cls(session) if model is None else cls(session, model)
        repository._every_user = True
        return repository

    def get_by_id(self, id: Any, *, user_id: UserId = UNSET) -> T | None:
        """The row with this primary key, or None if there is none or it is neither the user's nor public."""
        return self._first(*self._prepared(_by_id, user_id, id=id))

    def get_all(self, limit: int | None = None, offset: int = 0, *, user_id: UserId = UNSET) -> list[T]:
        """All rows in order of their primary key: `limit` of them (None: all) after the first `offset`."""
        return self._all(_page(self._mine(user_id).order_by(self._key), limit, offset))

    def create(self, entity: T, *, user_id: UserId = UNSET) -> T:
        """Insert `entity` and return it, defaults filled in.

        Raises `TenantViolation` if it is not the user's own or names a parent that is not.
        """
        user = self._resolve(user_id)
        with discarding_what_is_refused(self.session, entity), self._acting_for(user, "create", entity):
            self.session.add(entity)
            self.session.flush()
        return entity

    def update(self, entity: T, *, user_id: UserId = UNSET) -> T:
        """Write what was changed on `entity` to the existing row with its primary key; the session's own object of it.

        Of one that was loaded, in whichever session, that is what was set since, edits of JSON documents included; the
        rest may be old. Of one made by hand, `Run(run_id=..., host=...)`, it is all that was set, as with
        `session.merge()`. The same goes for what is linked to it. Raises `RowNotFoundError` if the user has no such
        row, `TenantViolation` if it is another user's public one, or would be given or hung to what is another user's.
        """
        user = self._resolve(user_id)
        with discarding_what_is_refused(self.session, entity):
            owner = self._require_existing(entity, user, "update")
            with self._acting_for(owner, "update", entity):
                written = _merged(self.session, entity)
                self.session.flush()
        return written

    def bulk_update(self, mappings: Iterable[Mapping[str, Any]], *, user_id: UserId = UNSET) -> int:
        """Write the columns that each mapping names to the row with its primary key; the number of rows.

        Raises `RowNotFoundError` if the user has no such row, `TenantViolation` if the change would give it to
        another user or hang it under another user's parent; then nothing is written.
        """
        return bulk_update(self.session, self.model, mappings, guard=self._guard(user_id))

    def delete(self, entity: T, *, user_id: UserId = UNSET) -> None:
        """Delete the row and, by the database's cascade, everything below it.

        Raises `RowNotFoundError` if the user has no such row, `TenantViolation` if it is another user's public one.
        """
        self._require_existing(entity, self._resolve(user_id), "delete")
        self.session.delete(_locked(self.session, self.model, key_of(entity)))
        self.session.flush()

    @property
    def _key(self) -> Any:
        return getattr(self.model, primary_key(self.model))

    def _resolve(self, user_id: UserId) -> str | None:
        """The user to confine to; None where none is needed."""
        user = agreed_user(self._user_id, user_id)
        if user is UNSET and not self._every_user and holds_users_rows(self.model):
            raise TenantScopeError(
                f"{type(self).__name__} needs to know whose data is meant: open db.get_session(user_id=...), or pass "
                "user_id= to the repository or to this call"
            )
        return None if user is UNSET else user

    def _acting_for(self, user: str | None, operation: str, entity: T) -> AbstractContextManager[None]:
        """What checks a write; a user's session does so itself, and users may be made by anybody."""
        if isinstance(self.session, UserSession) or ownership_of(self.model) is None:
            return nullcontext()
        if user is None and not self._every_user:
            return nullcontext()
        return acting_for(self.session, user, operation, entity)

    def _guard(self, user_id: UserId) -> OwnershipGuard | None:
        """What checks the rows of a bulk write; None for tools, and for a table shared by all."""
        user = self._resolve(user_id)
        if user is None or ownership_of(self.model) is None:
            return None
        return self.session.guard if isinstance(self.session, UserSession) else OwnershipGuard(user)

    def _mine(self, user_id: UserId = UNSET) -> Select[tuple[T]]:
        """SELECT of the rows that the user may read."""
        mine: Select[tuple[T]] = self._confined(select(self.model), user_id)
        return mine

    def _confined(self, statement: Any, user_id: UserId) -> Any:
        criterion = self._criterion(self._resolve(user_id))
        return statement if criterion is None else statement.where(criterion)

    def _criterion(self, user: str | None) -> ColumnElement[bool] | None:
        """What a statement here must add; a user's session adds it by itself."""
        return None if user is None or isinstance(self.session, UserSession) else readable_by(self.model, user)

    def _prepared(self, question: Question, user_id: UserId, **parameters: Any) -> tuple[Any, dict[str, Any]]:
        """The statement of a question that is asked all the time, put together once, and its parameters now."""
        user = self._resolve(user_id)
        confined = user is not None and not isinstance(self.session, UserSession)
        return _prepare(self.model, question, confined), parameters | ({_OWNER: user} if confined else {})

    def _first(self, statement: Select[tuple[T]], parameters: dict[str, Any] | None = None) -> T | None:
        found: T | None = self._scalars(statement, parameters).first()
        return found

    def _all(self, statement: Select[tuple[T]], parameters: dict[str, Any] | None = None) -> list[T]:
        return list(self._scalars(statement, parameters))

    def _scalars(self, statement: Select[tuple[T]], parameters: dict[str, Any] | None) -> Any:
        return self.session.scalars(statement, parameters, execution_options={ALONE: True})

    def _require_existing(self, entity: T, user: str | None, operation: str) -> str | None:
        """Whose the row is that `entity` is to change; None if it is shared by all."""
        key = key_of(entity)
        found = Session.connection(self.session).execute(owner_of(self.model, key)).first()
        owner: str | None = None if found is None else found[0]
        if found is None or (user not in (None, owner) and ownership_of(self.model) is not None):
            _refuse_public(self.session, operation, self.model, key, user)
            raise RowNotFoundError(self.model.__name__, key)
        return owner


class UserRepository(BaseRepository[User], ByNaturalKey[User]):
    """The users themselves."""

    model = User
    natural_key = ("username",)

    def get_by_username(self, username: str) -> User | None:
        """The user with this login name."""
        return self._first(self._mine().where(User.username == username))

    def get_by_email(self, email: str) -> User | None:
        """The user with this address."""
        return self._first(self._mine().where(User.email == email))

    def get_active_users(self) -> list[User]:
        """Users with status "active", by username."""
        return self._all(self._mine().where(User.status == UserStatus.ACTIVE).order_by(User.username))


class BybitAccountRepository(BaseRepository[BybitAccount], ByNaturalKey[BybitAccount]):
    """The Bybit accounts of a user."""

    model = BybitAccount
    natural_key = ("user_id", "account_name")

    def get_by_user_id(self, user_id: str) -> list[BybitAccount]:
        """All accounts of a user, by name."""
        return self._all(self._mine(user_id).order_by(BybitAccount.account_name))

    def get_enabled_accounts(self, user_id: UserId = UNSET) -> list[BybitAccount]:
        """The accounts of a user with status "enabled", by name."""
        enabled = self._mine(user_id).where(BybitAccount.status == AccountStatus.ENABLED)
        return self._all(enabled.order_by(BybitAccount.account_name))


class ApiCredentialRepository(BaseRepository[ApiCredential]):
    """The API keys of a user's accounts."""

    model = ApiCredential

    def get_by_account_id(self, account_id: str, *, user_id: UserId = UNSET) -> list[ApiCredential]:
        """All credentials of an account, oldest first."""
        return self._all(self._of_account(account_id, user_id))

    def get_active_credential(self, account_id: str, *, user_id: UserId = UNSET) -> ApiCredential | None:
        """The active credential of an account, None if it has none; the schema allows no second one."""
        return self._first(self._of_account(account_id, user_id).where(ApiCredential.is_active))

    def rotate(self, account_id: str, new_key_id: str, new_secret: str, *, user_id: UserId = UNSET) -> ApiCredential:
        """Store a new active credential and end the one before, both in the session's transaction.

        `rotated_at` of the old one tells when. Of two processes that rotate at once the later one's stays active.
        Raises `TenantViolation` if the account is not the user's.
        """
        new = ApiCredential(account_id=account_id, api_key_id=new_key_id, api_secret=new_secret)
        del new_secret  # from here on nothing shows it, not even a traceback with its frames' variables
        _take_turns(self.session, BybitAccount, account_id, self._resolve(user_id))
        active = self._of_account(account_id, user_id).where(ApiCredential.is_active)
        for old in self._all(active.execution_options(populate_existing=True)):
            old.is_active = False
            old.rotated_at = datetime.now(UTC)
        # Before the new one comes: of two active ones the schema would refuse the second.
        self.session.flush()
        return self.create(new, user_id=user_id)

    def _of_account(self, account_id: str, user_id: UserId) -> Select[tuple[ApiCredential]]:
        of_account = self._mine(user_id).where(ApiCredential.account_id == account_id)
        return of_account.order_by(ApiCredential.created_at, ApiCredential.credential_id)


class StrategyRepository(BaseRepository[Strategy], ByNaturalKey[Strategy]):
    """The strategies of a user's accounts."""

    model = Strategy
    natural_key = ("account_id", "symbol")

    def get_by_account_id(self, account_id: str, *, user_id: UserId = UNSET) -> list[Strategy]:
        """All strategies of an account, by symbol."""
        return self._all(self._of_account(account_id, user_id))

    def get_enabled_strategies(self, account_id: str, *, user_id: UserId = UNSET) -> list[Strategy]:
        """The enabled strategies of an account, by symbol."""
        return self._all(self._of_account(account_id, user_id).where(Strategy.is_enabled))

    def get_by_symbol(self, account_id: str, symbol: str, *, user_id: UserId = UNSET) -> Strategy | None:
        """The strategy of an account on one symbol."""
        return self._first(self._of_account(account_id, user_id).where(Strategy.symbol == symbol))

    def _of_account(self, account_id: str, user_id: UserId) -> Select[tuple[Strategy]]:
        return self._mine(user_id).where(Strategy.account_id == account_id).order_by(Strategy.symbol)


class RunRepository(BaseRepository[Run]):
    """The runs of a user, newest first."""

    model = Run

    def get_by_user_id(
        self, user_id: str, limit: int | None = None, offset: int = 0, *, statuses: Iterable[str] | None = None
    ) -> list[Run]:
        """The runs of a user, newest first: `limit` of them (None: all) after the first `offset`.

        Of some statuses ("running", "completed", "failed") if given.
        """
        statement, parameters = self._prepared(_newest, user_id)
        return self._all(_page(_of_statuses(statement, statuses), limit, offset), parameters)

    def get_running(self, user_id: UserId = UNSET) -> list[Run]:
        """The runs of a user that are running now, newest first."""
        return self._all(*self._prepared(_running, user_id))

    def get_by_account_id(
        self, account_id: str, *, statuses: Iterable[str] | None = None, user_id: UserId = UNSET
    ) -> list[Run]:
        """The runs on an account, of some statuses if given, newest first."""
        return self._all(_of_statuses(self._newest(user_id).where(Run.account_id == account_id), statuses))

    def get_by_run_type(
        self, run_type: str, *, statuses: Iterable[str] | None = None, user_id: UserId = UNSET
    ) -> list[Run]:
        """The runs of one type ("live", "backtest", "shadow", "recording"), of some statuses if given, newest first."""
        return self._all(_of_statuses(self._newest(user_id).where(Run.run_type == run_type), statuses))

    def get_latest_by_type(
        self,
        run_type: str,
        *,
        strategy_id: str | None = None,
        statuses: Iterable[str] | None = None,
        user_id: UserId = UNSET,
    ) -> Run | None:
        """The newest run of one type, of one strategy and of some statuses ("running", "completed") if given."""
        latest = _of_statuses(self._newest(user_id).where(Run.run_type == run_type), statuses)
        if strategy_id is not None:
            latest = latest.where(Run.strategy_id == strategy_id)
        return self._first(latest.limit(1))

    def get_active_at(
        self,
        ts: datetime,
        *,
        strategy_id: str | None = None,
        run_types: Iterable[str] | None = None,
        user_id: UserId = UNSET,
    ) -> list[Run]:
        """The runs that were active at `ts`, first and last instant included, newest first.

        A run without an end is active if it is running. `strategy_id` and `run_types` narrow it down.
        """
        unended = Run.end_ts.is_(None) & (Run.status == RunStatus.RUNNING)
        ts = Run.__table__.c.start_ts.type.instant(ts)  # type: ignore[attr-defined] # the column's own check
        active = self._newest(user_id).where(Run.start_ts <= ts, unended | (Run.end_ts >= ts))
        if strategy_id is not None:
            active = active.where(Run.strategy_id == strategy_id)
        return self._all(active if run_types is None else active.where(_one_of(Run.run_type, run_types)))

    def start(self, run: Run, *, user_id: UserId = UNSET) -> Run:
        """Insert `run` as running, and close what an earlier process left running of its strategy and type.

        Of two processes that start the same at once the later one's run goes on, and the other's next `heartbeat` or
        `finish` is told. Raises `TenantViolation` if its account or strategy is not the user's, or the strategy of
        another account.
        """
        # The schema takes no second one that is running, and whether this one may be is certain only when it is
        # stored; so is the id of a strategy that came as an object.
        run.status = RunStatus.FAILED.value
        self.create(run, user_id=user_id)
        _take_turns(self.session, Strategy, run.strategy_id, self._resolve(user_id))
        self.close_orphans(run.strategy_id, run.run_type, user_id=user_id)
        run.status = RunStatus.RUNNING.value
        self.session.flush()
        return run

    def finish(self, run_id: str, *, user_id: UserId = UNSET) -> Run:
        """End a run as completed, now; again changes nothing.

        Raises `RowNotFoundError` if the user has no such run, `RunEndedError` if it ended as failed.
        """
        return self._end(run_id, RunStatus.COMPLETED, user_id)

    def fail(self, run_id: str, *, user_id: UserId = UNSET) -> Run:
        """End a run as failed, now; again changes nothing.

        Raises `RowNotFoundError` if the user has no such run, `RunEndedError` if it ended as completed.
        """
        return self._end(run_id, RunStatus.FAILED, user_id)

    def heartbeat(self, run_id: str, *, host: str | None = None, user_id: UserId = UNSET) -> Run:
        """Note that a running run is alive, now, and on which machine if `host` is given.

        Raises `RowNotFoundError` if the user has no such run, `RunEndedError` if it has ended: a bot that is told
        so was taken for dead by a later one, and must stop.
        """
        run = self._current(run_id, user_id)
        if run.status != RunStatus.RUNNING:
            raise RunEndedError(run_id, run.status)
        run.heartbeat_ts = datetime.now(UTC)
        if host is not None:
            run.host = host
        self.session.flush()
        return run

    def close_orphans(self, strategy_id: str, run_type: str, *, user_id: UserId = UNSET) -> int:
        """End as failed what still counts as running of one strategy and type; the number of runs closed.

        Their end is the time of their last execution or heartbeat, whichever is later, or their start if they
        have neither: that is when they were last known to be alive.
        """
        same = (Run.strategy_id == strategy_id, Run.run_type == run_type)
        orphans = self._all(self._to_end(user_id).where(Run.status == RunStatus.RUNNING, *same).order_by(Run.run_id))
        for run in orphans:
            last = self.session.scalar(
                select(func.max(PrivateExecution.exchange_ts)).where(PrivateExecution.run_id == run.run_id)
            )
            run.status = RunStatus.FAILED.value
            run.end_ts = max(seen for seen in (last, run.heartbeat_ts, run.start_ts) if seen is not None)
        self.session.flush()
        return len(orphans)

    def _current(self, run_id: str, user_id: UserId) -> Run:
        run = self._first(self._to_end(user_id).where(Run.run_id == run_id))
        if run is None:
            raise RowNotFoundError("Run", run_id)
        return run

    def _to_end(self, user_id: UserId) -> Select[tuple[Run]]:
        """SELECT of the user's runs as they are now, which nobody else changes until the transaction ends.

        Another process may have ended one since this session read it, or be about to.
        """
        return self._mine(user_id).with_for_update(key_share=True).execution_options(populate_existing=True)

    def _newest(self, user_id: UserId) -> Select[tuple[Run]]:
        return _newest(self._mine(user_id))

    def _end(self, run_id: str, status: RunStatus, user_id: UserId) -> Run:
        run = self._current(run_id, user_id)
        if run.status == status:
            return run
        if run.status != RunStatus.RUNNING:
            raise RunEndedError(run_id, run.status)
        run.status = status.value
        run.end_ts = datetime.now(UTC)
        self.session.flush()
        return run


class AuditLogRepository(BaseRepository[AuditLog]):
    """What was done to a user's data, newest first. Times are bounds, both included; entries are never written here."""

    model = AuditLog

    def get_by_user_id(
        self, user_id: str, start: datetime | None = None, end: datetime | None = None, *, limit: int | None = None
    ) -> list[AuditLog]:
        """The entries about a user's data."""
        return self._all(_page(self._between(start, end, user_id), limit))

    def get_by_resource(
        self,
        entity: str,
        entity_id: Any,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        limit: int | None = None,
        user_id: UserId = UNSET,
    ) -> list[AuditLog]:
        """The entries about one row: `entity` is its model's name ("Run"), `entity_id` its key."""
        about = (AuditLog.entity == entity, AuditLog.entity_id == str(entity_id))
        return self._all(_page(self._between(start, end, user_id).where(*about), limit))

    def get_by_action(
        self,
        action: str,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        limit: int | None = None,
        user_id: UserId = UNSET,
    ) -> list[AuditLog]:
        """The entries of one action ("create", "update", "delete")."""
        return self._all(_page(self._between(start, end, user_id).where(AuditLog.action == action), limit))

    def _between(self, start: datetime | None, end: datetime | None, user_id: UserId) -> Select[tuple[AuditLog]]:
        entries = self._mine(user_id).order_by(AuditLog.created_at.desc(), AuditLog.id.desc())
        if start is not None:
            entries = entries.where(AuditLog.created_at >= start)
        return entries if end is None else entries.where(AuditLog.created_at <= end)


class Repository(BaseRepository[T], StreamReading[T]):
    """The rows of any declared model, without a class of its own: `Repository(session, Order)`.

    The five verbs, many rows at once, and for a model with a `__stream__` ranges of them, frames, coverage and gaps.
    """

    def bulk_create(
        self,
        rows: Iterable[Any],
        *,
        on_conflict: OnConflict = "skip",
        errors: OnBadRow = "raise",
        batch_size: int = BATCH_SIZE,
        user_id: UserId = UNSET,
    ) -> BulkResult:
        """Insert rows by the million: `shared.db.bulk.bulk_create` says what is taken, refused and counted.

        A row is the same as a stored one if their unique key is. Part of the caller's transaction. Raises
        `TenantViolation`, and writes nothing, if any row is not the user's own or names a parent that is not.
        """
        return bulk_create(
            self.session,
            self.model,
            rows,
            on_conflict=on_conflict,
            errors=errors,
            batch_size=batch_size,
            guard=self._guard(user_id),
        )

    def _some(self, statement: Select[tuple[T]], limit: int | None, offset: int = 0) -> list[T]:
        """`limit` rows (None: all) after the first `offset`."""
        return self._all(_page(statement, limit, offset))

    @staticmethod
    def _bounds(time: Any, start: datetime | None, end: datetime | None) -> list[ColumnElement[bool]]:
        """That a time lies from `start` to `end`, both included; None leaves a side open."""
        return [*(() if start is None else (time >= start,)), *(() if end is None else (time <= end,))]


class PublicTradeRepository(TradeReading, Repository[PublicTrade]):
    """Trades on the exchange, shared by all users."""

    model = PublicTrade

    def get_by_symbol_range(
        self, symbol: str, start: datetime | None = None, end: datetime | None = None, *, limit: int | None = None
    ) -> list[PublicTrade]:
        """The trades of a symbol from `start` to `end`, in order of time and trade id; None leaves a side open."""
        return self._all(_page(_within(self._mine(), source_of(PublicTrade).range(symbol, start, end)), limit))

    def get_last_trade_ts(self, symbol: str, before: datetime | None = None) -> datetime | None:
        """The time of the newest trade of a symbol, of those strictly before `before` if given; None without any."""
        newest = select(func.max(PublicTrade.exchange_ts)).where(PublicTrade.symbol == symbol)
        return self.session.scalar(newest if before is None else newest.where(PublicTrade.exchange_ts < before))

    def exists_by_trade_id(self, trade_id: str, symbol: str | None = None) -> bool:
        """Whether a trade with this id is stored, of `symbol` if given.

        Bybit's spot archives number each day from 1: with them the id alone says little. Without a symbol the
        whole table is searched.
        """
        found = select(PublicTrade.id).where(PublicTrade.trade_id == trade_id)
        if symbol is not None:
            found = found.where(PublicTrade.symbol == symbol)
        return self.session.scalar(found.limit(1)) is not None


class PrivateExecutionRepository(ExecutionReading, Repository[PrivateExecution]):
    """The fills recorded under a user's runs."""

    model = PrivateExecution

    def get_by_run_range(
        self,
        run_id: str,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        limit: int | None = None,
        user_id: UserId = UNSET,
    ) -> list[PrivateExecution]:
        """The executions of a run from `start` to `end`, in order of time and execution id; None leaves a side open."""
        in_range = source_of(PrivateExecution).range(run_id, start, end)
        return self._all(_page(_within(self._mine(user_id), in_range), limit))

    def get_last_execution_ts(
        self,
        *,
        run_id: str | None = None,
        account_id: str | None = None,
        before: datetime | None = None,
        user_id: UserId = UNSET,
    ) -> datetime | None:
        """The time of the newest execution of a run, of an account or of a run on it; None if there is none.

        Of those strictly before `before` if given. Raises `InvalidValueError` without a run and an account.
        """
        newest = self._confined(select(func.max(PrivateExecution.exchange_ts)), user_id)
        if run_id is None and account_id is None:
            raise InvalidValueError("name a run (run_id=) or an account (account_id=) whose last execution is meant")
        if run_id is not None:
            newest = newest.where(PrivateExecution.run_id == run_id)
        if account_id is not None:
            newest = newest.where(PrivateExecution.account_id == account_id)
        if before is not None:
            newest = newest.where(PrivateExecution.exchange_ts < before)
        last: datetime | None = self.session.scalar(newest)
        return last

    def exists_by_exec_id(self, exec_id: str, run_id: str | None = None, *, user_id: UserId = UNSET) -> bool:
        """Whether an execution with this id is stored under one of the user's runs, under `run_id` if given."""
        found = select(PrivateExecution.id).where(PrivateExecution.exec_id == exec_id)
        if run_id is not None:
            found = found.where(PrivateExecution.run_id == run_id)
        return self.session.scalar(self._confined(found, user_id).limit(1)) is not None


def _merged(session: Session, entity: T) -> T:
    """The session's own object, with what was changed on `entity`."""
    if isinstance(session, UserSession):
        session.check_merged(entity)
    merged = merge_changes(session, entity)
    for given, own in merged.items():
        if own is not given.obj():
            # What it was linked to must not think that it comes along.
            discard_changes(session, given.obj())
    written: T = merged[inspect(entity)]
    return written


def _refuse_public(session: Session, operation: str, model: type[Base], key: Any, user: str | None) -> None:
    """`TenantViolation` if the row is there for the user to be read."""
    if user is not None:
        OwnershipGuard(user).refuse_public(session, operation, model, key)


def _take_turns(session: Session, parent: type[Base], key: Any, user: str | None) -> None:
    """Wait until no other transaction is past here with this row of the user's; SQLite has one writer anyway.

    What is read afterwards is what the others left, and stays so until the transaction ends.
    """
    column = getattr(parent, primary_key(parent))
    turn = select(column).where(column == key).with_for_update(key_share=True)
    mine = None if user is None or isinstance(session, UserSession) else owned_by(parent, user)
    session.execute(turn if mine is None else turn.where(mine))


def _locked(session: Session, model: type[T], key: Any) -> T:
    """The row as it is now, which nobody else changes any more; `RowNotFoundError` if another process was first."""
    found = session.get(model, key, with_for_update=True)
    if found is None:
        raise RowNotFoundError(model.__name__, key)
    return found


_OWNER = "shared_db_owner"


@cache
def _prepare(model: type[Any], question: Question, confined: bool) -> Select[Any]:
    # Half of a short question's time goes into putting its statement together.
    criterion = readable_by(model, bindparam(_OWNER, type_=String())) if confined else None
    mine = select(model) if criterion is None else select(model).where(criterion)
    return question(mine).execution_options(**{LASTING: True})


def _by_id(mine: Select[tuple[T]]) -> Select[tuple[T]]:
    model = mine.column_descriptions[0]["entity"]
    return mine.where(getattr(model, primary_key(model)) == bindparam("id"))


def _newest(mine: Select[tuple[Run]]) -> Select[tuple[Run]]:
    return mine.order_by(Run.start_ts.desc(), Run.run_id.desc())


def _running(mine: Select[tuple[Run]]) -> Select[tuple[Run]]:
    return _newest(mine).where(Run.status == RunStatus.RUNNING)


def _of_statuses(statement: Select[tuple[Run]], statuses: Iterable[str] | None) -> Select[tuple[Run]]:
    return statement if statuses is None else statement.where(_one_of(Run.status, statuses))


def _one_of(column: Any, given: Iterable[str]) -> ColumnElement[bool]:
    """That a column has one of the given words; `InvalidValueError` for one alone, whose letters would be taken."""
    if isinstance(given, str):
        raise InvalidValueError("pass a list of words, not one alone", str(column))
    one_of: ColumnElement[bool] = column.in_(list(given))
    return one_of


def _within(mine: Select[tuple[T]], rows: RowRange) -> Select[tuple[T]]:
    return mine.where(*rows.criteria()).order_by(*rows.order())


def _page(statement: Select[tuple[T]], limit: int | None, offset: int = 0) -> Select[tuple[T]]:
    """`limit` rows (None: all) after the first `offset`."""
    for name, number in (("limit", limit), ("offset", offset)):
        # SQLite would take -1 for "no limit", PostgreSQL refuses it.
        if number is not None and number < 0:
            raise InvalidValueError(f"{name} must be 0 or more, not {number}")
    return statement.limit(limit).offset(offset)
