"""The embeddings endpoint: vectors of model.encode, batches of concurrent requests, refusals that say why."""

import base64
import json

import httpx
import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

import ssmoe_embed

pytest.importorskip("fastapi", reason="the server needs the extra `serve`")
pytest.importorskip("uvicorn", reason="the server needs the extra `serve`")

from serving import NAME, URL, post, raw_request, serving, vectors_of

from ssmoe_embed.serving.app import create_app
from ssmoe_embed.serving.batching import encode_and_count
from ssmoe_embed.serving.refusals import ServerLimits


@pytest.fixture(scope="module")
def model(built):
    return ssmoe_embed.load(built, progress=False)


@pytest.fixture(scope="module")
def client(model):
    limits = ServerLimits(batch_size=4, max_inputs=60, max_waiting=500, max_body=20_000)
    with serving(create_app(model, name=NAME, limits=limits)) as client:
        yield client


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


def test_vectors_that_are_not_finite_are_an_error_and_no_json_that_nobody_can_read(model, monkeypatch):
    broken = {"sentence_embedding": torch.full((3,), torch.nan)}
    monkeypatch.setattr(type(model), "encode", lambda self, texts, **_: [broken] * len(texts))
    with serving(create_app(model, name=NAME)) as client:
        response = post(client, "a")
    assert response.status_code == 500
    assert "not finite" in response.json()["error"]["message"]


def test_pages_of_other_sites_and_rebound_names_are_refused(model):
    with serving(create_app(model, name=NAME, hosts=("localhost", "127.0.0.1", "::1"))) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/health", headers={"host": "localhost:99"}).status_code == 200
        assert client.get("/health", headers={"host": "[::1]:99"}).status_code == 200
        assert client.get("/health", headers={"host": "evil.example"}).status_code == 403
        assert client.get("/health", headers={"host": "[bad"}).status_code == 403
        other_site = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
        assert client.post(URL, json={"model": NAME, "input": "a"}, headers=other_site).status_code == 403


@pytest.mark.extras
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
    assert answer.usage.prompt_tokens == int(model.preprocess(["hello world", "café"])["attention_mask"].sum())
    assert [one.id for one in remote.models.list()] == [NAME]
    with pytest.raises(openai.BadRequestError, match="empty array"):
        remote.embeddings.create(model=NAME, input=[])
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        remote.embeddings.create(model="other", input="a")


def test_tokens_are_counted_as_the_batch_was_read(built, texts):
    """Each text's own, whatever the order in which they are read, once for each prompt of an ensemble."""
    texts = texts[::7]
    for options in ({}, {"prompt": "metaeol", "calibration": "none"}):
        model = ssmoe_embed.load(built, progress=False, **options)
        vectors, tokens = encode_and_count(model, texts)
        np.testing.assert_allclose(vectors, model.encode(texts), atol=1e-5)
        assert tokens == [int(model.preprocess([text])["attention_mask"].sum()) for text in texts]
        assert "tokens_read" not in model.encode(["a"], output_value=None)[0], "counting goes on after the batch"


def test_tokens_of_a_static_model_are_counted_too(model):
    tokenizer = model.tokenizer.backend_tokenizer
    static = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu")
    texts = ["a", "hello world, here", "café au lait"]
    vectors, tokens = encode_and_count(static, texts)
    np.testing.assert_allclose(vectors, static.encode(texts), atol=1e-6)
    assert tokens == [len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]


def test_a_text_is_tokenized_once(model, monkeypatch):
    read, original = [], type(model.tokenizer).__call__

    def counting(self, texts, **options):
        read.extend(texts)
        return original(self, texts, **options)

    monkeypatch.setattr(type(model.tokenizer), "__call__", counting)
    with serving(create_app(model, name=NAME)) as client:
        assert post(client, ["hello", "world"]).status_code == 200
    assert sorted(read) == ["hello", "world"]


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
        ServerLimits(**changes)
