"""Figures for Prometheus: counts and times, never a name of an adapter or a principal."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from intarsia_platform.serving.engine import Statistics

ROUTES = {
    "/v1/completions": "completions",
    "/v1/chat/completions": "chat",
    "/v1/embeddings": "embeddings",
    "/v1/models": "models",
    "/metrics": "metrics",
    "/health/live": "health",
    "/health/ready": "health",
}
_BELOW = {"/v1/models/": "models", "/console/": "console", "/intarsia/": "console"}

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


def route_of(path: str) -> str:
    """What a path is counted under.

    Args:
        path: Any path; what a stranger asks for makes no new name.

    Returns:
        One of a few words.
    """
    below = next((name for prefix, name in _BELOW.items() if path.startswith(prefix)), "other")
    return ROUTES.get(path, below)


class Measures:
    """The figures of one gateway.

    Args:
        statistics: What the engine does now, None before it began.
    """

    def __init__(self, statistics: Callable[[], Statistics | None]) -> None:
        """Begin at zero, in a registry of its own."""
        self._registry = CollectorRegistry()
        self._registry.register(_EngineFigures(statistics))
        self.requests = Counter(
            "intarsia_requests",
            "Requests, by route and HTTP status; 499 where the client went away first.",
            ("route", "status"),
            registry=self._registry,
        )
        self.seconds = Histogram(
            "intarsia_request_seconds",
            "From a request to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.first_token = Histogram(
            "intarsia_first_token_seconds",
            "From a request to the first token of its answer.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.answers = Counter(
            "intarsia_answers",
            "Answers that ended, by why.",
            ("finish",),
            registry=self._registry,
        )
        self.tokens = Counter(
            "intarsia_tokens",
            "Tokens of prompts and of answers.",
            ("kind",),
            registry=self._registry,
        )
        self.open = Gauge(
            "intarsia_open_requests", "Requests being served now.", registry=self._registry
        )

    def page(self) -> tuple[bytes, str]:
        """The figures now.

        Returns:
            The page and its content type.
        """
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


class _EngineFigures(Collector):
    """What the engine says of itself, asked for when the page is."""

    def __init__(self, statistics: Callable[[], Statistics | None]) -> None:
        self._statistics = statistics

    def collect(self) -> Iterator[Metric]:
        found = self._statistics()
        if found is None:
            return
        gauges = {
            "running": ("Requests in the cache.", found.running),
            "waiting": ("Requests that wait for a slot.", found.waiting),
            "free_slots": ("Slots of the cache that nobody holds.", found.free),
            "cache_bytes": ("Bytes of the cache.", found.cache_bytes),
            "prefix_bytes": ("Bytes of kept beginnings of prompts.", found.prefix_bytes),
        }
        for name, (words, value) in gauges.items():
            yield GaugeMetricFamily(f"intarsia_engine_{name}", words, value=value)
        counts = {
            "tokens": ("Tokens answered.", found.tokens),
            "calls": ("Calls of the model.", found.calls),
            "prefix_hits": ("Pieces of prompts that were not computed again.", found.prefix_hits),
            "prefix_misses": ("Pieces of prompts that were not kept.", found.prefix_misses),
        }
        for name, (words, value) in counts.items():
            yield CounterMetricFamily(f"intarsia_engine_{name}", words, value=value)
