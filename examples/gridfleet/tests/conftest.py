"""The databases and sample rows come from `shared.db`'s own fixtures."""

import gridfleet.models  # noqa: F401 # its tables are among those that `db` makes

pytest_plugins = ["shared.db.testing"]
