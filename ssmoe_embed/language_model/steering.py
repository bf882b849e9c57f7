"""Which pairs of layer and expert are a domain's, told from its texts, for `steer`.

Source: DSMoE, https://arxiv.org/abs/2604.05267: a token is important if the loss depends much on its embedding and it is
neither stop word nor punctuation; an expert is the domain's if it is used often, and more by important tokens than by the
others.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ssmoe_embed.common.choices import Choice
from ssmoe_embed.families import MoELayer, family_of
from ssmoe_embed.language_model.measures import chosen_experts, token_ids
from ssmoe_embed.routing.derived import SteeringTable
from ssmoe_embed.spectral.routers import fingerprints_of

_LONGEST = 512
_PERCENTILE = 15
"""Tokens of a text whose saliency is not above that percentile are not important; the authors' value."""


class SteerBy(Choice):
    """What tells a domain's experts."""

    SALIENCY = "saliency"
    """Important tokens, as published: needs a backward pass."""
    FREQUENCY = "frequency"
    """How much more often they are chosen than on a background corpus: our variant without gradients."""


def steering_table(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    by: str | SteerBy = SteerBy.SALIENCY,
    *,
    background: Sequence[str] = (),
    progress: bool = True,
) -> SteeringTable:
    """Score the pairs of layer and expert of a model on a domain's texts; of each, the first 512 tokens are read.

    Args:
        model: A causal language model under its own routing.
        tokenizer: Its tokenizer.
        texts: Of the domain.
        by: What tells a domain's experts.
        background: Other texts, for `frequency`.
        progress: Show a progress bar.

    Raises:
        ValueError: There are too few texts.
    """
    by = SteerBy.parse(by, "by")
    if not texts or (by is SteerBy.FREQUENCY and not background):
        raise ValueError(f"There is no text of the {'background' if texts else 'domain'} to score experts on.")
    notes = {"by": str(by), "texts": len(texts), "background": len(background) if by is SteerBy.FREQUENCY else None}
    if by is SteerBy.SALIENCY:
        counts, differences = _counts(model, tokenizer, texts, salient=True, progress=progress)
        total = sum(float(count.sum()) for count in counts.values())
        scores = {layer: differences[layer] * counts[layer] / total for layer in counts}
    else:
        scores = {}
        domain, other = (
            _counts(model, tokenizer, some, salient=False, progress=progress)[0] for some in (texts, background)
        )
        for layer in domain:  # each expert's share of its layer's choices [E], as if each had one more
            share, usual = ((count + 1) / (count + 1).sum() for count in (domain[layer], other[layer]))
            scores[layer] = share * (share / usual).log()
    return SteeringTable({i: one.float() for i, one in scores.items()}, fingerprints_of(model), notes)


def _counts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, salient: bool, progress: bool
) -> tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]:
    """How often experts are chosen, and how much more often by important tokens than by others; float64 `[E]` by layer."""
    family = family_of(model)
    counts: dict[int, torch.Tensor] = {}
    differences: dict[int, torch.Tensor] = {}
    chosen: dict[int, torch.Tensor] = {}  # in one forward pass, [T,E] by layer

    def take(layer: MoELayer, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        chosen[layer.index] = chosen_experts(output, family.expert_count(layer)).double().cpu()

    with ExitStack() as hooks:
        for layer in family.layers(model):
            hooks.enter_context(layer.router.register_forward_hook(partial(take, layer)))
        for text in tqdm(texts, desc="Scoring experts", unit="text", disable=not progress):
            ids = token_ids(tokenizer, text)[:_LONGEST]
            if len(ids) < 2:
                continue  # there is nothing to predict
            chosen.clear()
            if salient:
                signs = 2.0 * important(ids, saliency(model, ids), tokenizer).double() - 1  # [T]
            else:
                signs = torch.zeros(len(ids), dtype=torch.float64)
                with torch.no_grad():
                    model(input_ids=ids[None].to(model.device), use_cache=False)
            for index, mask in chosen.items():
                counts[index] = counts.get(index, 0) + mask.sum(dim=0)
                differences[index] = differences.get(index, 0) + signs @ mask
    if not counts:
        raise ValueError("None of the texts has two tokens, so there is nothing to score experts on.")
    return counts, differences


def saliency(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """`‖∂loss/∂e ⊙ e‖` at each token's embedding `e`, for the loss of predicting the text `[T]`, `[T]`."""
    taken: list[torch.Tensor] = []

    def take(_: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        taken.append(output.detach().requires_grad_())
        return taken[0]

    with model.get_input_embeddings().register_forward_hook(take), torch.enable_grad():
        ids = ids.to(model.device)
        logits = model(input_ids=ids[None], use_cache=False).logits[0].float()  # [T,V]
        [gradient] = torch.autograd.grad(F.cross_entropy(logits[:-1], ids[1:]), taken[0])
    return (gradient * taken[0]).detach()[0].float().norm(dim=-1).cpu()


def important(ids: torch.Tensor, saliencies: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Which tokens of a text `[T]` are important, `[T]`."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    words = [str(tokenizer.decode([token])).strip().lower() for token in ids.tolist()]
    special = set(tokenizer.all_special_ids)
    telling = [
        token not in special and word not in ENGLISH_STOP_WORDS and any(map(str.isalnum, word))
        for token, word in zip(ids.tolist(), words, strict=True)
    ]
    return torch.from_numpy(saliencies.numpy() > np.percentile(saliencies.numpy(), _PERCENTILE)) & torch.tensor(telling)
