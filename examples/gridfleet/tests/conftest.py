"""The databases and sample rows come from `shared.db`'s own fixtures."""

import gridfleet.models  # noqa: F401 # its tables are among those that `db` makes
import pytest

pytest_plugins = ["shared.db.testing"]


@pytest.fixture(autouse=True)
def _own_tables_alone(clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:  # a fixture
    """Commands load no other package's tables."""
    monkeypatch.setenv("GRIDBOT_DB_PACKAGES", "gridfleet")
