"""A model's record for mteb as the Python file that a pull request adds to mteb."""

from __future__ import annotations

import re
from typing import Any

_EXPECTED = (
    "release_date",
    "languages",
    "license",
    "n_parameters",
    "memory_usage_mb",
    "max_tokens",
    "embed_dim",
    "reference",
    "citation",
)
"""Fields that mteb's leaderboard shows."""

_FILE = '''"""Mixture-of-Experts language models as sentence-embedding models, without training."""

from __future__ import annotations

from typing import Any

from mteb.models.model_meta import ModelMeta, ScoringFunction


def load_ssmoe(model_name: str, revision: str | None = None, device: str | None = None, **kwargs: Any) -> Any:
    """Load a model with the package that made it: pip install 'ssmoe-embed[mteb]'."""
    from ssmoe_embed.evaluation.mteb.models import load_encoder

    return load_encoder(model_name, revision=revision, device=device, **kwargs)


{variable} = {record}
'''


def model_code(meta_json: str) -> str:
    """The Python file, from the `model_meta.json` beside the results.

    Args:
        meta_json: The content of that file.
    """
    meta = _meta(meta_json).model_copy(update={"loader": load_ssmoe, "experiment_kwargs": None})
    return _FILE.format(variable=variable_name(str(meta.name)), record=meta.to_python())


def unknown_fields(meta_json: str) -> tuple[str, ...]:
    """What the leaderboard shows and the record does not tell: to be filled in by hand."""
    meta = _meta(meta_json)
    return tuple(name for name in _EXPECTED if getattr(meta, name) is None)


def variable_name(model: str) -> str:
    """A Python name for a model: `ssmoe/olmoe-7b` gives `ssmoe_olmoe_7b`."""
    name = re.sub(r"\W+", "_", model).strip("_").lower()
    return f"model_{name}" if name[:1].isdigit() else name


def load_ssmoe(*_: Any, **__: Any) -> None:
    """Stands in the record for the function of that name in the file that is written."""
    raise NotImplementedError


def _meta(meta_json: str) -> Any:
    from mteb.models import ModelMeta

    return ModelMeta.model_validate_json_resolved(meta_json)
