"""Concurrent requests: shared forward passes, a bounded queue, nobody waits for another's mistake."""

import asyncio
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import ssmoe_embed

pytest.importorskip("fastapi", reason="the server needs the extra `serve`")
pytest.importorskip("uvicorn", reason="the server needs the extra `serve`")

from serving import NAME, URL, post, serving, vectors_of

from ssmoe_embed.serving.app import create_app
from ssmoe_embed.serving.batching import Batcher
from ssmoe_embed.serving.refusals import RequestError, ServerLimits


@pytest.fixture(scope="module")
def model(built):
    return ssmoe_embed.load(built, progress=False)


def held(model, monkeypatch):
    """Let the model wait when it encodes: an event that it has begun, and one that lets it go on."""
    begun, release = threading.Event(), threading.Event()
    original = type(model).encode

    def slow(self, *args, **kwargs):
        begun.set()
        assert release.wait(60)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "encode", slow)
    return begun, release


def test_concurrent_requests_share_forward_passes_and_each_gets_its_own_vectors(model, texts, monkeypatch):
    """The first request holds the model until all others wait; those then take a handful of passes."""
    app = create_app(model, name=NAME, limits=ServerLimits(batch_size=16))
    expected = model.encode(texts)
    sizes, release, begun = [], threading.Event(), threading.Event()
    original = type(model).encode

    def counting(self, inputs, *args, **kwargs):
        sizes.append(len(inputs))
        begun.set()
        assert release.wait(60)
        return original(self, inputs, *args, **kwargs)

    monkeypatch.setattr(type(model), "encode", counting)
    with serving(app) as client, ThreadPoolExecutor(len(texts)) as pool:
        first = pool.submit(post, client, texts[0])
        assert begun.wait(60)
        rest = [pool.submit(post, client, text) for text in texts[1:]]
        while client.get("/health").json()["waiting"] < len(texts):
            pass
        release.set()
        vectors = np.concatenate([vectors_of(answer.result()) for answer in [first, *rest]])
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert sum(sizes) == len(texts)
    assert len(sizes) <= 1 + -(-(len(texts) - 1) // 16)


def test_a_full_queue_answers_429_and_says_when_to_come_again(model, monkeypatch):
    begun, release = held(model, monkeypatch)
    app = create_app(model, name=NAME, limits=ServerLimits(max_waiting=3, max_inputs=3))
    with serving(app) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, client, ["a", "b"])
        assert begun.wait(60)
        refused = post(client, ["c", "d"])
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"
        assert client.get("/health").status_code == 200
        release.set()
        assert first.result().status_code == 200
        assert post(client, ["c", "d"]).status_code == 200


def test_a_request_whose_client_has_gone_frees_its_place(model, monkeypatch):
    release, begun = threading.Event(), threading.Event()
    original, encoded = type(model).encode, []

    def slow(self, texts, *args, **kwargs):
        encoded.extend(texts)
        begun.set()
        assert release.wait(60)
        return original(self, texts, *args, **kwargs)

    monkeypatch.setattr(type(model), "encode", slow)
    with (
        serving(create_app(model, name=NAME, limits=ServerLimits(batch_size=1))) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        first = pool.submit(post, client, "first")
        assert begun.wait(60)
        body = json.dumps({"model": NAME, "input": ["never"] * 9}).encode()
        head = f"POST {URL} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as connection:
            connection.sendall(head + body)
            while client.get("/health").json()["waiting"] < 10:
                pass
        while client.get("/health").json()["waiting"] > 1:  # the model is still at the first request
            pass
        release.set()
        assert first.result().status_code == 200
        assert post(client, "last").status_code == 200
    assert encoded == ["first", "last"]


def test_a_short_request_does_not_wait_for_the_whole_of_a_long_one(model):
    async def race():
        batcher = Batcher(model, ServerLimits(batch_size=2, wait=0))
        batcher.start()
        finished = []

        async def ask(name, texts):
            await batcher.encode(texts)
            finished.append(name)

        await asyncio.gather(ask("long", [f"text {number}" for number in range(40)]), ask("short", ["hello"]))
        await batcher.stop()
        return finished

    assert asyncio.run(race()) == ["short", "long"]


def test_one_requests_error_is_not_its_neighbours(model, monkeypatch):
    original = type(model).encode

    def fragile(self, inputs, *args, **kwargs):
        if "poison" in inputs:
            raise ValueError("cannot")
        return original(self, inputs, *args, **kwargs)

    monkeypatch.setattr(type(model), "encode", fragile)

    async def both():
        batcher = Batcher(model, ServerLimits(wait=0.5, batch_size=2))
        batcher.start()
        results = await asyncio.gather(batcher.encode(["poison"]), batcher.encode(["fine"]), return_exceptions=True)
        await batcher.stop()
        return results

    bad, good = asyncio.run(both())
    assert isinstance(bad, ValueError)
    np.testing.assert_allclose(good.vectors, model.encode(["fine"]), atol=1e-5)


def test_what_waits_is_refused_when_the_server_stops(model, monkeypatch):
    begun, release = held(model, monkeypatch)

    async def stop():
        batcher = Batcher(model, ServerLimits(batch_size=1, wait=0))
        batcher.start()
        first, second = (asyncio.ensure_future(batcher.encode([text])) for text in "ab")
        await asyncio.to_thread(begun.wait, 60)
        asyncio.get_running_loop().call_later(0.01, release.set)
        await batcher.stop()
        return await asyncio.wait_for(asyncio.gather(first, second, return_exceptions=True), 30)

    results = asyncio.run(stop())
    assert all(isinstance(result, RequestError) and result.status == 503 for result in results)
