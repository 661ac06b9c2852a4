"""Other libraries that write trades, for `writes.py`. Each is opened on a database of its own."""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import URL

from benchmarks.contenders import INTO_TRADES, Batches, Way


def duckdb_trades(url: URL, on_conflict: str = "") -> Way:
    """DuckDB with the same key, fed through Arrow, which is its fastest way in; without ON CONFLICT it is faster."""
    import duckdb
    import pyarrow as pa

    money = pa.decimal128(20, 8)
    schema = pa.schema(
        [
            ("symbol", pa.string()),
            ("trade_id", pa.string()),
            ("exchange_ts", pa.timestamp("us", "UTC")),
            ("local_ts", pa.timestamp("us", "UTC")),
            ("side", pa.string()),
            ("price", money),
            ("size", money),
        ]
    )
    connection = duckdb.connect(f"{url.database}.{'skipping.' if on_conflict else ''}duckdb")
    connection.execute("CREATE SEQUENCE numbers")
    connection.execute(
        "CREATE TABLE public_trades (id BIGINT DEFAULT nextval('numbers') PRIMARY KEY, symbol VARCHAR, trade_id "
        "VARCHAR, exchange_ts TIMESTAMPTZ, local_ts TIMESTAMPTZ, side VARCHAR, price DECIMAL(20, 8), "
        "size DECIMAL(20, 8), UNIQUE (symbol, exchange_ts, trade_id))"
    )

    def write(batches: Batches) -> None:
        for batch in batches:
            connection.register("batch", pa.Table.from_pylist(batch, schema))
            connection.execute(f"INSERT INTO {INTO_TRADES} SELECT * FROM batch {on_conflict}")

    return write


def django_trades(url: URL) -> Way:
    """Django's bulk_create into PostgreSQL, skipping duplicates."""
    from django.db import transaction

    model, alias = _django(url)

    def write(batches: Batches) -> None:
        for batch in batches:
            with transaction.atomic(using=alias):
                model.objects.using(alias).bulk_create([model(**row) for row in batch], ignore_conflicts=True)

    return write


def _django(url: URL) -> tuple[Any, str]:
    import django
    from django.conf import settings
    from django.db import connections

    if not settings.configured:
        engine = {"ENGINE": "django.db.backends.postgresql"}
        settings.configure(USE_TZ=True, DATABASES={"default": engine}, INSTALLED_APPS=[])
        django.setup()
    alias = str(url.database)
    connections.databases[alias] = connections.databases["default"] | {
        "NAME": url.database,
        "USER": url.username or "",
        "PASSWORD": url.password or "",
        "HOST": url.query.get("host", url.host) or "",
        "PORT": url.port or "",
    }
    return _django_model(), alias


@cache
def _django_model() -> Any:
    from django.db import models

    class Trade(models.Model):  # type: ignore[misc] # Django brings no types
        id = models.BigAutoField(primary_key=True)
        symbol = models.CharField(max_length=20)
        trade_id = models.CharField(max_length=50)
        exchange_ts = models.DateTimeField()
        local_ts = models.DateTimeField()
        side = models.CharField(max_length=4)
        price = models.DecimalField(max_digits=20, decimal_places=8)
        size = models.DecimalField(max_digits=20, decimal_places=8)

        class Meta:
            app_label = "benchmarks"
            db_table = "public_trades"
            managed = False

    return Trade
