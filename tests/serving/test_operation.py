"""Running a server: its key, its numbers, clients that hang up."""

import json
import socket

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the server needs the extra `serve`")
pytest.importorskip("uvicorn", reason="the server needs the extra `serve`")
pytest.importorskip("faiss", reason="an index needs the extra `faiss`")

from prometheus_client.parser import text_string_to_metric_families
from serving import NAME, URL, post, serving, vectors_of

from ssmoe_embed.serving.app import create_app
from ssmoe_embed.serving.refusals import ServerLimits

KEY = "s3crét"


def numbers(client):
    """The server's numbers by name and labels, read by Prometheus' own reader."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {(one.name, tuple(sorted(one.labels.items()))): one.value for family in families for one in family.samples}


def requests(path, status, method="POST"):
    return "ssmoe_request_seconds_count", (("method", method), ("path", path), ("status", str(status)))


# --- the key ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked(model, index):
    with serving(create_app(model, name=NAME, corpus=index, api_key=KEY, map_size=0)) as client:
        yield client


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models",
        "/api/search?q=a",
        "/api/document?id=d1",
        "/api/info",
        "/api/map",
        "/metrics",
        "/nothing",
        "/health/x",
    ],
)
@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer s3cr", f"bearer {KEY}x", f"Basic {KEY}", KEY])
def test_without_the_key_nothing_is_told(path, given, locked):
    headers = {} if given is None else {"authorization": given.encode()}
    response = locked.get(path, headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["code"] == "invalid_api_key"


def test_with_the_key_everything_is(locked, model):
    headers = {"authorization": f"Bearer {KEY}".encode()}
    response = locked.post(URL, json={"model": NAME, "input": "hello"}, headers=headers)
    np.testing.assert_allclose(vectors_of(response), model.encode(["hello"]), atol=1e-5)
    assert locked.get("/api/search?q=a", headers=headers).status_code == 200


def test_the_page_and_the_health_need_no_key(locked):
    assert locked.get("/health").status_code == 200
    assert locked.get("/").status_code == 200


@pytest.mark.extras
def test_the_openai_client_sends_the_key(model):
    openai = pytest.importorskip("openai", reason="the client of OpenAI is not installed")
    import httpx

    with serving(create_app(model, name=NAME, api_key="plain", map_size=0)) as client:  # it sends no key but in ASCII

        def remote(key):
            http = httpx.Client(trust_env=False)
            base_url = f"{client.base_url}/v1".replace("//v1", "/v1")
            return openai.OpenAI(base_url=base_url, api_key=key, max_retries=0, http_client=http)

        assert [one.id for one in remote("plain").models.list()] == [NAME]
        with pytest.raises(openai.AuthenticationError, match="api_key="):
            remote("wrong").models.list()


# --- numbers ------------------------------------------------------------------------------------------------------------


def test_metrics_count_requests_texts_tokens_and_batches(model, index):
    app = create_app(model, name=NAME, corpus=index, limits=ServerLimits(batch_size=4), map_size=0)
    with serving(app) as client:
        texts = [f"text {number}" for number in range(10)]
        used = post(client, texts).json()["usage"]["prompt_tokens"]
        post(client, [])
        for name in ("a", "b"):
            client.get(f"/invented/{name}")
            client.get(f"/v1/models/{name}")
        found = numbers(client)
    assert found[requests(URL, 200)] == 1
    assert found[requests(URL, 400)] == 1
    assert found[requests("/v1/models/{wanted:path}", 404, "GET")] == 2
    assert found[requests("other", 404, "other")] == 2
    assert found["ssmoe_texts_total", ()] == 10
    assert found["ssmoe_tokens_total", ()] == used
    assert found["ssmoe_batch_texts_count", ()] == 3
    assert found["ssmoe_batch_texts_sum", ()] == 10
    assert found["ssmoe_model_seconds_total", ()] > 0
    assert found["ssmoe_texts_waiting", ()] == 0
    assert found["ssmoe_documents", ()] == len(index)


# --- clients that hang up -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True])
def test_a_client_that_hangs_up_in_its_body_is_no_error_in_the_log(chunked, model, capsys):
    body = json.dumps({"model": NAME, "input": ["never"] * 9})
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
    part = f"{len(body):x}\r\n{body[:20]}" if chunked else body[:20]
    with serving(create_app(model, name=NAME), log_level="info") as client:
        with socket.create_connection((client.base_url.host, client.base_url.port), timeout=30) as connection:
            connection.sendall(f"POST {URL} HTTP/1.1\r\nHost: localhost\r\n{length}\r\n\r\n{part}".encode())
        while requests(URL, 499) not in numbers(client):
            pass
        assert post(client, "the server goes on").status_code == 200
    told = capsys.readouterr()
    assert "Traceback" not in told.err + told.out
    assert "ERROR" not in told.err + told.out
