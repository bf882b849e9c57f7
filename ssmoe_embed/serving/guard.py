"""Who may talk to the server: no page of another site, and no name that merely points to this machine."""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ssmoe_embed.serving.errors import RequestError

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Refuses requests that a browser sends for another site, and adds headers that keep answers what they are.

    A server on the loopback address is no secret to browsers: a page of any site can send requests to it, and with a name
    that resolves to 127.0.0.1 even read the answers. So the Host header must be one of the allowed names.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None) -> None:
        """Wrap an application.

        Args:
            app: The ASGI application.
            hosts: Names that the Host header may have; None for any.
        """
        self._app = app
        self._hosts = None if hosts is None else {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(Headers(scope=scope))

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("Referrer-Policy", "no-referrer")
                headers.setdefault("Cache-Control", "no-store")
                headers.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
            await send(message)

        answer = self._app if refusal is None else JSONResponse(refusal.body(), refusal.status)
        await answer(scope, receive, send_with_headers)

    def _refusal(self, headers: Headers) -> RequestError | None:
        """Why a request with these headers is refused, if it is."""
        host = _name(headers.get("host", ""))
        if self._hosts is not None and host not in self._hosts:
            message = f"The Host header names {host!r}; this server is reached as {', '.join(sorted(self._hosts))}."
            return RequestError(403, message, code="host_not_allowed")
        if headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate":
            return RequestError(403, "Pages of other sites may not send requests here.", code="cross_site")
        return None


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
