"""One thread with the model, fed with batches made of the texts of concurrent requests, and what it counts."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import monotonic, perf_counter
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from sentence_transformers import SentenceTransformer
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ssmoe_embed.serving.refusals import RequestError, ServerLimits


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


ResultT = TypeVar("ResultT")


class Encoded(NamedTuple):
    """Vectors of the texts of one request, float32 `[B,D]` in their order, and how many tokens the model read of all."""

    vectors: np.ndarray[Any, Any]
    tokens: int


@dataclass(eq=False)
class _Job:
    """The texts of one request, the longest first, so that texts of like length share a batch."""

    texts: Sequence[str]
    done: asyncio.Future[Encoded]
    order: list[int] = field(init=False)
    taken: int = 0
    tokens: int = 0
    vectors: list[np.ndarray[Any, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.order = sorted(range(len(self.texts)), key=lambda row: -len(self.texts[row]))

    @property
    def left(self) -> int:
        return len(self.texts) - self.taken

    def take(self, most: int) -> list[str]:
        """The next texts, at most `most`."""
        rows = self.order[self.taken : self.taken + most]
        self.taken += len(rows)
        return [self.texts[row] for row in rows]

    def give(self, vectors: np.ndarray[Any, Any], tokens: int) -> None:
        """Take in the vectors `[n,D]` of texts taken before; the last ones complete the job."""
        self.vectors.append(vectors)
        self.tokens += tokens
        if not self.done.done() and sum(map(len, self.vectors)) == len(self.texts):
            rows = np.concatenate(self.vectors)  # [B,D], the longest text first
            result = np.empty_like(rows)
            result[self.order] = rows
            self.done.set_result(Encoded(result, self.tokens))


class Batcher:
    """Runs a model for many requests at once.

    All use of the model is in one thread: fast tokenizers must not be shared by threads, and a second forward pass beside
    the first makes both slower. A request with more texts than a batch gives one batch's worth at a time and queues up
    again, so a short request never waits for the whole of a long one. It belongs to the event loop that `start` ran in.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        limits: ServerLimits,
        *,
        normalize: bool = False,
        metrics: Metrics | None = None,
    ) -> None:
        """Bind any sentence-transformers model; nothing runs before `start`.

        The `limits` say batch size, wait and the bound of the queue; with `normalize` vectors have length 1; texts, tokens
        and batches are counted in `metrics`.
        """
        self._model = model
        self._metrics = metrics or Metrics("", "")
        self._limits = limits
        self.normalize = normalize
        self._jobs: deque[_Job] = deque()
        self._open: set[_Job] = set()
        self.waiting = 0
        """Texts that wait for the model or are in it."""
        self._speed = 100.0  # texts a second, measured as it runs; it only sets Retry-After
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ssmoe-model")
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to work, in the running event loop."""
        self._loop = asyncio.get_running_loop().create_task(self._work(), name="ssmoe-batcher")

    async def stop(self) -> None:
        """Refuse what is not answered yet and let the thread end after its batch."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        for job in self._open:
            self._fail(job, RequestError(503, "The server is shutting down.", code="shutting_down"))
        await asyncio.to_thread(self._thread.shutdown, wait=True, cancel_futures=True)

    async def encode(self, texts: Sequence[str]) -> Encoded:
        """Vectors of texts, the same as `model.encode` gives.

        Raises:
            RequestError: Too many texts wait already (429), or the server is shutting down (503).
        """
        if not texts:
            raise ValueError("There are no texts to encode; pass at least one.")
        self._admit(len(texts))
        job = _Job(texts, asyncio.get_running_loop().create_future())
        self._open.add(job)
        self._jobs.append(job)
        self._arrived.set()
        try:
            return await job.done
        finally:
            self._open.discard(job)
            self.waiting -= len(texts)

    async def run(self, function: Callable[[], ResultT]) -> ResultT:
        """The result of a function that uses the model, run in its thread between two batches.

        Raises:
            RequestError: Too many texts wait already (429).
        """
        self._admit(1)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, function)
        finally:
            self.waiting -= 1

    def _admit(self, count: int) -> None:
        """Count texts in, or refuse them."""
        if self.waiting + count > self._limits.max_waiting:
            seconds = max(1, math.ceil(self.waiting / self._speed))
            raise RequestError(
                429,
                f"{self.waiting} texts are waiting for the model and at most {self._limits.max_waiting} may; "
                f"try again in {seconds} s.",
                code="queue_full",
                headers={"Retry-After": str(seconds)},
            )
        self.waiting += count

    async def _work(self) -> None:
        """Make batches until cancelled."""
        while True:
            await self._arrived.wait()
            await self._fill()
            parts = self._parts()
            if parts:
                await self._run_batch(parts)

    async def _fill(self) -> None:
        """Wait a moment for more texts, unless a batch is full already."""
        end = monotonic() + self._limits.wait
        while sum(job.left for job in self._jobs) < self._limits.batch_size and (left := end - monotonic()) > 0:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except asyncio.TimeoutError:  # another class than TimeoutError before Python 3.11
                break

    def _parts(self) -> list[tuple[_Job, list[str]]]:
        """The next batch: whose texts are in it, and which; abandoned requests are left out."""
        parts: list[tuple[_Job, list[str]]] = []
        room = self._limits.batch_size
        while room and self._jobs:
            job = self._jobs.popleft()
            if job.done.done():
                continue
            texts = job.take(room)
            parts.append((job, texts))
            room -= len(texts)
        for job, _ in parts:
            if job.left:
                self._jobs.append(job)
        (self._arrived.set if self._jobs else self._arrived.clear)()
        return parts

    async def _run_batch(self, parts: list[tuple[_Job, list[str]]]) -> None:
        """Encode one batch and hand out its vectors."""
        texts = [text for _, part in parts for text in part]
        begin = monotonic()
        try:
            vectors, tokens = await asyncio.get_running_loop().run_in_executor(self._thread, self._encode, texts)
        except Exception as error:
            if len(parts) == 1:
                self._fail(parts[0][0], error)
            else:  # one request's text must not be another's error
                for one in parts:
                    await self._run_batch([one])
            return
        seconds = monotonic() - begin
        self._speed = 0.8 * self._speed + 0.2 * len(texts) / max(seconds, 1e-6)
        self._metrics.batches.observe(len(texts))
        self._metrics.texts.inc(len(texts))
        self._metrics.tokens.inc(sum(tokens))
        self._metrics.model_seconds.inc(seconds)
        start = 0
        for job, part in parts:
            rows = slice(start, start + len(part))
            job.give(vectors[rows], sum(tokens[rows]))
            start += len(part)

    def _encode(self, texts: list[str]) -> tuple[np.ndarray[Any, Any], list[int]]:
        """Vectors float32 `[n,D]` and token counts of one batch; runs in the model's thread."""
        vectors, tokens = encode_and_count(self._model, texts)
        if self.normalize:
            vectors = unit(vectors)
        if not np.isfinite(vectors).all():
            raise ValueError(
                "The model gave a vector that is not finite, as 16 bits may; serve one that was built with --dtype float32."
            )
        return vectors, tokens

    @staticmethod
    def _fail(job: _Job, error: Exception) -> None:
        if not job.done.done():
            job.done.set_exception(error)


def encode_and_count(model: SentenceTransformer, texts: Sequence[str]) -> tuple[np.ndarray[Any, Any], list[int]]:
    """Vectors of texts, in one batch, and how many tokens the model read of each, as that batch's features tell.

    Returns:
        float32 `[n,D]`, and tokens of each text, template and special tokens included, those cut off not.
    """

    def count(module: torch.nn.Module, inputs: tuple[dict[str, torch.Tensor], ...]) -> None:
        del module
        features = inputs[0]
        tokens = torch.zeros(len(texts), dtype=torch.long)
        if "attention_mask" in features:
            # an ensemble of P prompts makes P rows a text
            tokens = features["attention_mask"].sum(dim=1).reshape(len(texts), -1).sum(dim=1)  # [n·P] → [n,P] → [n]
        elif "offsets" in features:  # bags of tokens, as static embeddings make them: where each text begins
            ends = features["offsets"].new_tensor([len(features["input_ids"])])
            tokens = torch.cat([features["offsets"], ends]).diff()
        features["tokens_read"] = tokens

    counting = model.register_forward_pre_hook(count)
    try:
        rows = model.encode(list(texts), batch_size=len(texts), show_progress_bar=False, output_value=None)
    finally:
        counting.remove()
    vectors = torch.stack([row["sentence_embedding"] for row in rows]).float().cpu().numpy()
    return vectors, [int(row.get("tokens_read", 0)) for row in rows]


def unit(vectors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Vectors `[n,D]` scaled to length 1; a vector of zeros stays one."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
