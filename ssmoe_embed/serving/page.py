"""The web page: one document, nothing loaded from anywhere, and a policy that holds it to that."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True)
class Page:
    """The page as it is sent.

    Attributes:
        html: The whole of it, style and script inside.
        policy: Its Content-Security-Policy: this very style and script, and requests to this server only.
    """

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
        "img-src": "data:",
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
