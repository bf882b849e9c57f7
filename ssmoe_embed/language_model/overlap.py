"""How many experts two routings have in common, token by token.

Source: SSMoE, section D.6 and table 15, https://arxiv.org/abs/2605.30992, which does not say which of two usual measures its
"mean overlap" is; both are given, each with what chance alone would give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from scipy.stats import hypergeom
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ssmoe_embed.families import MoELayer, family_of
from ssmoe_embed.language_model.perplexity import token_ids
from ssmoe_embed.routing import RoutingPolicy
from ssmoe_embed.routing.policies import check_at_routers
from ssmoe_embed.routing.sites import decision, is_rerouted
from ssmoe_embed.routing.tokens import install_token_hooks, needs_tokens


@dataclass(frozen=True)
class Overlap:
    """The experts that a routing and the model's own router have in common, mean over tokens and layers.

    Attributes:
        share: `|A∩B| / k`.
        jaccard: `|A∩B| / |A∪B|`.
        chance_share: `share` of two independent random choices.
        chance_jaccard: `jaccard` of them.
        by_layer: `share` of each layer.
        tokens: Tokens that were read.
    """

    share: float
    jaccard: float
    chance_share: float
    chance_jaccard: float
    by_layer: dict[int, float]
    tokens: int


@torch.no_grad()
def expert_overlap(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], policy: RoutingPolicy
) -> Overlap:
    """Compare the experts that a routing would choose with those that the model's own routers choose.

    The model runs as it is, and at every router the policy is asked about the same hidden states.

    Raises:
        ValueError: There is no text, or the model is re-routed, or the policy does not fit it.
    """
    if is_rerouted(model):
        raise ValueError("This model is re-routed; remove that routing before it is compared with the model's own.")
    check_at_routers(policy)
    policy.check(model)
    family = family_of(model)
    meter = _Meter()
    handles: list[Any] = list(install_token_hooks([model])) if needs_tokens(policy) else []
    for layer in family.layers(model):
        hook = meter.hook(layer, policy, model, family.expert_count(layer))
        handles.append(layer.router.register_forward_hook(hook, with_kwargs=True))
    tokens = 0
    try:
        for text in texts:
            ids = token_ids(tokenizer, text)
            if len(ids):
                model(input_ids=ids[None].to(model.device), use_cache=False)
                tokens += len(ids)
    finally:
        for handle in handles:
            handle.remove()
    if not tokens:
        raise ValueError("There is no text to compare the routings on.")
    return meter.result(tokens)


@dataclass
class _Meter:
    """Sums over tokens, by layer."""

    shares: dict[int, float] = field(default_factory=dict)
    jaccards: dict[int, float] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)

    def hook(self, layer: MoELayer, policy: RoutingPolicy, model: nn.Module, experts: int) -> Any:
        """A forward hook for one router, of `E` experts."""

        def compare(_router: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            own = chosen_experts(output, experts)
            other = chosen_experts(decision(layer, policy, model, *args, **kwargs), experts)
            common = (own & other).sum(dim=-1).double()  # [N,E] → [N]
            self._add(self.shares, layer.index, common / own.sum(dim=-1))
            self._add(self.jaccards, layer.index, common / (own | other).sum(dim=-1))
            self.counts[layer.index] = self.counts.get(layer.index, 0) + len(common)
            self.sizes[layer.index] = (experts, int(own[0].sum()))

        return compare

    @staticmethod
    def _add(sums: dict[int, float], layer: int, values: torch.Tensor) -> None:
        sums[layer] = sums.get(layer, 0.0) + float(values.sum())

    def result(self, tokens: int) -> Overlap:
        """The means over tokens, then over layers."""
        layers = sorted(self.counts)
        by_layer = {layer: self.shares[layer] / self.counts[layer] for layer in layers}
        chances = [_chance(*self.sizes[layer]) for layer in layers]
        return Overlap(
            share=_mean(list(by_layer.values())),
            jaccard=_mean([self.jaccards[layer] / self.counts[layer] for layer in layers]),
            chance_share=_mean([share for share, _ in chances]),
            chance_jaccard=_mean([jaccard for _, jaccard in chances]),
            by_layer=by_layer,
            tokens=tokens,
        )


def chosen_experts(output: Any, experts: int) -> torch.Tensor:
    """Which experts a router's output sends each token to, as a mask `[N,E]`.

    Args:
        output: What the router returned: a tuple with indices `[N,k]`, or scores `[N,E]` that are zero elsewhere.
        experts: `E`.
    """
    parts = output if isinstance(output, tuple | list) else (output,)
    for part in parts:
        if not part.is_floating_point():
            index = part.reshape(-1, part.shape[-1])
            mask = torch.zeros(len(index), experts, dtype=torch.bool, device=index.device)
            return mask.scatter_(1, index.long(), value=True)
    return parts[0].reshape(-1, experts) != 0


def _chance(experts: int, top_k: int) -> tuple[float, float]:
    """Expected share and Jaccard index of two independent random sets of `top_k` experts."""
    common = range(top_k + 1)
    probabilities = hypergeom(experts, top_k, top_k).pmf(list(common))
    jaccard = sum(p * n / (2 * top_k - n) for p, n in zip(probabilities, common, strict=True))
    return top_k / experts, float(jaccard)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
