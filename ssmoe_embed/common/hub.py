"""How files are fetched from the Hugging Face hub: one value, handed on by whatever loads a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypedDict


class HubKeywords(TypedDict, total=False):
    """The keywords by which functions of this package take `HubOptions`, for editors and type checkers."""

    revision: str | None
    token: bool | str | None
    cache_folder: str | Path | None
    local_files_only: bool
    trust_remote_code: bool


@dataclass(frozen=True)
class HubOptions:
    """How a model's files are fetched.

    Attributes:
        revision: Branch, tag or commit; None for the default branch.
        token: For private models; None for the one that the user has logged in with.
        cache_folder: Where downloads are kept; None for the hub's own place.
        local_files_only: Never ask the hub: a folder, or what was downloaded before.
        trust_remote_code: Allow code that comes with a model.
    """

    revision: str | None = None
    token: bool | str | None = field(default=None, repr=False)
    cache_folder: str | Path | None = None
    local_files_only: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.cache_folder is not None:
            object.__setattr__(self, "cache_folder", str(Path(self.cache_folder).expanduser()))

    @classmethod
    def taken_from(cls, keywords: dict[str, Any]) -> HubOptions:
        """The options among keywords, which are taken out of them."""
        return cls(**{one.name: keywords.pop(one.name) for one in fields(cls) if one.name in keywords})

    @classmethod
    def among(cls, keywords: Mapping[str, Any]) -> HubOptions:
        """The options among keywords, which stay as they are."""
        return cls.taken_from(dict(keywords))

    @property
    def files(self) -> dict[str, Any]:
        """Keywords of the hub's own functions."""
        return {
            "revision": self.revision,
            "token": self.token,
            "cache_dir": self.cache_folder,
            "local_files_only": self.local_files_only,
        }

    @property
    def loading(self) -> dict[str, Any]:
        """Keywords of transformers' `from_pretrained`."""
        return self.files | {"trust_remote_code": self.trust_remote_code}

    @property
    def keywords(self) -> dict[str, Any]:
        """Keywords of this package's functions, and of sentence-transformers'."""
        return {one.name: getattr(self, one.name) for one in fields(self)}
