"""Embeddings: settings, the encoder, the module, its calibration and its files; and what lets others load such models.

Sentence-transformers imports module classes of other packages only with `trust_remote_code=True`, to keep a model's
files from choosing what code runs. Whoever has imported this package has made that choice for its own classes.
"""

from __future__ import annotations

from collections import ChainMap
from functools import wraps
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from ssmoe_embed.data import bundled_folder

_OWN = ("ssmoe_embed.SSMoE", "ssmoe_embed.SSMoEVision")
"""What a saved model's modules.json calls this package's classes."""


class _ModuleClasses(ChainMap[str, Any]):
    """Module classes by the name in modules.json: those that were known before, and this package's, imported on use."""

    def __getitem__(self, name: str) -> Any:
        if name not in _OWN:
            return super().__getitem__(name)
        package, _, own = name.rpartition(".")
        return getattr(import_module(package), own)


def register(sentence_transformers: ModuleType) -> None:
    """Make the classes and the bundled models known to an imported sentence-transformers; twice does no more than once."""
    plain = sentence_transformers.SentenceTransformer
    known = plain._module_classes  # there is no public registry
    if isinstance(known, _ModuleClasses):
        return
    init = plain.__init__

    @wraps(init)
    def named(self: Any, model_name_or_path: str | None = None, *args: Any, **kwargs: Any) -> None:
        """A bundled model's name is its folder, unless there is one of that name."""
        bundled = None if model_name_or_path is None else bundled_folder(str(model_name_or_path))
        if bundled is not None and not Path(str(model_name_or_path)).is_dir():
            model_name_or_path = str(bundled)
        init(self, model_name_or_path, *args, **kwargs)

    plain._module_classes, plain.__init__ = _ModuleClasses(known, dict.fromkeys(_OWN)), named
