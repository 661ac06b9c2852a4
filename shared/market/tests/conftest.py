"""The databases and sample rows come from `shared.db`'s own fixtures."""

from __future__ import annotations

import pytest

import shared.market.models  # noqa: F401 # its tables are among those that `db` makes
from shared.db.testing import *  # noqa: F403 # its fixtures


@pytest.fixture(autouse=True)
def _own_tables_alone(clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:  # a fixture
    """Commands load no other package's tables."""
    monkeypatch.setenv("GRIDBOT_DB_PACKAGES", "shared.market")
