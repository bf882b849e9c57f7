"""The embeddings endpoint: vectors of model.encode, batches of concurrent requests, refusals that say why."""

import asyncio
import base64
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

import ssmoe_embed

pytest.importorskip("fastapi", reason="the server needs the extra `serve`")
pytest.importorskip("uvicorn", reason="the server needs the extra `serve`")

from serving import raw_request, serving

from ssmoe_embed.serving.app import create_app
from ssmoe_embed.serving.batching import Batcher
from ssmoe_embed.serving.errors import RequestError
from ssmoe_embed.serving.limits import Limits
from ssmoe_embed.serving.server import listen
from ssmoe_embed.serving.tokens import count_tokens

NAME = "ssmoe/test"
URL = "/v1/embeddings"


@pytest.fixture(scope="module")
def model(built):
    return ssmoe_embed.load(built, progress=False)


@pytest.fixture(scope="module")
def client(model):
    limits = Limits(batch_size=4, max_inputs=60, max_waiting=500, max_body=20_000)
    with serving(create_app(model, name=NAME, limits=limits)) as client:
        yield client


def post(client, texts, **fields):
    return client.post(URL, json={"model": NAME, "input": texts} | fields)


def vectors_of(response):
    assert response.status_code == 200, response.text
    return np.array([row["embedding"] for row in response.json()["data"]], dtype=np.float32)


def test_vectors_are_those_of_encode_in_the_order_of_the_texts(client, model, texts):
    response = post(client, texts)
    np.testing.assert_allclose(vectors_of(response), model.encode(texts), atol=1e-5)
    answer = response.json()
    assert [row["index"] for row in answer["data"]] == list(range(len(texts)))
    assert (answer["object"], answer["model"]) == ("list", NAME)
    tokens = sum(int(model.preprocess([text])["attention_mask"].sum()) for text in texts)
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


def test_one_string_is_one_text(client, model):
    np.testing.assert_allclose(vectors_of(post(client, "hello world")), model.encode(["hello world"]), atol=1e-5)


def test_base64_holds_the_same_numbers_to_the_bit(client):
    [row] = post(client, "hello world", encoding_format="base64").json()["data"]
    floats = vectors_of(post(client, "hello world", encoding_format="float"))
    assert np.array_equal(np.frombuffer(base64.b64decode(row["embedding"]), "<f4"), floats[0])


def test_dimensions_keeps_the_first_numbers(client, model):
    short = vectors_of(post(client, "hello world", dimensions=7))
    np.testing.assert_allclose(short, model.encode(["hello world"], truncate_dim=7), atol=1e-5)


def test_normalized_vectors_have_length_one_also_when_cut(model):
    with serving(create_app(model, name=NAME, normalize=True)) as client:
        whole, cut = (
            vectors_of(post(client, ["a", "hello world"])),
            vectors_of(post(client, "hello world", dimensions=5)),
        )
    np.testing.assert_allclose(whole, model.encode(["a", "hello world"], normalize_embeddings=True), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(cut, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("text", [" ", "\n", "\u0000", "\ud800", "🙂" * 50, "word " * 3000])
def test_odd_texts_get_finite_vectors(client, text):
    body = json.dumps({"model": NAME, "input": text}).encode()  # escapes, as httpx cannot send half a surrogate pair
    vectors = vectors_of(client.post(URL, content=body))
    assert vectors.shape[0] == 1
    assert np.isfinite(vectors).all()


BAD = [
    ({"input": []}, 400, "empty array"),
    ({"input": ""}, 400, "empty string"),
    ({"input": ["a", ""]}, 400, "input[1] is an empty string"),
    ({"input": None}, 400, "input is missing"),
    ({"input": 3}, 400, "JSON number"),
    ({"input": {"text": "a"}}, 400, "JSON object"),
    ({"input": ["a", None]}, 400, "input[1] is a JSON null"),
    ({"input": ["a", True]}, 400, "input[1] is a JSON boolean"),
    ({"input": [1, 2, 3]}, 400, "token numbers"),
    ({"input": [[1, 2], [3]]}, 400, "token numbers"),
    ({"input": ["a"] * 61}, 400, "at most 60"),
    ({"input": "a", "model": "gpt-embed"}, 404, "'gpt-embed'"),
    ({"input": "a", "model": None}, 400, "model is missing"),
    ({"input": "a", "model": ["x"]}, 400, "model is missing"),
    ({"input": "a", "encoding_format": "int8"}, 400, "'base64'"),
    ({"input": "a", "encoding_format": ["float"]}, 400, "'base64'"),
    ({"input": "a", "dimensions": 0}, 400, "from 1 to"),
    ({"input": "a", "dimensions": 10**9}, 400, "from 1 to"),
    ({"input": "a", "dimensions": True}, 400, "from 1 to"),
    ({"input": "a", "dimensions": "8"}, 400, "from 1 to"),
]


@pytest.mark.parametrize(("fields", "status", "message"), BAD)
def test_a_bad_request_is_refused_with_its_reason(client, fields, status, message):
    response = client.post(URL, json={"model": NAME} | fields)
    assert response.status_code == status
    error = response.json()["error"]
    assert message in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1]", b'"text"', b"\xff\xfe", b'{"input": ' + b"9" * 6000 + b"}", b"[" * 9000]
)
def test_a_body_that_is_no_json_object_is_refused(client, body):
    response = client.post(URL, content=body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_json"


def test_a_long_body_is_refused_before_it_is_read(client):
    head = f"POST {URL} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999"
    assert raw_request(client, head).startswith("HTTP/1.1 413")  # not one byte of the body was sent
    pieces = (b" " * 1000 for _ in range(1000))  # a stream that announces no length
    assert client.post(URL, content=pieces).status_code == 413
    assert post(client, "the server goes on").status_code == 200


def test_other_addresses_and_methods_have_errors_of_the_same_form(client):
    assert client.get("/v1/nothing").json()["error"]["message"] == "GET /v1/nothing: Not Found."
    assert client.get(URL).status_code == 405
    assert client.get("/").status_code == 404
    assert client.get("/v1/models/other").status_code == 404


def test_models_and_health_say_what_is_served(client, model):
    assert [one["id"] for one in client.get("/v1/models").json()["data"]] == [NAME]
    assert client.get(f"/v1/models/{NAME}").json()["object"] == "model"
    health = client.get("/health").json()
    assert (health["status"], health["dimension"]) == ("ok", model.get_embedding_dimension())
    assert health["waiting"] == 0


def test_concurrent_requests_share_forward_passes_and_each_gets_its_own_vectors(model, texts, monkeypatch):
    """The first request holds the model until all others wait; those then take a handful of passes."""
    app = create_app(model, name=NAME, limits=Limits(batch_size=16))
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
    release, begun = threading.Event(), threading.Event()
    original = type(model).encode

    def slow(self, *args, **kwargs):
        begun.set()
        assert release.wait(60)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "encode", slow)
    app = create_app(model, name=NAME, limits=Limits(max_waiting=3, max_inputs=3))
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
    with serving(create_app(model, name=NAME, limits=Limits(batch_size=1))) as client, ThreadPoolExecutor(1) as pool:
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
        batcher = Batcher(model, Limits(batch_size=2, wait=0))
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
        batcher = Batcher(model, Limits(wait=0.5, batch_size=2))
        batcher.start()
        results = await asyncio.gather(batcher.encode(["poison"]), batcher.encode(["fine"]), return_exceptions=True)
        await batcher.stop()
        return results

    bad, good = asyncio.run(both())
    assert isinstance(bad, ValueError)
    np.testing.assert_allclose(good.vectors, model.encode(["fine"]), atol=1e-5)


def test_vectors_that_are_not_finite_are_an_error_and_no_json_that_nobody_can_read(model, monkeypatch):
    monkeypatch.setattr(type(model), "encode", lambda self, texts, **_: np.full((len(texts), 3), np.nan))
    with serving(create_app(model, name=NAME)) as client:
        response = post(client, "a")
    assert response.status_code == 500
    assert "not finite" in response.json()["error"]["message"]


def test_what_waits_is_refused_when_the_server_stops(model, monkeypatch):
    release, begun = threading.Event(), threading.Event()
    original = type(model).encode

    def slow(self, *args, **kwargs):
        begun.set()
        assert release.wait(60)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "encode", slow)

    async def stop():
        batcher = Batcher(model, Limits(batch_size=1, wait=0))
        batcher.start()
        first, second = (asyncio.ensure_future(batcher.encode([text])) for text in "ab")
        await asyncio.to_thread(begun.wait, 60)
        asyncio.get_running_loop().call_later(0.01, release.set)
        await batcher.stop()
        return await asyncio.wait_for(asyncio.gather(first, second, return_exceptions=True), 30)

    results = asyncio.run(stop())
    assert all(isinstance(result, RequestError) and result.status == 503 for result in results)


def test_pages_of_other_sites_and_rebound_names_are_refused(model):
    with serving(create_app(model, name=NAME, hosts=("localhost", "127.0.0.1", "::1"))) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/health", headers={"host": "localhost:99"}).status_code == 200
        assert client.get("/health", headers={"host": "[::1]:99"}).status_code == 200
        assert client.get("/health", headers={"host": "evil.example"}).status_code == 403
        assert client.get("/health", headers={"host": "[bad"}).status_code == 403
        other_site = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
        assert client.post(URL, json={"model": NAME, "input": "a"}, headers=other_site).status_code == 403


def test_the_openai_client_gets_the_vectors(client, model):
    openai = pytest.importorskip("openai", reason="the client of OpenAI is not installed")
    remote = openai.OpenAI(
        base_url=f"{client.base_url}/v1".replace("//v1", "/v1"),
        api_key="none",
        max_retries=0,
        http_client=httpx.Client(trust_env=False),
    )
    answer = remote.embeddings.create(model=NAME, input=["hello world", "café"])
    vectors = [row.embedding for row in answer.data]
    np.testing.assert_allclose(vectors, model.encode(["hello world", "café"]), atol=1e-5)
    assert answer.usage.prompt_tokens == sum(count_tokens(model, ["hello world", "café"]))
    assert [one.id for one in remote.models.list()] == [NAME]
    with pytest.raises(openai.BadRequestError, match="empty array"):
        remote.embeddings.create(model=NAME, input=[])
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        remote.embeddings.create(model="other", input="a")


def test_an_ensemble_of_prompts_counts_the_tokens_of_all(built):
    ensemble = ssmoe_embed.load(built, progress=False, prompt="metaeol", calibration="none")
    [together] = count_tokens(ensemble, ["hello"])
    assert together == int(ensemble.preprocess(["hello"])["attention_mask"].sum())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "at least 1"),
        ({"wait": 2}, "outside"),
        ({"max_waiting": 10, "max_inputs": 20}, "raise max_waiting"),
    ],
)
def test_senseless_limits_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Limits(**changes)


# --- the command -------------------------------------------------------------------------------------------------------


def test_the_command_serves_an_index_until_it_is_stopped(model, built, environment, tmp_path):
    pytest.importorskip("faiss", reason="an index needs the extra `faiss`")
    from ssmoe_embed.retrieval.documents import Document
    from ssmoe_embed.retrieval.index import SemanticIndex

    index = SemanticIndex.create(tmp_path / "index", model, reference={"name": str(built), "settings": {}})
    index.add([Document("a", "the cat"), Document("b", "a soup")], progress=False)
    main = "from ssmoe_embed.cli import main; main()"
    command = [sys.executable, "-c", main, "serve", str(tmp_path / "index"), "--port", "0", "--name", "mine", "--quiet"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            [address] = re.findall(r"^Serving mine on (http://127\.0\.0\.1:\d+)$", process.stderr.readline())
            with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
                answer = client.post(URL, json={"model": "mine", "input": "hello"})
                np.testing.assert_allclose(vectors_of(answer), model.encode(["hello"]), atol=1e-5)
                hits = client.get("/api/search", params={"q": "soup", "top": 2}).json()["hits"]
                assert [hit["id"] for hit in hits] == [hit.document.id for hit in index.search("soup", 2)]
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
            assert process.stderr.read() == ""
        finally:
            process.kill()


def test_an_address_that_is_taken_is_told_before_anything_is_loaded(monkeypatch, capsys):
    from ssmoe_embed.cli.app import main

    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        arguments = ["ssmoe", "serve", "--model", "no/such/model", "--port", str(taken.getsockname()[1])]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit):
            main()
    assert "choose another with --host and --port" in " ".join(capsys.readouterr().err.split())


def test_the_package_does_not_import_what_only_serving_or_a_cluster_need(environment):
    code = "import sys, ssmoe_embed, ssmoe_embed.cli; print([m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["fastapi", "starlette", "uvicorn", "ray", "faiss", "umap"]
    found = subprocess.run(
        [sys.executable, "-c", code, *heavy], env=environment, check=True, capture_output=True, text=True
    )
    assert found.stdout.strip() == "[]"
