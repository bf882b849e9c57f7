"""What a server counts, in Prometheus' text format at `/metrics`."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Counters of one server."""

    def __init__(self, model: str, version: str) -> None:
        """Begin at zero."""
        self._registry = registry = CollectorRegistry()
        self.requests = Histogram(
            "ssmoe_request_seconds",
            "Time from a request to the end of its answer.",
            ["method", "path", "status"],
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
            registry=registry,
        )
        self.texts = Counter("ssmoe_texts", "Texts that were encoded for requests of embeddings.", registry=registry)
        self.tokens = Counter("ssmoe_tokens", "Tokens that the model read of them.", registry=registry)
        self.batches = Histogram(
            "ssmoe_batch_texts",
            "Texts per forward pass.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=registry,
        )
        self.model_seconds = Counter("ssmoe_model_seconds", "Time that these passes took.", registry=registry)
        served = Gauge("ssmoe_info", "What is served.", ["model", "version"], registry=registry)
        served.labels(model, version).set(1)

    def watch(self, name: str, description: str, value: Callable[[], float]) -> None:
        """A number that is looked up when it is asked for."""
        Gauge(name, description, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self._registry)


class Timed:
    """Times every request; its path is the route's, so that an attacker's inventions do not fill the memory."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        """Wrap an application."""
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, status = perf_counter(), 500

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if path != "other" else "other"
            self._metrics.requests.labels(method, path, status).observe(perf_counter() - begin)
