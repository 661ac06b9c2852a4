"""The machine: it opens sessions for ann and bob, and reads, writes and attacks in them as hypothesis tells it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial, wraps
from random import Random
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from sqlalchemy import inspect
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session, SessionTransaction

from shared.db import DatabaseFactory, PublicTrade, StaleRowError, TenantError
from shared.db.tests.two_users.attacks import ATTACKS
from shared.db.tests.two_users.reads import READS
from shared.db.tests.two_users.world import NAMES, USERS, NotNow, Rows, World, copy_of, stored, tracked
from shared.db.tests.two_users.writes import WRITES, flush

_SEEDS = st.integers(0, 2**16)


def _in_the_session(step: Callable[..., None]) -> Callable[..., None]:
    @wraps(step)
    def done(self: TwoUsers, **drawn: Any) -> None:
        self._do(partial(step, self, **drawn))

    return done


class TwoUsers(RuleBasedStateMachine):
    """Holds at every step: the other user's rows are as they were, what is read is the model, what is attached is own.

    `steps` counts, over all examples, what was really done, by its name.
    """

    steps: Counter[str]

    def __init__(self, db: DatabaseFactory, steps: Counter[str]) -> None:
        super().__init__()
        self.db = db
        self.steps = steps
        self.world = World(db)
        self.overlapping = not db.settings.is_memory
        self.opened: AbstractContextManager[Session] | None = None
        self.session: Any = None
        self.before: Rows = {}
        self.savepoints: list[tuple[SessionTransaction, Rows]] = []

    def _count(self, name: str) -> None:
        self.steps[name] += 1

    def _open(self, user: str) -> AbstractContextManager[Session]:
        return self.db.get_session(user_id=user)

    def _do(self, step: Callable[[], None]) -> None:
        """Do something in the session that is open, wherever that may be done."""
        step()

    # Between sessions

    @precondition(lambda self: self.session is None)
    @rule(user=st.sampled_from(USERS))
    def open(self, user: str) -> None:
        """Open a session for one of the two."""
        self.world.settle(user)
        self.before = stored(self.db)
        self.world.user = user
        self.opened = self._open(user)
        self.session = self.opened.__enter__()
        assert self.session.info["user_id"] == user
        self._count("open")

    @precondition(lambda self: self.session is None)
    @rule(seed=_SEEDS)
    def cross(self, seed: int) -> None:
        """Have an administrator mix up the two users' rows, or put them in order."""
        try:
            self.world.cross(Random(seed))
        except NotNow:
            return
        self._count("cross")

    # In a session

    @precondition(lambda self: self.session is not None)
    @rule(name=st.sampled_from(sorted(READS)), seed=_SEEDS)
    @_in_the_session
    def read(self, name: str, seed: int) -> None:
        """Read in one of the ways."""
        self._try(name, READS[name], seed)

    @precondition(lambda self: self.session is not None)
    @rule(name=st.sampled_from(sorted(WRITES)), seed=_SEEDS)
    @_in_the_session
    def write(self, name: str, seed: int) -> None:
        """Write own rows in one of the ways."""
        self._try(name, WRITES[name], seed)

    def _try(self, name: str, step: Any, seed: int) -> None:
        try:
            step(self.session, self.world, Random(seed))
        except NotNow:
            return
        self._check_attached()
        self._count(name)

    @precondition(lambda self: self.session is not None)
    @rule(name=st.sampled_from(sorted(ATTACKS)), seed=_SEEDS)
    @_in_the_session
    def attack(self, name: str, seed: int) -> None:
        """Reach for the other user's rows in one of the ways, and go on as one may who was refused."""
        attack, rng = ATTACKS[name], Random(seed)
        # A statement that PostgreSQL itself refuses ends the transaction.
        session: Session = self.session
        go_on = attack.clean and not self.session.confined_by_server and rng.random() < 0.5
        session.flush()
        before = copy_of(self.world.rows)
        savepoint = None if go_on or rng.random() < 0.3 else session.begin_nested()
        refused = told = False
        try:
            attack.attempt(session, self.world, rng)
            flush(session, rng)
        except NotNow:
            if savepoint is not None:
                savepoint.rollback()
            return
        except attack.errors as error:
            refused = True
            told = isinstance(error, TenantError) and f"-{self.world.other}" in str(error)
        assert not told, f"{name}: the error tells what is another user's"
        assert refused or attack.harmless, f"{name} was not refused"
        self.world.rows = before
        if savepoint is not None and not refused:
            savepoint.commit()
        elif savepoint is not None:
            savepoint.rollback()
        elif refused and not go_on:
            self._undo_all()
        session.expire_all()
        self._check_attached()
        self._count(name)

    @precondition(lambda self: self.session is not None and self.overlapping)
    @rule(name=st.sampled_from(sorted(READS)), seed=_SEEDS, user=st.sampled_from(USERS))
    @_in_the_session
    def nest(self, name: str, seed: int, user: str) -> None:
        """Read in a session that is opened inside this one, and carry one of its objects over."""
        world = self.world.seen_by(user)
        with self.db.get_session(user_id=user, read_only=True) as inner:
            try:
                READS[name](inner, world, Random(seed))
            except NotNow:
                return
            for entity in list(inner) if user != self.world.user else ():
                if not isinstance(entity, PublicTrade):
                    self._refuse(entity)
                    if entity in inner:  # one that was loaded below another goes with it
                        inner.expunge(entity)
                    self._refuse(entity)
        self._check_attached()
        self._count(f"nested {name}")

    def _refuse(self, entity: object) -> None:
        try:
            self.session.add(entity)
        except (TenantError, InvalidRequestError):
            return
        raise AssertionError(f"{entity!r} came in")

    @precondition(lambda self: self.session is not None)
    @rule(how=st.sampled_from(["savepoint", "savepoint", "release", "undo", "commit", "rollback"]))
    @_in_the_session
    def transact(self, how: str) -> None:
        """Set a savepoint or end one; commit or roll back, and go on in the same session."""
        if how == "savepoint":
            self.savepoints.append((self.session.begin_nested(), copy_of(self.world.rows)))
        elif how == "commit":
            self.session.commit()
            self.world.committed = copy_of(self.world.rows)
            self.savepoints.clear()
        elif how == "rollback":
            self.session.rollback()
            self._undo_all()
        elif not self.savepoints:
            return
        elif how == "release":
            self.savepoints.pop()[0].commit()
        else:
            savepoint, self.world.rows = self.savepoints.pop()
            savepoint.rollback()
            self.session.expire_all()  # statements changed rows behind its back
        self._check_attached()
        self._count(how)

    @precondition(lambda self: self.session is not None)
    @rule(commit=st.booleans())
    def close(self, commit: bool) -> None:
        """End the session, and look at what is stored."""
        if not commit:
            self._do(self._undo_all)
        assert self.opened is not None
        opened, self.opened, self.session = self.opened, None, None
        opened.__exit__(None, None, None)
        self.savepoints.clear()
        self.world.committed = copy_of(self.world.rows)
        self._check_stored()
        self._count("close")

    def teardown(self) -> None:
        """Close what is open."""
        if self.opened is not None:
            self._do(self.session.rollback)
            self.opened.__exit__(None, None, None)

    def _undo_all(self) -> None:
        self.session.rollback()
        self.savepoints.clear()
        self.world.rows = copy_of(self.world.committed)

    def _check_attached(self) -> None:
        """Every object in the session, and every one that it has loaded, is the user's."""
        for entity in list(self.session):
            model, values = type(entity), inspect(entity).dict
            if model is PublicTrade:
                continue
            name = values.get(NAMES[model])
            if name is None:
                try:
                    name = getattr(entity, NAMES[model])
                except StaleRowError:  # INSERT .. RETURNING made it, and a rollback took its row away
                    continue
            assert self.world.owner(model, name) == self.world.user, entity
            for relation in inspect(model).relationships:
                found = values.get(relation.key) or ()
                for other in found if relation.uselist or not found else [found]:
                    assert other in self.session, (entity, other)

    def _check_stored(self) -> None:
        """Rows of the other user are what they were, byte for byte; those of both are what the model says."""
        after = stored(self.db)
        for model, rows in self.before.items():
            foreign = self.world.of(model, self.world.other)
            for name in foreign:
                assert after[model].get(name) == rows[name], (model, name)
        assert tracked(after) == self.world.committed
