"""Letting every `SentenceTransformer` load models that name a class of this package as their module.

Sentence-transformers imports module classes of other packages only with `trust_remote_code=True`, to keep a model's
files from choosing what code runs. Whoever has imported this package has made that choice for its own classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from ssmoe_embed.data import bundled_folder

_OWN = {
    "ssmoe_embed.SSMoE": "ssmoe_embed.embedding.module",
    "ssmoe_embed.SSMoEVision": "ssmoe_embed.vision.module",
}
"""What a saved model's modules.json calls a class, and the module that defines it."""


class _ModuleClasses(Mapping[str, Any]):
    """Module classes by the name in modules.json: those that were known before, and this package's, imported on use."""

    def __init__(self, others: Mapping[str, Any]) -> None:
        self.others = others

    def __getitem__(self, name: str) -> Any:
        if name not in _OWN:
            return self.others[name]
        return getattr(import_module(_OWN[name]), name.rpartition(".")[2])

    def __iter__(self) -> Iterator[str]:
        yield from {**self.others, **_OWN}

    def __len__(self) -> int:
        return len({**self.others, **_OWN})


def register(sentence_transformers: ModuleType) -> None:
    """Make the classes and the bundled models known to an imported sentence-transformers; twice does no more than once."""
    plain = sentence_transformers.SentenceTransformer
    known = plain._module_classes  # there is no public registry
    if not isinstance(known, _ModuleClasses):
        plain._module_classes = _ModuleClasses(known)
        plain.__init__ = _with_the_bundled_models(plain.__init__)


def _with_the_bundled_models(init: Callable[..., None]) -> Callable[..., None]:
    """`SentenceTransformer.__init__`, to which a bundled model's name is its folder, unless there is one of that name."""

    @wraps(init)
    def named(self: Any, model_name_or_path: str | None = None, *args: Any, **kwargs: Any) -> None:
        bundled = None if model_name_or_path is None else bundled_folder(str(model_name_or_path))
        if bundled is not None and not Path(str(model_name_or_path)).is_dir():
            model_name_or_path = str(bundled)
        init(self, model_name_or_path, *args, **kwargs)

    return named
