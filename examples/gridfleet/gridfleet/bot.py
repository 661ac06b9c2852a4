"""A grid bot of one user: it places orders below the price, keeps what it holds, and goes on after a restart."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

from sqlalchemy import select
from sqlalchemy.orm import Session

from gridfleet.models import GridState, Order, OrderStatus, Position, Ticker, Wallet
from shared.db import DatabaseFactory, Repository, Run, exact_sum


class Bot:
    """The grid of one run. All it does is in sessions of the run's user, who reaches nobody else's rows."""

    def __init__(self, db: DatabaseFactory, user_id: str, run_id: str) -> None:
        self._db, self._user_id, self._run_id = db, user_id, run_id

    def place_grid(self, symbol: str, levels: int, step: Decimal, qty: Decimal) -> list[str]:
        """Place one order at each level below the last price, and remember the grid; the ids of the orders."""

        def work(session: Session) -> list[str]:
            now = datetime.now(UTC)
            run = session.get_one(Run, self._run_id)
            ticker = Repository(session, Ticker).latest(symbol)
            if ticker is None:
                raise LookupError(f"there is no price of {symbol} yet")
            last = ticker.last_price
            placed = {f"{self._run_id}-{symbol}-{level}": last * (1 - step * level) for level in range(1, levels + 1)}
            same = {"run_id": run.run_id, "account_id": run.account_id, "symbol": symbol, "qty": qty, "placed_ts": now}
            Repository(session, Order).bulk_create(
                [{"order_id": order_id, "price": price, **same} for order_id, price in placed.items()]
            )
            state = {order_id: str(price) for order_id, price in placed.items()}
            session.merge(GridState(run_id=run.run_id, levels=state, saved_ts=now))
            return list(placed)

        return self._db.run_in_transaction(work, user_id=self._user_id)

    def filled(self, order_id: str, coin: str, balance: Decimal) -> None:
        """An order was filled: the order, the position and the wallet change together."""

        def work(session: Session) -> None:
            order = session.scalars(select(Order).where(Order.order_id == order_id)).one()
            order.status = OrderStatus.FILLED.value
            held = session.scalars(select(Position).where(Position.symbol == order.symbol)).one_or_none()
            if held is None:
                held = Position(run_id=order.run_id, symbol=order.symbol, size=Decimal(0), cost=Decimal(0))
                session.add(held)
            held.size += order.qty
            held.cost += order.qty * order.price
            now = datetime.now(UTC)
            session.add(Wallet(account_id=order.account_id, coin=coin, exchange_ts=now, balance=balance))

        self._db.run_in_transaction(work, user_id=self._user_id)

    def grid(self) -> dict[str, Decimal]:
        """The open levels as they were saved: what a restarted bot goes on with."""
        with self._db.get_session(user_id=self._user_id, read_only=True) as session:
            state = session.get(GridState, self._run_id)
            still = select(Order.order_id).where(Order.run_id == self._run_id, Order.status == OrderStatus.OPEN.value)
            open_ones = set(session.scalars(still))
            return {
                name: Decimal(price) for name, price in (state.levels if state else {}).items() if name in open_ones
            }

    def bound(self) -> Decimal:
        """The size of all open orders, exact to the last digit."""
        with self._db.get_session(user_id=self._user_id, read_only=True) as session:
            return session.scalar(
                select(exact_sum(Order.qty)).where(Order.status == OrderStatus.OPEN.value)
            ) or Decimal(0)
