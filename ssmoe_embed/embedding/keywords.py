"""The keywords by which a model is loaded or made: flat for users, with names that editors complete; values inside."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypedDict

from ssmoe_embed.common.choices import unknown
from ssmoe_embed.common.loading import HubKeywords, HubOptions
from ssmoe_embed.embedding.settings import PRESET_SPECTRAL, EmbeddingSettings
from ssmoe_embed.spectral.settings import SpectralKeywords, SpectralSettings


class EmbeddingKeywords(TypedDict, total=False):
    """The fields of `EmbeddingSettings`."""

    method: str
    alpha: float
    mix: str
    routing_signal: str | None
    combination: str
    routing_weight: float
    calibration: str
    prompt: str
    instruction: str
    hidden_layer: int
    max_seq_length: int | None
    routing: str | None


class ModelKeywords(HubKeywords, SpectralKeywords, EmbeddingKeywords, total=False):
    """What making a model takes: fields of `HubOptions`, `SpectralSettings` and `EmbeddingSettings`."""


class SentenceTransformerKeywords(TypedDict, total=False):
    """Keywords of `SentenceTransformer` that are passed on to it."""

    backend: str
    default_prompt_name: str | None
    model_card_data: Any
    processor_kwargs: dict[str, Any] | None
    prompts: dict[str, str] | None
    similarity_fn_name: str | None
    truncate_dim: int | None


class LoadKeywords(ModelKeywords, SentenceTransformerKeywords, total=False):
    """What loading a model takes besides: all of these."""


def split_keywords(
    keywords: dict[str, Any], others: Iterable[str] = ()
) -> tuple[HubOptions, dict[str, Any], dict[str, Any]]:
    """Keywords as hub options, fields of `SpectralSettings` with those of a preset, and fields of `EmbeddingSettings`.

    Args:
        keywords: Of `ModelKeywords`.
        others: Further names that the caller knows, for the message.

    Raises:
        ValueError: One is not known, or has a value that is not allowed.
    """
    kinds = (EmbeddingSettings, SpectralSettings, HubOptions)
    known = [name for kind in kinds for name in kind.__dataclass_fields__]
    for name in keywords:
        if name not in known:
            raise ValueError(unknown("setting", name, [*known, *others]))
    rest = dict(keywords)
    hub = HubOptions.taken_from(rest)
    spectral = {name: rest.pop(name) for name in SpectralSettings.__dataclass_fields__ if name in rest}
    spectral = PRESET_SPECTRAL.get(str(rest.get("method")), {}) | spectral
    SpectralSettings(**spectral)
    return hub, spectral, rest
