"""How much a model's routers want each expert, over a text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ssmoe_embed.families import Score
from ssmoe_embed.routing import RoutingPolicy, reroute
from ssmoe_embed.routing.mixing import scores


@dataclass(frozen=True)
class _Sums:
    """A routing policy that adds up the scores of the policy below it, and changes nothing."""

    policy: RoutingPolicy | None
    sums: dict[int, torch.Tensor] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)

    @property
    def needs_tokens(self) -> bool:
        """See `TokenPolicy`."""
        return bool(getattr(self.policy, "needs_tokens", False))

    def check(self, model: nn.Module) -> None:
        """See `RoutingPolicy.check`."""
        if self.policy is not None:
            self.policy.check(model)

    def logits(self, layer: int, hidden: torch.Tensor, logits: torch.Tensor, score: Score) -> torch.Tensor:
        """See `RoutingPolicy.logits`."""
        if self.policy is not None:
            logits = self.policy.logits(layer, hidden, logits, score)
        total = scores(logits, score).double().sum(dim=0).cpu()  # [N,E] → [E]
        self.sums[layer] = self.sums.get(layer, torch.zeros_like(total)) + total
        self.counts[layer] = self.counts.get(layer, 0) + len(logits)
        return logits


@torch.no_grad()
def expert_scores(
    model: PreTrainedModel,
    batches: Iterable[torch.Tensor],
    policy: RoutingPolicy | None = None,
    *,
    progress: bool = True,
) -> dict[int, torch.Tensor]:
    """Each expert's mean score, before top-k, while the model reads a text under a routing.

    Args:
        model: The language model, not re-routed.
        batches: Token ids without padding, `[B,T]` each.
        policy: The routing whose scores are meant, and under which the model runs; None for its own.
        progress: Show a progress bar.

    Returns:
        float64 `[E]` by decoder layer index.

    Raises:
        ValueError: The policy does not fit the model, or there is no text.
    """
    recorder = _Sums(policy)
    decoder = getattr(model, model.base_model_prefix, model)  # without the head, whose logits nobody needs
    with reroute(model, recorder):
        for batch in tqdm(batches, desc="Calibration", unit="batch", disable=not progress):
            if decoder is model or recorder.needs_tokens:
                model(input_ids=batch.to(model.device), use_cache=False)
            else:
                decoder(input_ids=batch.to(model.device), use_cache=False)
    if not recorder.sums:
        raise ValueError("There is no text to score the experts on.")
    return {layer: recorder.sums[layer] / recorder.counts[layer] for layer in sorted(recorder.sums)}
