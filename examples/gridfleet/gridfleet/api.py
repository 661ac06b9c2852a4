"""An API: each request has a session of its user, who in earnest is whom a checked token names."""

from decimal import Decimal

from fastapi import FastAPI, Request
from sqlalchemy import select
from sqlalchemy.orm import Session

from gridfleet.models import Order
from shared.db import DatabaseFactory
from shared.db.web import FastAPIDoor


def user(request: Request) -> str | None:
    """Whom the request names."""
    return request.headers.get("x-user")


def api(db: DatabaseFactory) -> FastAPI:
    """The application; `/health` comes with the door."""
    app = FastAPI()
    door = FastAPIDoor(app, db, user=user)

    @app.get("/orders")
    def orders(session: Session = door.session) -> dict[str, Decimal]:
        return {order.order_id: order.price for order in session.scalars(select(Order).order_by(Order.order_id))}

    return app
