"""The databases and sample rows come from `shared.db`'s own fixtures."""

from __future__ import annotations

import pytest

import shared.market.models  # noqa: F401 # its tables are among those that `db` makes
from shared.db.testing import (  # noqa: F401 # fixtures
    clean_environment,
    db,
    db_settings,
    empty_postgresql_url,
    policed_copies,
    policed_db,
    postgresql_copies,
    postgresql_server,
    postgresql_template,
    postgresql_url,
    sample_account,
    sample_run,
    sample_strategy,
    sample_user,
    session,
    sqlite_template,
)


@pytest.fixture(autouse=True)
def _own_tables_alone(clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811 # a fixture
    """Commands load no other package's tables."""
    monkeypatch.setenv("GRIDBOT_DB_PACKAGES", "shared.market")
