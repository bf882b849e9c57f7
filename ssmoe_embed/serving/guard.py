"""Who may talk to the server: who has the key, no page of another site, no name that merely points to this machine."""

from __future__ import annotations

from collections.abc import Collection
from hmac import compare_digest
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ssmoe_embed.serving.refusals import RequestError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_OPEN = ("/", "/health")
"""What is answered without a key: the empty page, and whether the server lives."""


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Refuses requests without the key and those that a browser sends for another site; adds headers that keep answers so.

    A server on the loopback address is no secret to browsers: a page of any site can send requests to it, and with a name
    that resolves to 127.0.0.1 even read the answers. So the Host header must be one of the allowed names. (Starlette's
    TrustedHostMiddleware says so in plain text, which OpenAI's clients cannot read, and before 1.0 refuses `[::1]`.)
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None, key: str | None = None) -> None:
        """Wrap an application.

        Args:
            app: The ASGI application.
            hosts: Names that the Host header may have; None for any.
            key: What `Authorization: Bearer …` must say; None for no key.
        """
        self._app = app
        self._hosts = None if hosts is None else {host.lower() for host in hosts}
        self._key = None if key is None else f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(Headers(scope=scope), scope["path"])

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("Referrer-Policy", "no-referrer")
                headers.setdefault("Cache-Control", "no-store")
                headers.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
            await send(message)

        answer = self._app if refusal is None else JSONResponse(refusal.body(), refusal.status, refusal.headers)
        await answer(scope, receive, send_with_headers)

    def _refusal(self, headers: Headers, path: str) -> RequestError | None:
        """Why a request with these headers is refused, if it is."""
        host = _name(headers.get("host", ""))
        if self._hosts is not None and host not in self._hosts:
            message = f"The Host header names {host!r}; this server is reached as {', '.join(sorted(self._hosts))}."
            return RequestError(403, message, code="host_not_allowed")
        if headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate":
            return RequestError(403, "Pages of other sites may not send requests here.", code="cross_site")
        given = headers.get("authorization", "").encode("latin-1")
        if self._key is not None and path not in _OPEN and not compare_digest(given, self._key):
            return RequestError(
                401,
                "This server asks for its key; send it as `Authorization: Bearer KEY` (OpenAI's clients: api_key=).",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return None


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
