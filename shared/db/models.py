"""What a row is: the declarative base, the naming convention and the seven tables of the specification.

Nothing here knows a dialect. Every default is given twice, in Python for the ORM and in the schema for psql and
COPY. Every foreign key cascades in the database, and `passive_deletes` keeps the ORM from loading the children
first: deleting a user must not read 50,000 executions.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, ClassVar, NamedTuple

from sqlalchemy import (
    ForeignKeyConstraint,
    Index,
    MetaData,
    UniqueConstraint,
    text,
    true,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

import shared.db.mapped_values  # noqa: F401 # importing it is what it takes: mapped classes are watched from then on
from shared.db.column_types import (
    BoundedString,
    CheckedBoolean,
    CheckedInteger,
    Json,
    Money,
    UTCDateTime,
    Vocabulary,
    one_of,
)
from shared.db.columns import ID_LENGTH, created_column, id_column, parent_column, updated_column, word_column
from shared.db.encryption import SecretText
from shared.db.sealing import hold_secrets
from shared.db.tables import SHARED_BY_ALL, Ownership, Reference, Stream, cursor_text, declare

# The specification's 20 is a minimum: options have up to 25 characters, such as BTC-25JUN27-106000-C-USDT.
SYMBOL_LENGTH = 32


class UserStatus(StrEnum):
    """Values of users.status."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    DELETED = "deleted"


class Environment(StrEnum):
    """Values of bybit_accounts.environment."""

    MAINNET = "mainnet"
    TESTNET = "testnet"


class AccountStatus(StrEnum):
    """Values of bybit_accounts.status."""

    ENABLED = "enabled"
    DISABLED = "disabled"
    ERROR = "error"


class RunType(StrEnum):
    """Values of runs.run_type."""

    LIVE = "live"
    BACKTEST = "backtest"
    SHADOW = "shadow"
    RECORDING = "recording"


class RunStatus(StrEnum):
    """Values of runs.status."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


class Side(StrEnum):
    """Values of the `side` columns, spelt as Bybit spells them."""

    BUY = "Buy"
    SELL = "Sell"


class Base(DeclarativeBase):
    """Declarative base of every table."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )

    # What a repr shows, besides the primary key: an allow-list, so that a new column never leaks by default.
    _repr_names: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if hasattr(cls, "__table__"):  # an abstract class has none
            hold_secrets(cls)
            declare(cls)

    def __repr__(self) -> str:
        # From what is loaded only: a repr in a log line must never run a query.
        keys = [column.key for column in self.__mapper__.primary_key]
        loaded = self.__dict__
        shown = ", ".join(f"{name}={loaded[name]!r}" for name in (*keys, *self._repr_names) if name in loaded)
        return f"<{type(self).__name__} {shown}>"


def _parent_agreeing(table: str, *columns: str) -> ForeignKeyConstraint:
    """A foreign key to a row by its primary key and by what must be the same in both rows."""
    return ForeignKeyConstraint(columns, [f"{table}.{column}" for column in columns], ondelete="CASCADE")


def _named_by_runs(table: str, *columns: str) -> Index:
    """What such a foreign key points at. No constraint: it says nothing of which rows are the same."""
    return Index(f"uq_{table}_{'_'.join(columns)}", *columns, unique=True)


class User(Base):
    """A person whose bots trade here: the tenant."""

    __tablename__ = "users"
    __ownership__ = Ownership("user_id")
    __table_args__ = (one_of("status", UserStatus),)
    _repr_names = ("username", "status")

    user_id: Mapped[str] = id_column()
    username: Mapped[str] = mapped_column(BoundedString(100), unique=True, comment="Login username")
    email: Mapped[str | None] = mapped_column(BoundedString(255), unique=True, comment="Contact email")
    status: Mapped[str] = word_column(UserStatus, 20, UserStatus.ACTIVE)
    created_at: Mapped[datetime] = created_column("Account creation, UTC")
    updated_at: Mapped[datetime] = updated_column()

    accounts: Mapped[list[BybitAccount]] = relationship(
        back_populates="user", cascade="all", passive_deletes=True, order_by="BybitAccount.account_name"
    )
    runs: Mapped[list[Run]] = relationship(
        back_populates="user", cascade="all", passive_deletes=True, order_by="(Run.start_ts, Run.run_id)"
    )


class BybitAccount(Base):
    """One Bybit account of one user."""

    __tablename__ = "bybit_accounts"
    __ownership__ = Ownership("user_id")
    __table_args__ = (
        UniqueConstraint("user_id", "account_name"),
        _named_by_runs("bybit_accounts", "account_id", "user_id"),
        one_of("environment", Environment),
        one_of("status", AccountStatus),
    )
    _repr_names = ("account_name", "environment", "status")

    account_id: Mapped[str] = id_column()
    user_id: Mapped[str] = parent_column("users.user_id", comment="Owner")
    account_name: Mapped[str] = mapped_column(BoundedString(100), comment="Label, unique for its user")
    environment: Mapped[str] = mapped_column(Vocabulary(Environment, 10))
    status: Mapped[str] = word_column(AccountStatus, 20, AccountStatus.ENABLED)
    created_at: Mapped[datetime] = created_column()

    user: Mapped[User] = relationship(back_populates="accounts")
    credentials: Mapped[list[ApiCredential]] = relationship(
        back_populates="account", cascade="all", passive_deletes=True, order_by="ApiCredential.created_at"
    )
    strategies: Mapped[list[Strategy]] = relationship(
        back_populates="account", cascade="all", passive_deletes=True, order_by="Strategy.symbol"
    )
    runs: Mapped[list[Run]] = relationship(
        back_populates="account",
        foreign_keys="Run.account_id",
        cascade="all",
        passive_deletes=True,
        order_by="(Run.start_ts, Run.run_id)",
    )


class ApiCredential(Base):
    """An API key of an account. The secret is never part of a repr."""

    __tablename__ = "api_credentials"
    __ownership__ = Ownership("account_id")
    __table_args__ = (
        Index(None, "account_id"),
        # A bot that asks for the active credential must not find two.
        Index(
            "uq_api_credentials_active_account_id",
            "account_id",
            unique=True,
            postgresql_where=text("is_active"),
            sqlite_where=text("is_active"),
        ),
    )
    _repr_names = ("account_id", "is_active")

    credential_id: Mapped[str] = id_column()
    account_id: Mapped[str] = parent_column("bybit_accounts.account_id")
    api_key_id: Mapped[str] = mapped_column(BoundedString(100), comment="Bybit API key (public part)")
    api_secret: Mapped[str] = mapped_column(SecretText(), comment="Bybit API secret")
    is_active: Mapped[bool] = mapped_column(CheckedBoolean(), default=True, server_default=true())
    created_at: Mapped[datetime] = created_column()
    rotated_at: Mapped[datetime | None] = mapped_column(UTCDateTime(), comment="Last rotation at the exchange, UTC")

    account: Mapped[BybitAccount] = relationship(back_populates="credentials")


class Strategy(Base):
    """A trading strategy on one symbol of one account."""

    __tablename__ = "strategies"
    __ownership__ = Ownership("account_id")
    __table_args__ = (
        UniqueConstraint("account_id", "symbol"),
        _named_by_runs("strategies", "strategy_id", "account_id"),
    )
    _repr_names = ("strategy_type", "symbol", "is_enabled")

    strategy_id: Mapped[str] = id_column()
    account_id: Mapped[str] = parent_column("bybit_accounts.account_id")
    strategy_type: Mapped[str] = mapped_column(BoundedString(50), comment="Such as GridStrategy")
    symbol: Mapped[str] = mapped_column(BoundedString(SYMBOL_LENGTH), comment="Trading pair, such as BTCUSDT")
    config_json: Mapped[dict[str, Any]] = mapped_column(Json(), comment="GridConfig")
    is_enabled: Mapped[bool] = mapped_column(CheckedBoolean(), default=True, server_default=true())
    created_at: Mapped[datetime] = created_column()

    account: Mapped[BybitAccount] = relationship(back_populates="strategies")
    runs: Mapped[list[Run]] = relationship(
        back_populates="strategy",
        foreign_keys="Run.strategy_id",
        cascade="all",
        passive_deletes=True,
        order_by="(Run.start_ts, Run.run_id)",
    )


class Run(Base):
    """One execution of a strategy: live, backtest, shadow, or one that only records.

    It names its user beside its account, so that every query can filter by `user_id` alone. The account must be one of
    that user's, and the strategy one of that account's; so an account or strategy with runs stays where it is.
    """

    __tablename__ = "runs"
    __ownership__ = Ownership(
        "user_id", references=("account_id", Reference("strategy_id", Strategy, agrees=("account_id",)))
    )
    __table_args__ = (
        _parent_agreeing("bybit_accounts", "account_id", "user_id"),
        _parent_agreeing("strategies", "strategy_id", "account_id"),
        one_of("run_type", RunType),
        one_of("status", RunStatus),
        # These two serve the specification's index on user_id by their leading column, and the newest runs of
        # a user and `get_running` besides. A third index on user_id alone would only slow down writes.
        Index(None, "user_id", "start_ts", "run_id"),
        Index(None, "user_id", "status", "start_ts"),
        Index(None, "account_id"),
        Index(None, "status"),
        # For closing orphans, and for the cascade from strategies.
        Index(None, "strategy_id"),
        # Of two processes that start the same work at once, one must not go on unnoticed.
        Index(
            "uq_runs_running_strategy_id_run_type",
            "strategy_id",
            "run_type",
            unique=True,
            postgresql_where=text("status = 'running'"),
            sqlite_where=text("status = 'running'"),
        ),
    )
    _repr_names = ("run_type", "status", "start_ts")

    run_id: Mapped[str] = id_column()
    user_id: Mapped[str] = parent_column("users.user_id", comment="Owner")
    account_id: Mapped[str] = mapped_column(BoundedString(ID_LENGTH))
    strategy_id: Mapped[str] = mapped_column(BoundedString(ID_LENGTH))
    run_type: Mapped[str] = mapped_column(Vocabulary(RunType, 20))
    gridcore_version: Mapped[str | None] = mapped_column(BoundedString(50), comment="For reproducing the run")
    config_snapshot: Mapped[dict[str, Any] | None] = mapped_column(Json(), comment="GridConfig when the run started")
    start_ts: Mapped[datetime] = created_column("Start, UTC")
    end_ts: Mapped[datetime | None] = mapped_column(UTCDateTime(), comment="End, UTC")
    status: Mapped[str] = word_column(RunStatus, 20, RunStatus.RUNNING)
    heartbeat_ts: Mapped[datetime | None] = mapped_column(UTCDateTime(), comment="Last sign of life, UTC")
    host: Mapped[str | None] = mapped_column(BoundedString(255), comment="Machine that runs it")

    user: Mapped[User] = relationship(back_populates="runs")
    # By the key alone: the other column of each foreign key is written by its own attribute.
    account: Mapped[BybitAccount] = relationship(back_populates="runs", foreign_keys=[account_id])
    strategy: Mapped[Strategy] = relationship(back_populates="runs", foreign_keys=[strategy_id])
    executions: Mapped[list[PrivateExecution]] = relationship(
        back_populates="run",
        cascade="all",
        passive_deletes=True,
        order_by="(PrivateExecution.exchange_ts, PrivateExecution.exec_id)",
    )


class TradeRow(NamedTuple):
    """A public trade as a plain tuple: money as Decimal with 8 places, times as aware UTC."""

    symbol: str
    trade_id: str
    exchange_ts: datetime
    local_ts: datetime
    side: str
    price: Decimal
    size: Decimal

    @property
    def cursor(self) -> str:
        """Where this row stands in its range: `after=row.cursor` continues behind it."""
        return cursor_text(self.exchange_ts, self.trade_id)


class PublicTrade(Base):
    """A trade on the exchange, anybody's: shared by all users.

    Its identity is (symbol, exchange_ts, trade_id): Bybit's spot archives number their trades from 1 in every
    daily file, so a key without the time would throw the second day away. The same index serves the time range
    of a symbol, which is why the specification's (symbol, exchange_ts) has none of its own.
    """

    __tablename__ = "public_trades"
    __ownership__ = SHARED_BY_ALL
    __stream__ = Stream(
        by="symbol",
        time="exchange_ts",
        tie="trade_id",
        row=TradeRow,
        exported=("exchange_ts", "symbol", "side", "price", "size", "trade_id", "local_ts"),
    )
    __table_args__ = (UniqueConstraint("symbol", "exchange_ts", "trade_id"), one_of("side", Side))
    _repr_names = ("symbol", "trade_id", "exchange_ts")

    id: Mapped[int] = mapped_column(CheckedInteger(), primary_key=True, autoincrement=True)
    symbol: Mapped[str] = mapped_column(BoundedString(SYMBOL_LENGTH))
    trade_id: Mapped[str] = mapped_column(BoundedString(50), comment="Exchange trade ID")
    exchange_ts: Mapped[datetime] = mapped_column(UTCDateTime(), comment="Exchange time, UTC")
    local_ts: Mapped[datetime] = mapped_column(UTCDateTime(), comment="Local receive time, UTC")
    side: Mapped[str] = mapped_column(Vocabulary(Side, 4), comment="The taker's side")
    price: Mapped[Decimal] = mapped_column(Money(never_to_zero=True))
    size: Mapped[Decimal] = mapped_column(Money(never_to_zero=True))


class ExecutionRow(NamedTuple):
    """An execution as a plain tuple: money as Decimal with 8 places, times as aware UTC; without `raw_json`."""

    run_id: str
    account_id: str
    symbol: str
    exec_id: str
    order_id: str
    order_link_id: str | None
    exchange_ts: datetime
    side: str
    exec_price: Decimal
    exec_qty: Decimal
    exec_fee: Decimal | None
    closed_pnl: Decimal | None

    @property
    def cursor(self) -> str:
        """Where this row stands in its range: `after=row.cursor` continues behind it."""
        return cursor_text(self.exchange_ts, self.exec_id)


class PrivateExecution(Base):
    """A fill of one of our own orders, recorded under a run.

    Its identity is (run_id, exec_id): two runs may record the same account, and a key on exec_id alone would
    drop the second one's rows.
    """

    __tablename__ = "private_executions"
    __ownership__ = Ownership("run_id", references=(Reference("account_id", BybitAccount),))
    __stream__ = Stream(
        by="run_id",
        time="exchange_ts",
        tie="exec_id",
        fills=True,
        row=ExecutionRow,
        exported=(
            "exchange_ts",
            "symbol",
            "side",
            "exec_price",
            "exec_qty",
            "exec_fee",
            "closed_pnl",
            "exec_id",
            "order_id",
            "order_link_id",
            "account_id",
            "run_id",
            "raw_json",
        ),
        from_json={"fee_currency": "feeCurrency", "exec_type": "execType", "category": "category"},
    )
    __table_args__ = (
        UniqueConstraint("run_id", "exec_id"),
        Index(None, "account_id", "exchange_ts"),
        one_of("side", Side),
    )
    _repr_names = ("run_id", "symbol", "exec_id", "exchange_ts")

    id: Mapped[int] = mapped_column(CheckedInteger(), primary_key=True, autoincrement=True)
    run_id: Mapped[str] = parent_column("runs.run_id")
    account_id: Mapped[str] = mapped_column(BoundedString(ID_LENGTH), comment="Account that traded")
    symbol: Mapped[str] = mapped_column(BoundedString(SYMBOL_LENGTH))
    exec_id: Mapped[str] = mapped_column(BoundedString(50), comment="Exchange execution ID")
    order_id: Mapped[str] = mapped_column(BoundedString(50), comment="Exchange order ID")
    order_link_id: Mapped[str | None] = mapped_column(BoundedString(50), comment="Client order ID, for matching")
    exchange_ts: Mapped[datetime] = mapped_column(UTCDateTime(), comment="Execution time, UTC")
    side: Mapped[str] = mapped_column(Vocabulary(Side, 4))
    exec_price: Mapped[Decimal] = mapped_column(Money(never_to_zero=True, kept_in="raw_json"))
    exec_qty: Mapped[Decimal] = mapped_column(Money(never_to_zero=True, kept_in="raw_json"))
    exec_fee: Mapped[Decimal | None] = mapped_column(Money(kept_in="raw_json"), comment="Negative for a rebate")
    closed_pnl: Mapped[Decimal | None] = mapped_column(Money(kept_in="raw_json"), comment="Realized profit or loss")
    raw_json: Mapped[dict[str, Any] | None] = mapped_column(Json(), comment="The exchange's full message")

    run: Mapped[Run] = relationship(back_populates="executions")


class AuditAction(StrEnum):
    """Values of audit_log.action."""

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"


class AuditLog(Base):
    """What was done to one row, or to `row_count` rows at once: written by the sessions while the log is switched on.

    It names users and rows without foreign keys, since it outlives them. An entry about "AuditLog" itself says that it
    was switched on or off; by the newest one every process knows which.
    """

    __tablename__ = "audit_log"
    __ownership__ = Ownership("user_id")
    __table_args__ = (
        one_of("action", AuditAction),
        Index(None, "user_id", "created_at", "id"),
        Index(None, "entity", "entity_id", "created_at"),
        Index(None, "action", "created_at"),
    )
    _repr_names = ("created_at", "action", "entity", "entity_id")
    # PostgreSQL's policies show these to every user besides his own: his sessions have to know whether to write.
    _shown_to_all = "user_id IS NULL AND entity = 'AuditLog'"

    id: Mapped[int] = mapped_column(CheckedInteger(), primary_key=True, autoincrement=True)
    created_at: Mapped[datetime] = created_column("When, UTC")
    user_id: Mapped[str | None] = mapped_column(BoundedString(ID_LENGTH), comment="Whose data it is")
    actor: Mapped[str | None] = mapped_column(BoundedString(255), comment="Who did it")
    action: Mapped[str] = mapped_column(Vocabulary(AuditAction, 10))
    entity: Mapped[str] = mapped_column(BoundedString(50), comment="Model, such as Run")
    entity_id: Mapped[str | None] = mapped_column(BoundedString(ID_LENGTH), comment="Its key; none for many rows")
    row_count: Mapped[int] = mapped_column(CheckedInteger(), default=1, server_default=text("1"))
    old_values: Mapped[dict[str, Any] | None] = mapped_column(Json(), comment="Before, secrets left out")
    new_values: Mapped[dict[str, Any] | None] = mapped_column(Json(), comment="After, secrets left out")
    ip_address: Mapped[str | None] = mapped_column(BoundedString(45), comment="Where the request came from")
    user_agent: Mapped[str | None] = mapped_column(BoundedString(1000), comment="What sent it")
