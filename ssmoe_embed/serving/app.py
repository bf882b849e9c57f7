"""The application: which address answers what."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from collections.abc import AsyncIterator, Collection, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import cache
from importlib import resources
from typing import Annotated, Any, NamedTuple, TypeVar

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from sentence_transformers import SentenceTransformer
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ssmoe_embed.common.version import __version__
from ssmoe_embed.search.index import SemanticIndex
from ssmoe_embed.serving.batching import Batcher, Metrics, Timed
from ssmoe_embed.serving.maps import MapMaker
from ssmoe_embed.serving.openai_format import answer, models, parse_request
from ssmoe_embed.serving.refusals import Guard, RequestError, ServerLimits, bad_value, client_gone
from ssmoe_embed.serving.searching import (
    check_query,
    document_json,
    explanation,
    like_answer,
    one_document,
    search_answer,
    thumbnail,
)


class Page(NamedTuple):
    """The page, style and script inside, and its Content-Security-Policy: these very two, and requests to this server."""

    html: str
    policy: str


@cache
def page() -> Page:
    """The page put together from its three files."""
    folder = resources.files(__package__) / "assets"
    html, style, script = (
        folder.joinpath(name).read_text("utf-8") for name in ("index.html", "style.css", "script.js")
    )
    rules = {
        "default-src": "'none'",
        "script-src": _hash(script),
        "style-src": _hash(style),
        "connect-src": "'self'",
        "img-src": "'self' data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return Page(
        html=html.replace("/*style*/", style).replace("/*script*/", script),
        policy="; ".join(f"{name} {value}" for name, value in rules.items()),
    )


def _hash(content: str) -> str:
    """What the policy calls an inline element by: the hash of its content."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


ResultT = TypeVar("ResultT")
Filters = Annotated[Sequence[str], Query(alias="filter")]


def create_app(
    model: SentenceTransformer,
    *,
    name: str,
    corpus: SemanticIndex | None = None,
    limits: ServerLimits | None = None,
    normalize: bool = False,
    hosts: Collection[str] | None = None,
    api_key: str | None = None,
    map_size: int = 5000,
) -> FastAPI:
    """A web application around a model and, if given, a corpus.

    Args:
        model: Any sentence-transformers model.
        name: What clients call it.
        corpus: What `/api/search` and the page search.
        limits: See `ServerLimits`.
        normalize: Scale the vectors of `/v1/embeddings` to length 1.
        hosts: Names that a request's Host header may have; None for any.
        api_key: What clients must send to be answered; None for no key.
        map_size: The most documents on the map; 0 for no map.
    """
    limits = limits or ServerLimits()
    metrics = Metrics(name, __version__)
    batcher = Batcher(model, limits, normalize=normalize, metrics=metrics)
    maps = MapMaker(corpus, most=map_size) if corpus is not None and map_size else None

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        del app
        batcher.start()
        if maps is not None:
            maps.start()
        yield
        await batcher.stop()

    # no pages of documentation: those that FastAPI offers load scripts from elsewhere
    app = FastAPI(title="ssmoe", version=__version__, lifespan=life, docs_url=None, redoc_url=None)
    for kind in (RequestError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _error_answer)
    app.add_middleware(Guard, hosts=hosts, key=api_key)
    app.add_middleware(Timed, metrics=metrics)
    dimension = model.get_embedding_dimension() or 0
    _add_embeddings(app, name, dimension, batcher, limits)
    _add_page(app, name, corpus, maps)
    metrics.watch("ssmoe_texts_waiting", "Texts that wait for the model or are in it.", lambda: batcher.waiting)
    if corpus is not None:
        metrics.watch("ssmoe_documents", "Documents that can be found.", lambda: len(corpus))
        _add_search(app, corpus, batcher, maps, limits)

    @app.get("/metrics")
    async def show_metrics() -> Response:
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    @app.get("/health")
    async def show_health() -> dict[str, Any]:
        served = {"status": "ok", "model": name, "dimension": dimension, "version": __version__}
        documents = None if corpus is None else len(corpus)
        return served | {"documents": documents, "waiting": batcher.waiting, "map": maps.state if maps else "none"}

    app.state.maps = maps
    return app


async def _error_answer(request: Request, error: Exception) -> Response:
    """Every error in the one form."""
    if isinstance(error, HTTPException):
        message = f"{request.method} {request.url.path}: {error.detail}."
        return RequestError(error.status_code, message, headers=dict(error.headers or {})).answer()
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        param = str(first["loc"][-1])
        return bad_value(f"{param}: {first['msg']}.", param).answer()
    if not isinstance(error, RequestError):
        error = RequestError(500, f"{type(error).__name__}: {error}", code="internal_error")
    return error.answer()


def _add_embeddings(app: FastAPI, name: str, dimension: int, batcher: Batcher, limits: ServerLimits) -> None:
    """The part that OpenAI's clients talk to."""
    began = int(time.time())

    @app.post("/v1/embeddings")
    async def embed(request: Request) -> Response:
        body = await _body(request, limits.max_body)
        asked = await run_in_threadpool(parse_request, body, model=name, dimension=dimension, limits=limits)
        encoded = await _unless_gone(request, batcher.encode(asked.texts))
        content = await run_in_threadpool(answer, asked, encoded, name, normalize=batcher.normalize)
        return Response(content, media_type="application/json")

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return models(name, began)

    @app.get("/v1/models/{wanted:path}")
    async def one_model(wanted: str) -> dict[str, Any]:
        if wanted != name:
            raise RequestError(
                404, f"There is no model {wanted!r} here; this server has {name!r}.", code="model_not_found"
            )
        return models(name, began)["data"][0]


def _add_page(app: FastAPI, name: str, corpus: SemanticIndex | None, maps: MapMaker | None) -> None:
    """The page and what it asks for first."""

    @app.get("/")
    async def show_page() -> Response:
        if corpus is None:
            raise RequestError(404, "This server has no corpus to search; it answers POST /v1/embeddings.")
        return HTMLResponse(page().html, headers={"Content-Security-Policy": page().policy})

    @app.get("/api/info")
    async def info() -> dict[str, Any]:
        if corpus is None:
            return {"model": name}
        return {"model": name, "corpus": corpus.name, "documents": len(corpus)}

    @app.get("/api/map")
    def show_map() -> dict[str, Any]:
        if maps is None:
            return {"state": "none", "error": None}
        return {"state": maps.state, "error": maps.error} | (maps.made.as_dict() if maps.made else {})


def _add_search(
    app: FastAPI, corpus: SemanticIndex, batcher: Batcher, maps: MapMaker | None, limits: ServerLimits
) -> None:
    """Searching and looking up documents."""

    @app.get("/api/search")
    async def search(
        q: str, top: int = 10, filters: Filters = (), mode: str = "hybrid", snippets: bool = True
    ) -> dict[str, Any]:
        check_query(q, limits)
        if not 1 <= top <= limits.max_top:
            raise bad_value(f"top={top} is outside 1 to {limits.max_top}.", "top")
        made = maps.made if maps else None
        return await batcher.run(lambda: search_answer(corpus, made, q, top, filters, mode=mode, snippets=snippets))

    @app.post("/api/like")
    async def like(request: Request, top: int = 10, filters: Filters = ()) -> dict[str, Any]:
        if not 1 <= top <= limits.max_top:
            raise bad_value(f"top={top} is outside 1 to {limits.max_top}.", "top")
        image = await _body(request, limits.max_body)
        return await batcher.run(lambda: like_answer(corpus, image, top, filters))

    @app.get("/api/image")
    def image(id: str) -> Response:  # noqa: A002 (the name in the address)
        return Response(thumbnail(corpus, id), media_type="image/png", headers={"Cache-Control": "max-age=3600"})

    @app.get("/api/explain")
    async def explain(q: str, id: str) -> dict[str, Any]:  # noqa: A002 (the name in the address)
        check_query(q, limits)
        return await batcher.run(lambda: explanation(corpus, q, id))

    @app.get("/api/document")
    def document(id: str) -> dict[str, Any]:  # noqa: A002 (the name in the address)
        return document_json(one_document(corpus, id))


async def _unless_gone(request: Request, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """The result of work that is given up when the client hangs up, so that nobody waits for what nobody wants.

    Raises:
        RequestError: The client hung up.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise client_gone()
        return working.result()
    finally:
        working.cancel()
        watching.cancel()


async def _body(request: Request, most: int) -> bytes:
    """A request's body, which is refused as soon as it is known to be too long.

    Raises:
        RequestError: It is longer than `most` bytes (413), the Content-Length is no number (400), or the client has gone.
    """
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal():
        raise RequestError(400, f"Content-Length is {announced!r}; it must be a number.", code="invalid_header")
    message = f"The body is longer than {most} bytes; send several smaller requests."
    too_long = RequestError(413, message, code="body_too_large", headers={"Connection": "close"})
    if int(announced) > most:
        raise too_long
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > most:
                raise too_long
    except ClientDisconnect:
        raise client_gone() from None
    return bytes(body)
