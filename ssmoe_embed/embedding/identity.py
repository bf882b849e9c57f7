"""A name and a revision of a model that hold everything that changes its vectors.

mteb keeps scores under the two, as it finds them in a model's card data; so do trackers of experiments. They are looked up
when they are asked for, since settings, weights and dimensions may change at any time.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.sentence_transformer.model_card import SentenceTransformerModelCardData

from ssmoe_embed.data import BUNDLED, tiny_folder
from ssmoe_embed.embedding.features import blocks_of
from ssmoe_embed.embedding.fingerprint import Fingerprint

_OWNER = ("truncate_dim", "similarity_fn_name", "prompts", "default_prompt_name")
"""What changes vectors or their similarity outside the module."""


class EmbeddingCardData(SentenceTransformerModelCardData):
    """A model's card data, whose name and revision follow the model."""

    @property
    def model_name(self) -> str | None:
        """The name that was set, or else the base model's with the method."""
        given: str | None = self.__dict__.get("model_name")
        return given if given or self.model is None else name_of(self.model[0])

    @model_name.setter
    def model_name(self, name: str | None) -> None:
        self.__dict__["model_name"] = name

    @property
    def base_model_revision(self) -> str | None:
        """The model's revision, which the base model's is part of."""
        return None if self.model is None else revision_of(self.model)

    @base_model_revision.setter
    def base_model_revision(self, revision: str | None) -> None:
        del revision


def identify(model: Any) -> None:
    """Let a `SentenceTransformer` whose first module is an `SSMoE` tell its name and revision in its card data."""
    if type(model.model_card_data) is SentenceTransformerModelCardData:
        model.model_card_data.__class__ = EmbeddingCardData
        model.model_card_data.register_model(model)


def name_of(module: Any) -> str:
    """`organisation/model`, as mteb wants it: the base model's own part of it, and the method."""
    path = Path(module.source.name_or_path)
    if path.is_relative_to(tiny_folder()):
        base = BUNDLED.rpartition("/")[2]
    else:
        base = path.parent.name if module.source.included else path.name
    return f"ssmoe_embed/{base}-{module.settings.method}"


def revision_of(model: Any) -> str:
    """16 hexadecimal digits that depend on everything that changes a model's vectors, and not on where it lies.

    Args:
        model: A `SentenceTransformer` whose first module is an `SSMoE`.
    """
    module = model[0]
    config = {name: value for name, value in module.get_config_dict().items() if not name.startswith("base_")}
    own = {name: str(getattr(model, name, None)) for name in _OWNER}
    digest = hashlib.sha256(json.dumps([config, own, module.max_seq_length], sort_keys=True, default=str).encode())
    digest.update(Fingerprint.of(module.model, module.tokenizer, adapters=True).digest())
    for tensor in _fitted(module):
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _fitted(module: Any) -> list[torch.Tensor]:
    """Spectral routers and calibration factors, as far as the settings use them."""
    found = []
    if module.routers is not None and module.settings.needs_spectral_routers:
        found += [weight for _, weight in sorted(module.routers.weights.items())]
    kind = module.settings.calibration
    for block in blocks_of(module.settings) if kind.is_fitted else ():
        factors = module.calibrations.of(block, kind)
        found += [] if factors is None else [factors.mean, factors.factor]
    return found
