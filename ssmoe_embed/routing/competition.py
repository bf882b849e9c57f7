"""Routing by competition: the experts that answer a token most strongly are chosen, which takes all their answers.

Source: CompeteSMoE, https://arxiv.org/abs/2505.13380 (mean softplus of the answer), and its first version,
https://arxiv.org/abs/2402.02526 (norm of the answer). The authors train routers to foresee the competition and route by the
routers; routing a model that was trained otherwise by the competition itself is our reading of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ssmoe_embed.common.choices import Choice
from ssmoe_embed.routing.experts import DecidesAtExperts, ExpertsCall


class Response(Choice):
    """How strong an expert's answer is."""

    SOFTPLUS = "softplus"
    """The mean of its softplus; weights are the chosen ones' shares of their sum."""
    NORM = "norm"
    """Its Euclidean norm; weights are the softmax of the chosen ones' norms."""


@dataclass(frozen=True)
class Competition(DecidesAtExperts):
    """The experts with the strongest answers, weighed by them.

    Attributes:
        response: How strong an answer is.
    """

    response: Response = Response.SOFTPLUS

    def __post_init__(self) -> None:
        object.__setattr__(self, "response", Response.parse(self.response, "response"))

    def assign(self, call: ExpertsCall) -> tuple[torch.Tensor, torch.Tensor]:
        """See `ExpertsPolicy.assign`."""
        N, E = call.logits.shape
        tokens = torch.arange(N, device=call.hidden.device)
        found = torch.stack([self._strength(call.run(tokens, torch.full_like(tokens, e))) for e in range(E)], dim=1)
        best = found.topk(call.index.shape[1], dim=1)  # [N,k]
        norm = self.response is Response.NORM
        shares = best.values.softmax(dim=1) if norm else best.values / best.values.sum(dim=1, keepdim=True)
        kept = torch.zeros_like(found, dtype=torch.bool).scatter_(1, best.indices, value=True)
        return kept, torch.zeros_like(found).scatter_(1, best.indices, call.weighting.scale * shares)

    def _strength(self, answers: torch.Tensor) -> torch.Tensor:
        """Of answers `[N,H]`, `[N]`."""
        answers = answers.float()
        return answers.norm(dim=1) if self.response is Response.NORM else F.softplus(answers).mean(dim=1)
