"""How much a server takes on, and its answer to what it refuses, in the form that OpenAI's clients read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


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

    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        kinds = {404: "not_found_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}
        kind = kinds.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def bad_value(message: str, param: str, code: str = "invalid_value") -> RequestError:
    """A field with a value that is not allowed: status 400."""
    return RequestError(400, message, param=param, code=code)


def too_busy(waiting: int, most: int, seconds: int) -> RequestError:
    """More texts than may wait: status 429, with the seconds after which to try again."""
    return RequestError(
        429,
        f"{waiting} texts are waiting for the model and at most {most} may; try again in {seconds} s.",
        code="queue_full",
        headers={"Retry-After": str(seconds)},
    )


def client_gone() -> RequestError:
    """The client has hung up: status 499, which nobody reads."""
    return RequestError(499, "The client has closed the connection.", code="client_gone")
