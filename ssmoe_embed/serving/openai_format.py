"""The requests and answers of OpenAI's embeddings endpoint.

Format: https://platform.openai.com/docs/api-reference/embeddings
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

from ssmoe_embed.common.choices import Choice
from ssmoe_embed.serving.batching import Encoded, unit
from ssmoe_embed.serving.refusals import RequestError, ServerLimits, bad_value


class EncodingFormat(Choice):
    """How an answer writes a vector."""

    FLOAT = "float"
    """A JSON array."""
    BASE64 = "base64"
    """Little-endian float32, in base64."""


@dataclass(frozen=True)
class EmbeddingRequest:
    """A request that was found to be right.

    Attributes:
        texts: What to encode, at least one and none empty.
        encoding: How to write the vectors.
        dimensions: How many numbers of each vector to keep, or all.
    """

    texts: tuple[str, ...]
    encoding: EncodingFormat
    dimensions: int | None


def parse_request(body: bytes, *, model: str, dimension: int, limits: ServerLimits) -> EmbeddingRequest:
    """Read and check the body of a request; fields that only OpenAI knows, such as `user`, are ignored.

    Args:
        body: The bytes received.
        model: The name of the one model that is served.
        dimension: Numbers of its vectors.
        limits: See `ServerLimits`.

    Raises:
        RequestError: The body is not what it should be (400) or names another model (404).
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON, or a number of thousands of digits
        raise RequestError(400, f"The body is not valid JSON: {error}.", code="invalid_json") from None
    if not isinstance(fields, dict):
        raise RequestError(400, f"The body is a JSON {_kind(fields)}; send an object.", code="invalid_json")
    _check_model(fields.get("model"), model)
    texts = _texts(fields.get("input"), limits)
    encoding = EncodingFormat.FLOAT
    if fields.get("encoding_format") is not None:
        try:
            encoding = EncodingFormat.parse(fields["encoding_format"], "encoding_format")
        except ValueError as error:
            raise bad_value(str(error), "encoding_format") from None
    dimensions = fields.get("dimensions")
    possible = isinstance(dimensions, int) and not isinstance(dimensions, bool) and 1 <= dimensions <= dimension
    if dimensions is not None and not possible:
        raise bad_value(
            f"dimensions={json.dumps(dimensions)} is not possible; choose an integer from 1 to {dimension}.",
            "dimensions",
        )
    return EmbeddingRequest(texts, encoding, dimensions)


def answer(request: EmbeddingRequest, encoded: Encoded, model: str, *, normalize: bool) -> bytes:
    """The JSON of the answer; with `normalize`, vectors that are cut by `dimensions` are scaled to length 1 again."""
    vectors = encoded.vectors[:, : request.dimensions]
    if normalize and request.dimensions is not None:
        vectors = unit(vectors)
    rows: list[Any]
    if request.encoding is EncodingFormat.BASE64:
        rows = [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors]
    else:
        rows = vectors.tolist()
    data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
    usage = {"prompt_tokens": encoded.tokens, "total_tokens": encoded.tokens}
    return json.dumps({"object": "list", "data": data, "model": model, "usage": usage}).encode()


def models(model: str, created: int) -> dict[str, Any]:
    """The list of models: the one that is served, since the server began, in seconds since 1970."""
    return {"object": "list", "data": [{"id": model, "object": "model", "created": created, "owned_by": "ssmoe_embed"}]}


def _check_model(name: object, served: str) -> None:
    if not isinstance(name, str) or not name:
        raise bad_value(f"model is missing; this server has {served!r}.", "model", "missing_model")
    if name != served:
        raise RequestError(
            404,
            f"There is no model {name!r} here; this server has {served!r} (`ssmoe serve --name` gives it another name).",
            param="model",
            code="model_not_found",
        )


def _texts(given: object, limits: ServerLimits) -> tuple[str, ...]:
    """The texts of the field `input`."""
    if given is None:
        raise bad_value("input is missing; send a string or an array of strings.", "input", "missing_input")
    if not isinstance(given, str | list):
        raise bad_value(f"input is a JSON {_kind(given)}; send a string or an array of strings.", "input")
    texts: list[object] = [given] if isinstance(given, str) else given
    if not texts:
        raise bad_value("input is an empty array; send at least one string.", "input", "empty_input")
    if len(texts) > limits.max_inputs:
        raise bad_value(
            f"input has {len(texts)} strings and at most {limits.max_inputs} are taken at once; send several requests.",
            "input",
            "too_many_inputs",
        )
    return tuple(_text(text, position, isinstance(given, str)) for position, text in enumerate(texts))


def _text(text: object, position: int, alone: bool) -> str:
    """One text, which is not empty."""
    place = "input" if alone else f"input[{position}]"
    if isinstance(text, int | list) and not isinstance(text, bool):
        raise bad_value(
            f"{place} holds token numbers, which belong to another model's vocabulary; send text "
            "(in LangChain's OpenAIEmbeddings: check_embedding_ctx_length=False).",
            "input",
            "tokens_not_supported",
        )
    if not isinstance(text, str):
        raise bad_value(f"{place} is a JSON {_kind(text)}; send a string.", "input")
    if not text:
        raise bad_value(
            f"{place} is an empty string, which has no meaning to encode; leave it out.", "input", "empty_input"
        )
    return text


def _kind(value: object) -> str:
    """JSON's word for a value's type."""
    words = {type(None): "null", bool: "boolean", str: "string", list: "array", dict: "object"}
    return words.get(type(value), "number")
