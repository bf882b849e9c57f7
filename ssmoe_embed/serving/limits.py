"""How much a server takes on before it says no."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerLimits:
    """What a server accepts, and how it batches.

    Attributes:
        batch_size: Texts a forward pass.
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
