"""One leader for a strategy: the lock says who, and the run's row makes sure."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from shared.cache import CacheAwayError, Leader, LeadershipLostError, SyncRedisClient
from shared.cache.tests.servers import Server
from shared.db import DatabaseFactory, PrivateExecutionRepository, Run, RunRepository, Strategy
from shared.db.tests.support import execution_values, in_children

NewLeader = Callable[[], Leader]
pytestmark = pytest.mark.parametrize("db", ["file", "postgresql"], indirect=True)


@pytest.fixture
def leader(client: SyncRedisClient, db: DatabaseFactory, strategy: Strategy, user_id: str) -> NewLeader:
    """Makes another process's leader of the strategy."""
    return lambda: Leader(client.for_user(user_id), db, strategy.strategy_id)


@pytest.fixture
def new_run(strategy: Strategy, user_id: str) -> Callable[[], Run]:
    """Makes a run that is not stored."""
    return lambda: Run(user_id=user_id, account_id=strategy.account_id, run_type="live")


NewRun = Callable[[], Run]


def _expire(server: Server, leader: Leader) -> None:
    """The lock's time is over."""
    with redis.Redis.from_url(server.url) as plain:
        assert plain.delete(*plain.keys(f"*:locks:leader:{leader._strategy_id}")) == 1


def test_one_leads_and_the_others_do_not(leader: NewLeader, new_run: NewRun, db: DatabaseFactory, user_id: str) -> None:
    """Until it lets go; the run has the token as its id."""
    one, two = leader(), leader()
    assert [one.acquire(), two.acquire(), one.acquire()] == [True, False, True]
    run = one.start(new_run())
    assert run.run_id == one.token
    one.renew()
    two.release()
    assert not two.acquire()
    one.release()
    assert two.acquire()


def test_a_leader_that_slept_past_its_lock_writes_nothing(
    server: Server, leader: NewLeader, new_run: NewRun, db: DatabaseFactory, user_id: str
) -> None:
    """Its run was closed by the next leader's start, which the row tells whatever the lock says."""
    one, two = leader(), leader()
    assert one.acquire()
    run = one.start(new_run())
    _expire(server, one)
    with one.session() as session:  # nobody else has started: the row is still its own
        PrivateExecutionRepository(session).bulk_create([execution_values(run, 0)])
    assert two.acquire()
    two.start(new_run())
    with pytest.raises(LeadershipLostError, match="must stop"), one.session() as session:
        PrivateExecutionRepository(session).bulk_create([execution_values(run, 1)])
    with pytest.raises(LeadershipLostError):
        one.renew()
    with db.get_session(user_id=user_id) as session:
        assert [row.exec_id for row in PrivateExecutionRepository(session).iter_run_range(run.run_id)] == ["exec-0"]
        assert [running.run_id for running in RunRepository(session).get_running()] == [two.token]


def test_a_leader_that_slept_before_its_start_displaces_nobody(
    server: Server, leader: NewLeader, new_run: NewRun, db: DatabaseFactory, user_id: str
) -> None:
    """The lock is looked at with the strategy's row in hand: the newer leader's run goes on."""
    one, two = leader(), leader()
    assert one.acquire()
    _expire(server, one)
    assert two.acquire()
    two.start(new_run())
    with pytest.raises(LeadershipLostError):
        one.start(new_run())
    two.renew()
    with db.get_session(user_id=user_id) as session:
        assert [run.run_id for run in RunRepository(session).get_by_user_id(user_id)] == [two.token]


def test_a_leader_is_told_when_another_has_its_lock(server: Server, leader: NewLeader, new_run: NewRun) -> None:
    """Before the other one has started."""
    one, two = leader(), leader()
    assert one.acquire()
    one.start(new_run())
    _expire(server, one)
    assert two.acquire()
    with pytest.raises(LeadershipLostError, match="took the lead"):
        one.renew()


def test_of_many_processes_one_leads(
    server: Server, db: DatabaseFactory, strategy: Strategy, user_id: str, new_run: NewRun
) -> None:
    """All want to at the same moment, one starts a run."""

    def lead(number: int) -> bool:
        with SyncRedisClient(server.url) as client:
            leader = Leader(client.for_user(user_id), db, strategy.strategy_id)
            if not leader.acquire():
                return False
            leader.start(new_run())
            leader.renew()
            return True

    assert sum(in_children(4, lead)) == 1
    with db.get_session(user_id=user_id) as session:
        assert len(RunRepository(session).get_running()) == 1


def test_a_leader_goes_on_while_redis_is_away(
    own_server: Server, db: DatabaseFactory, strategy: Strategy, user_id: str, new_run: NewRun
) -> None:
    """Nobody becomes one meanwhile; when Redis is back, having lost the lock, the leader takes it again."""
    with SyncRedisClient(own_server.url, pause=0) as client:
        one, two = (Leader(client.for_user(user_id), db, strategy.strategy_id) for _ in range(2))
        assert one.acquire()
        one.start(new_run())
        own_server.kill()
        one.renew()
        with one.session() as session:
            assert len(RunRepository(session).get_running()) == 1
        for attempt in (two.acquire, lambda: two.start(new_run())):
            with pytest.raises(CacheAwayError):
                attempt()
        own_server.start()
        _expire(own_server, one)
        one.renew()
        assert not two.acquire()
