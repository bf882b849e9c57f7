"""What a routing chooses: how far as the learned router does, and how stably.

All of it is read off the router inputs of one ordinary forward pass, so a layer's choices are compared on the same inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ssmoe_embed.evaluation.inspection.activations import Activations
from ssmoe_embed.families import Score
from ssmoe_embed.routing.mixing import Mix, mixed_scores
from ssmoe_embed.spectral.routers import SpectralRouters


@dataclass(frozen=True)
class Agreement:
    """The choices of one routing; every value is a mean over layers.

    Attributes:
        with_router: Share of the experts it has in common with the learned router, over all tokens.
        corrupted: The same between a text's last token and that of the text with `AAA` in it.
        same_token: Between two occurrences of one token: 1 would be a routing by token alone.
        any_tokens: Between two different tokens: 1 would be a routing that looks at nothing.
        load_shift: Total variation distance of the loads on two kinds of text: 0 is the same load, 1 disjoint experts.
        chance: What a random choice has in common with any: `k/E`.
    """

    with_router: float
    corrupted: float
    same_token: float
    any_tokens: float
    load_shift: float
    chance: float


@dataclass(frozen=True)
class Readings:
    """The forward passes that choices are compared on, each with router inputs.

    Attributes:
        clean: One kind of text.
        corrupted: The same texts with `AAA` in them.
        other: Another kind of text.
    """

    clean: Activations
    corrupted: Activations
    other: Activations


def agreement(
    readings: Readings, routers: SpectralRouters, alpha: float, score: Score, *, mix: Mix = Mix.PROBS, seed: int = 0
) -> Agreement:
    """Compare the choices of a mix, by plain top-k with the `k` that the model itself uses.

    Args:
        readings: The forward passes.
        routers: The spectral routers.
        alpha: Their share; 0 is the learned router.
        score: The family's score function.
        mix: What is mixed.
        seed: Of the pairs of tokens that are drawn.
    """
    found = []
    for place, layer in enumerate(readings.clean.layers):
        k = layer.chosen.shape[1]

        def chosen(reading: Activations, share: float, place: int = place, k: int = k) -> torch.Tensor:
            one = reading.layers[place]
            if one.inputs is None:
                raise ValueError("The readings lack router inputs; collect them with inputs=True.")
            mixed = mixed_scores(one.learned, routers.logits(one.layer, one.inputs), share, mix, score)
            return _mask(mixed.topk(k, dim=1).indices, mixed.shape[1])

        clean, corrupted, other = (chosen(one, alpha) for one in (readings.clean, readings.corrupted, readings.other))
        same, different = _pairs(readings.clean.tokens, seed)
        found.append(
            (
                _common(clean, chosen(readings.clean, 0.0), k),
                _common(clean[readings.clean.last], corrupted[readings.corrupted.last], k),
                _common(clean[same[:, 0]], clean[same[:, 1]], k),
                _common(clean[different[:, 0]], clean[different[:, 1]], k),
                float((_load(clean) - _load(other)).abs().sum() / 2),
                k / clean.shape[1],
            )
        )
    return Agreement(*(sum(values) / len(found) for values in zip(*found, strict=True)))


def _mask(chosen: torch.Tensor, experts: int) -> torch.Tensor:
    """Choices `[N,k]` as ones among zeros `[N,E]`."""
    return torch.zeros(len(chosen), experts).scatter(1, chosen, 1.0)


def _common(first: torch.Tensor, second: torch.Tensor, k: int) -> float:
    """Mean share of the choices that two masks `[n,E]` have in common, row by row."""
    return float((first * second).sum(dim=1).mean() / k)


def _load(mask: torch.Tensor) -> torch.Tensor:
    """Share of the choices of each expert, `[E]`."""
    return mask.sum(dim=0) / mask.sum()


def _pairs(tokens: torch.Tensor, seed: int, most: int = 5000) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of pairs of occurrences of one token, and of two different ones: `[n,2]` each."""
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))
    ordered = order[tokens[order].argsort(stable=True)]  # occurrences of a token side by side, in random order
    neighbours = torch.stack([ordered[:-1], ordered[1:]], dim=1)
    same = neighbours[tokens[neighbours[:, 0]] == tokens[neighbours[:, 1]]]
    drawn = torch.stack([order[:-1], order[1:]], dim=1)
    different = drawn[tokens[drawn[:, 0]] != tokens[drawn[:, 1]]]
    return same[torch.randperm(len(same), generator=torch.Generator().manual_seed(seed))][:most], different[:most]
