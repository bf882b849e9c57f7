"""What a divided model is held to: perplexity of a held-out text, similarity of sentences, load of its experts."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen2ForCausalLM

from split_dense.layers import Layer
from split_dense.masked import divided

_PROMPTEOL = 'This sentence : "{text}" means in one word:"'


@dataclass(frozen=True)
class Measured:
    """A model under one number of active experts.

    Attributes:
        name: Which.
        perplexity: Of the held-out text, in windows of 256 tokens.
        similarity: Spearman's correlation × 100 of cosines with the given scores: standardised hidden states, PromptEOL.
        cosine: Mean cosine to the dense model's hidden states on these sentences.
        entropy: Of the load, per layer, as a share of its maximum; empty for the dense model.
        dead: Experts that no token chose.
    """

    name: str
    perplexity: float
    similarity: float
    cosine: float
    entropy: tuple[float, ...] = ()
    dead: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Material:
    """What models are measured on.

    Attributes:
        ids: Tokens of the held-out text.
        sentences: Each once, as token ids of the filled template.
        pairs: Places of two sentences, and their score.
    """

    ids: list[int]
    sentences: list[list[int]]
    pairs: list[tuple[int, int, float]]

    @classmethod
    def read(cls, tokenizer: PreTrainedTokenizerBase, text: Path, pairs: Path, every: int) -> Material:
        """A text file, and JSON lines of `sentence1`, `sentence2` and `score`, of which each `every`-th is used."""
        with (
            gzip.open(pairs, "rt", encoding="utf-8") if pairs.suffix == ".gz" else pairs.open(encoding="utf-8") as lines
        ):
            records = [json.loads(line) for line in lines][::every]
        places: dict[str, int] = {}
        for record in records:
            for key in ("sentence1", "sentence2"):
                places.setdefault(record[key], len(places))
        return cls(
            tokenizer(text.read_text(encoding="utf-8"))["input_ids"],
            [tokenizer(_PROMPTEOL.format(text=one))["input_ids"] for one in places],
            [(places[one["sentence1"]], places[one["sentence2"]], float(one["score"])) for one in records],
        )


@torch.no_grad()
def hidden_states(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """The last hidden state at the last token of each row, `[N, H]`."""
    found = torch.zeros(len(rows), model.config.hidden_size)
    order = sorted(range(len(rows)), key=lambda at: len(rows[at]))
    for start in range(0, len(order), 32):
        batch = order[start : start + 32]
        lengths = torch.tensor([len(rows[at]) for at in batch])
        ids = torch.zeros(len(batch), int(lengths.max()), dtype=torch.long)
        for place, at in enumerate(batch):
            ids[place, : len(rows[at])] = torch.tensor(rows[at])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
        found[batch] = states[torch.arange(len(batch)), lengths - 1].float()
    return found


@torch.no_grad()
def perplexity(model: Qwen2ForCausalLM, ids: Sequence[int], window: int = 256) -> float:
    """Of a text cut into windows."""
    total, count = 0.0, 0
    rows = torch.tensor(ids[: len(ids) // window * window]).view(-1, window)
    for batch in torch.split(rows, 4):
        logits = model(input_ids=batch).logits[:, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"))
        count += batch[:, 1:].numel()
    return math.exp(total / count)


def similarity(vectors: torch.Tensor, pairs: Sequence[tuple[int, int, float]]) -> float:
    """Spearman's correlation × 100 of the cosines of standardised vectors."""
    scaled = (vectors - vectors.mean(0)) / vectors.std(0).clamp(min=1e-6)
    scaled = torch.nn.functional.normalize(scaled, dim=1)
    cosines = [float(scaled[one] @ scaled[other]) for one, other, _ in pairs]
    return float(spearmanr(cosines, [score for *_, score in pairs]).statistic) * 100


def measure(
    model: Qwen2ForCausalLM, material: Material, name: str, dense: torch.Tensor | None = None
) -> tuple[Measured, torch.Tensor]:
    """Measure a model as it is; also returns its hidden states of the sentences."""
    states = hidden_states(model.model, material.sentences)
    cosine = 1.0 if dense is None else float(torch.nn.functional.cosine_similarity(states, dense).mean())
    value = perplexity(model, material.ids)
    return Measured(name, value, similarity(states, material.pairs), cosine), states


def ladder(
    model: Qwen2ForCausalLM,
    layers: Sequence[Layer],
    counts: Sequence[int],
    material: Material,
    dense: torch.Tensor,
) -> list[Measured]:
    """Measure a divided model with each number of active experts."""
    found = []
    for k in counts:
        with divided(model.model, layers, k) as parts:
            measured, _ = measure(model, material, f"{k} of {len(layers[0].experts)}", dense)
            loads = [part.load() for part in parts]
        shares = [load / load.sum() for load in loads]
        entropy = tuple(float(torch.special.entr(one).sum()) / math.log(len(one)) for one in shares)
        dead = sum(int((load == 0).sum()) for load in loads)
        found.append(Measured(**measured.as_dict() | {"entropy": entropy, "dead": dead}))
    return found
