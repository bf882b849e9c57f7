"""What a client did wrong, in the form that OpenAI's clients read."""

from __future__ import annotations

from typing import Any


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
