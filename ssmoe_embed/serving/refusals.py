"""How much a server takes on, and its answer to what it refuses, in the form that OpenAI's clients read."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from hmac import compare_digest
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


@dataclass(frozen=True)
class ServerLimits:
    """What a server accepts, and how it batches.

    Attributes:
        batch_size: Texts per forward pass.
        wait: Seconds that a text waits for others to share its forward pass.
        max_waiting: Texts that may wait for the model; a request that would exceed it is answered 429.
        max_inputs: Texts of one request.
        max_body: Bytes of one request's body.
        max_query: Characters of one search.
        max_top: Documents of one search.
    """

    batch_size: int = 32
    wait: float = 0.004
    max_waiting: int = 8192
    max_inputs: int = 2048
    max_body: int = 8_000_000
    max_query: int = 10_000
    max_top: int = 100

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_waiting", "max_inputs", "max_body", "max_query", "max_top"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} lets nothing in; choose at least 1.")
        if not 0 <= self.wait <= 1:
            raise ValueError(f"wait={self.wait} is outside [0, 1] seconds; a few thousandths are usual.")
        if self.max_inputs > self.max_waiting:
            raise ValueError(
                f"max_inputs={self.max_inputs} is more than max_waiting={self.max_waiting}, so a full request could never "
                "be answered; raise max_waiting."
            )


class RequestError(Exception):
    """A request that is refused.

    Attributes:
        status: HTTP status.
        message: What is wrong, what is allowed, the next step.
        param: The field of the request that is wrong, if it is one.
        code: A short name that programs can look for.
        headers: Headers of the answer, such as `Retry-After`.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers or {}

    def answer(self) -> JSONResponse:
        """The answer, with its status and headers."""
        kinds = {404: "not_found_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}
        kind = kinds.get(self.status, "invalid_request_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return JSONResponse({"error": error}, self.status, self.headers)


def bad_value(message: str, param: str, code: str = "invalid_value") -> RequestError:
    """A field with a value that is not allowed: status 400."""
    return RequestError(400, message, param=param, code=code)


def client_gone() -> RequestError:
    """The client has hung up: status 499, which nobody reads."""
    return RequestError(499, "The client has closed the connection.", code="client_gone")


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

        The Host header must name one of the `hosts`, if there are any, and `Authorization` say `Bearer`, then the `key`, if
        there is one.
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

        answer = self._app if refusal is None else refusal.answer()
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
