"""`shared.metrics`: time series beside `shared.db`, in InfluxDB or VictoriaMetrics; measurements, and no money."""

from shared.metrics.client import InfluxDBClientWrapper
from shared.metrics.errors import MetricsAwayError, MetricsError
from shared.metrics.feed import MetricsFeed
from shared.metrics.points import Point
from shared.metrics.writer import MetricsStats

__all__ = [
    "InfluxDBClientWrapper",
    "MetricsAwayError",
    "MetricsError",
    "MetricsFeed",
    "MetricsStats",
    "Point",
]
