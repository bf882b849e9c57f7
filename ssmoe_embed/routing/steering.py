"""Steering: the pairs of layer and expert that a domain's texts use are favoured, by a number added to their logits.

Source: DSMoE, "Do Domain-specific Experts exist in MoE-based LLMs?", https://arxiv.org/abs/2604.05267. The scores of the
pairs are made by `language_model/steering.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssmoe_embed.common.choices import Choice
from ssmoe_embed.common.files import load_tensors, save_tensors
from ssmoe_embed.families import Score
from ssmoe_embed.routing.policies import check_made_for


class Steer(Choice):
    """How a pair is favoured."""

    MULTIPLICATIVE = "multiplicative"
    """Its softmax score is multiplied by `1 + strength` before scores are brought to 1; of a sigmoid, the odds are."""
    ADDITIVE = "additive"
    """`strength` is added to its logit."""


@dataclass(frozen=True)
class SteeringTable:
    """How much each expert is a domain's.

    Attributes:
        scores: `[E]` by layer.
        fingerprints: Of the routers that they belong to, `[E]` by layer.
        notes: How they were made, as JSON values.
    """

    scores: dict[int, torch.Tensor]
    fingerprints: dict[int, torch.Tensor]
    notes: dict[str, Any] = field(default_factory=dict)

    def biases(self, pairs: int | float, added: float) -> dict[int, torch.Tensor]:
        """What is added to the logits, `[E]` by layer, of the best pairs of the whole model.

        Args:
            pairs: How many, a count or a fraction below 1.
            added: What is added.
        """
        layers = sorted(self.scores)
        flat = torch.cat([self.scores[layer] for layer in layers])
        count = min(len(flat), math.ceil(pairs * len(flat)) if isinstance(pairs, float) else pairs)
        best = torch.zeros_like(flat).index_fill_(0, flat.argsort(descending=True, stable=True)[:count], added)
        return dict(zip(layers, torch.split(best, [len(self.scores[layer]) for layer in layers]), strict=True))

    def save(self, path: str | Path) -> None:
        """Write it as a safetensors file, atomically."""
        parts = {f"score.{layer}": values for layer, values in self.scores.items()}
        parts |= {f"fingerprint.{layer}": values for layer, values in self.fingerprints.items()}
        save_tensors(path, parts, {"steering": self.notes})

    @classmethod
    def load(cls, path: str | Path) -> SteeringTable:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is something else.
        """
        tensors, metadata = load_tensors(path)
        if "steering" not in metadata:
            raise ValueError(f"{path} holds no steering table; make one with `ssmoe steer BASE --texts FILE`.")
        parts: dict[str, dict[int, torch.Tensor]] = {"score": {}, "fingerprint": {}}
        for name, values in tensors.items():
            part, _, layer = name.partition(".")
            parts[part][int(layer)] = values
        return cls(parts["score"], parts["fingerprint"], metadata["steering"])


@dataclass(frozen=True)
class SteeringSettings:
    """The settings of `steer`.

    Attributes:
        table: File that `ssmoe steer` wrote.
        pairs: Pairs of layer and expert that are favoured: a count, or a fraction below 1.
        strength: How much; 0 changes nothing.
        mode: See `Steer`.

    Raises:
        ValueError: A value is not allowed.
    """

    table: str = field(default="", metadata={"file": True})
    pairs: int | float = 20
    strength: float = 5.0
    mode: Steer = Steer.MULTIPLICATIVE

    def __post_init__(self) -> None:
        object.__setattr__(self, "mode", Steer.parse(self.mode, "mode"))
        if not self.table:
            raise ValueError(
                "steer needs a table: make one with `ssmoe steer BASE --texts FILE`, and name it: steer:table=FILE."
            )
        if self.pairs < 0 or (isinstance(self.pairs, float) and self.pairs >= 1):
            raise ValueError(
                f"pairs={self.pairs!r} is neither a count nor a fraction below 1; the authors' best is 20."
            )
        if not 0 <= self.strength < math.inf:
            raise ValueError(f"strength={self.strength!r} is below 0 or no number; the authors' best is 5.")

    def made(self, model: nn.Module | None = None, tokenizer: Any = None) -> SteeringRouting:
        """The policy."""
        del model, tokenizer
        table = SteeringTable.load(self.table)
        added = math.log1p(self.strength) if self.mode is Steer.MULTIPLICATIVE else self.strength
        return SteeringRouting(table.biases(self.pairs, added), table.fingerprints)


@dataclass(frozen=True)
class SteeringRouting:
    """The learned routers with numbers added to their logits.

    Attributes:
        biases: The numbers, `[E]` by layer.
        fingerprints: Of the routers that they are for.
    """

    biases: dict[int, torch.Tensor]
    fingerprints: dict[int, torch.Tensor]

    def check(self, model: nn.Module) -> None:
        """See `RoutingPolicy.check`."""
        check_made_for(model, self.fingerprints, "This steering table")

    def logits(self, layer: int, hidden: torch.Tensor, logits: torch.Tensor, score: Score) -> torch.Tensor:
        """See `RoutingPolicy.logits`."""
        bias = self.biases[layer]
        return logits + bias.to(logits) if bias.any() else logits
