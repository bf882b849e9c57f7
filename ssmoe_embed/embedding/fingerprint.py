"""What a base model is, and whether it still is what was loaded."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.sentence_transformer.model_card import SentenceTransformerModelCardData
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ssmoe_embed.data import BUNDLED, tiny_folder
from ssmoe_embed.embedding.adapters import plain_state

_SAMPLES = 64
"""Entries of each tensor that are remembered as they are."""


@dataclass(frozen=True)
class _Mark:
    """What is remembered of one tensor: one pass over its bits, and some of its entries.

    The sum notices whatever changes any entry; the entries notice what only moves some, and tell rounding to another dtype
    from a change.
    """

    shape: torch.Size
    dtype: torch.dtype
    bits: int
    samples: bytes

    @classmethod
    def of(cls, tensor: torch.Tensor) -> _Mark:
        flat = tensor.detach().contiguous().reshape(-1)
        places = torch.arange(_SAMPLES, device=flat.device) * (len(flat) - 1) // (_SAMPLES - 1)
        raw = flat.view(torch.uint8)
        words = raw.view(torch.int64) if raw.numel() % 8 == 0 and raw.storage_offset() % 8 == 0 else raw
        samples = _raw(flat[places if len(flat) else places[:0]])
        return cls(tensor.shape, tensor.dtype, int(words.sum(dtype=torch.int64)), samples)

    def same(self, other: _Mark) -> bool:
        """Whether both are of one tensor, or the other is this one rounded to another dtype."""
        if self.shape != other.shape:
            return False
        if self.dtype == other.dtype:
            return self.bits == other.bits and self.samples == other.samples
        both_float = self.dtype.is_floating_point and other.dtype.is_floating_point
        if not both_float or not self.samples:
            return both_float
        entries = torch.frombuffer(bytearray(self.samples), dtype=self.dtype)
        return _raw(entries.to(other.dtype)) == other.samples


@dataclass(frozen=True)
class Fingerprint:
    """A base model and its tokenizer as they were at one moment.

    Attributes:
        dtype: The model's dtype.
        marks: By tensor name; an adapter's own and tensors on `meta` are left out.
        tokenizer: A digest of it.
    """

    dtype: torch.dtype
    marks: dict[str, _Mark]
    tokenizer: str

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, adapters: bool = False) -> Fingerprint:
        """Look at every weight once; on a CPU that takes a fraction of the time in which they were read."""
        state = model.state_dict() if adapters else plain_state(model)
        marks = {name: _Mark.of(tensor) for name, tensor in state.items() if not tensor.is_meta}
        return cls(model.dtype, marks, _digest(tokenizer))

    def digest(self) -> bytes:
        """All of it as 32 bytes."""
        marks = [(name, mark.shape, str(mark.dtype), mark.bits) for name, mark in sorted(self.marks.items())]
        samples = b"".join(mark.samples for _, mark in sorted(self.marks.items()))
        return hashlib.sha256(repr([self.tokenizer, marks]).encode() + samples).digest()

    def matches(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether a model is still the one that this was taken of, at most moved, rounded, or with an adapter on it."""
        found = {name: tensor for name, tensor in plain_state(model).items() if not tensor.is_meta}
        if found.keys() != self.marks.keys() or self.tokenizer != _digest(tokenizer):
            return False
        return all(mark.same(_Mark.of(found[name])) for name, mark in self.marks.items())


def _raw(tensor: torch.Tensor) -> bytes:
    """Its bytes: NaN equals itself there."""
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of everything that makes ids of a text; truncation and padding, which each use sets, are left out."""
    content = tokenizer.backend_tokenizer.to_str()
    content = content[content.index('"added_tokens"') :] + repr(sorted(tokenizer.special_tokens_map.items()))
    return hashlib.sha256(content.encode()).hexdigest()


_OWNER = ("truncate_dim", "similarity_fn_name", "prompts", "default_prompt_name")
"""What changes vectors or their similarity outside the module."""


class EmbeddingCardData(SentenceTransformerModelCardData):
    """A model's card data, whose name and revision follow the model."""

    @property
    def model_name(self) -> str | None:
        """The name that was set, or else `organisation/model`, as mteb wants it: the base model's with the method."""
        given: str | None = self.__dict__.get("model_name")
        if given or self.model is None:
            return given
        module: Any = self.model[0]
        path = Path(module.source.name_or_path)
        base = path.parent.name if module.source.included else path.name
        if path.is_relative_to(tiny_folder()):
            base = BUNDLED.rpartition("/")[2]
        return f"ssmoe_embed/{base}-{module.settings.method}"

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
    fitted: list[torch.Tensor] = []  # as far as the settings use it
    if module.routers is not None and module.settings.needs_spectral_routers:
        fitted += [weight for _, weight in sorted(module.routers.weights.items())]
    kind = module.settings.calibration
    for block in module.settings.blocks if kind.is_fitted else ():
        factors = module.calibrations.of(block, kind)
        fitted += [] if factors is None else [factors.mean, factors.factor]
    for tensor in fitted:
        digest.update(_raw(tensor))
    return digest.hexdigest()[:16]
