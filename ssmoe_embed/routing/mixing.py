"""The SSMoE mix of two routers (equation 5 of https://arxiv.org/abs/2605.30992), as replacement logits.

The mixed scores are `p = (1-α)·score(r) + α·score(e)`. Instead of handing `p` to the model, the functions here return
logits `r'` with `score(r') = p`, so that the family's own top-k, normalisation and scaling apply to them unchanged. They
are written as `r + correction` with a correction that vanishes with α, except where the score has an inverse of its own: the
learned logits keep their own offset, which routers that are not shift-invariant need, and α = 0 changes no bit.
"""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch.nn import functional as F

from ssmoe_embed.common.choices import Choice
from ssmoe_embed.families import Score

_ONE = torch.ones((), device="cpu")  # adding a multiple of it takes half the time of adding a number


class Mix(Choice):
    """What is mixed linearly."""

    PROBS = "probs"
    """The scores, as in the paper's equation 5."""
    LOGITS = "logits"
    """The logits, as in the paper's lemma 3.1."""


def checked_alpha(alpha: object) -> float:
    """`alpha` as a float in [0, 1].

    Raises:
        ValueError: It is no such number.
    """
    if isinstance(alpha, bool) or not isinstance(alpha, Real) or not 0 <= float(alpha) <= 1:
        raise ValueError(
            f"alpha={alpha!r} is outside [0, 1]; 0 is the model's own router, 1 the spectral router alone, "
            "0.5 to 0.9 is the paper's best range."
        )
    return float(alpha)


def scores(logits: torch.Tensor, score: Score) -> torch.Tensor:
    """The family's score function over all experts, in float32: `[…,E] → […,E]`."""
    logits = logits.float()
    if score is Score.SQRTSOFTPLUS:
        return F.softplus(logits).sqrt()
    return logits.softmax(dim=-1) if score is Score.SOFTMAX else logits.sigmoid()


def mixed_scores(learned: torch.Tensor, spectral: torch.Tensor, alpha: float, mix: Mix, score: Score) -> torch.Tensor:
    """The mixed routing scores `p` over all experts, before any top-k.

    Args:
        learned: `r`, the learned router's logits `[…,E]`.
        spectral: `e`, the spectral router's logits `[…,E]`.
        alpha: The spectral router's share.
        mix: What is mixed.
        score: The family's score function.

    Returns:
        float32 `[…,E]`.
    """
    if mix is Mix.LOGITS:
        return scores(torch.lerp(learned.float(), spectral.float(), alpha), score)
    return torch.lerp(scores(learned, score), scores(spectral, score), alpha)


def mixed_logits(learned: torch.Tensor, spectral: torch.Tensor, alpha: float, mix: Mix, score: Score) -> torch.Tensor:
    """Logits `r' [N,E]` whose scores are the mixed ones, in the dtype of `learned`; see `mixed_scores`.

    They are equal to `learned` bit for bit at `alpha=0`, to `spectral` at `alpha=1`.
    """
    if alpha == 0:
        return learned
    if alpha == 1:
        return spectral.to(learned.dtype)
    r, e = learned.float(), spectral.float()
    if mix is Mix.LOGITS:
        mixed = torch.lerp(r, e, alpha)
    elif score is Score.SOFTMAX:
        mixed = r + _log_mixed_ratio(F.log_softmax(e, dim=-1) - F.log_softmax(r, dim=-1), alpha)
    elif score is Score.SQRTSOFTPLUS:
        mixed = logits_of(mixed_scores(r, e, alpha, mix, score), r, score)
    else:
        chosen = _log_mixed_ratio(F.logsigmoid(e) - F.logsigmoid(r), alpha)
        refused = _log_mixed_ratio(F.logsigmoid(-e) - F.logsigmoid(-r), alpha)
        mixed = r + chosen - refused
    return mixed.to(learned.dtype)


def logits_of(wanted: torch.Tensor, learned: torch.Tensor, score: Score) -> torch.Tensor:
    """Logits, float32 `[…,E]`, that have the wanted scores, float32 `[…,E]`; with a softmax these add up to 1.

    The offset of the learned logits `[…,E]` is kept where the score does not see it.
    """
    if score is Score.SQRTSOFTPLUS:
        squared = wanted.square()
        return squared + torch.log(-torch.expm1(-squared))  # log(exp(p²) - 1), without overflow
    wanted = wanted.clamp_min(torch.finfo(wanted.dtype).tiny)
    if score is Score.SOFTMAX:
        return wanted.log() + learned.float().logsumexp(dim=-1, keepdim=True)
    return torch.logit(wanted, eps=torch.finfo(wanted.dtype).eps)


def _log_mixed_ratio(log_ratio: torch.Tensor, alpha: float) -> torch.Tensor:
    """`log((1-α) + α·exp(log_ratio))`, without overflow."""
    log_kept = math.log1p(-alpha)
    odds = torch.add(log_ratio, _ONE, alpha=math.log(alpha) - log_kept)
    return torch.add(F.softplus(odds), _ONE, alpha=log_kept)
