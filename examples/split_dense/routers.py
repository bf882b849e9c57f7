"""A router that chooses the experts without which a dense feed-forward layer's output would change most.

What a choice costs is known exactly: with the products of a token's expert outputs, `G[i, j] = o_i · o_j`, weights `m` in
place of 1 miss the energy `(1 - m)ᵀ G (1 - m)`. So routers are fitted on inputs and these products.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_SOFTNESS = 0.3
"""Width of the step of choosing, in deviations of the logits, that gradients see."""

_LEAST = 0.1
"""Share of an even load below which an expert is drawn into use, lest it die."""


@dataclass(frozen=True)
class Router:
    """A fitted router.

    Attributes:
        weight: `[E, H]`, a row per expert.
        scale: `[E]`, by which the experts' outputs are multiplied beside their weights; around 1.
        error: Energy of what is missing as a share of the layer's output, on tokens it was not fitted on.
        load: `[E]`, the share of these tokens that chose each expert.
    """

    weight: Tensor
    scale: Tensor
    error: float
    load: Tensor


def gates(logits: Tensor, k: int) -> Tensor:
    """Normalised weights of the k chosen experts, 0 for others; gradients also see who is nearly chosen.

    Args:
        logits: `[N, E]`.
        k: Experts per token.
    """
    experts = logits.shape[-1]
    if k < experts:
        top = logits.detach().topk(k + 1).values
        edge = top[..., k - 1 :].mean(-1, keepdim=True)
        spread = logits.detach().std(-1, keepdim=True) * _SOFTNESS
        soft = torch.sigmoid((logits - edge) / spread.clamp(min=1e-6))
        hard = torch.zeros_like(logits).scatter_(-1, logits.topk(k).indices, 1.0)
        chosen = hard + soft - soft.detach()
    else:
        chosen = torch.ones_like(logits)
    weighed = chosen * (logits - logits.detach().amax(-1, keepdim=True)).exp()
    return weighed / weighed.sum(-1, keepdim=True)


def missing(weights: Tensor, gram: Tensor) -> Tensor:
    """Energy per token of what weights other than 1 leave out: `[N]` from `[N, E]` and `[N, E, E]`."""
    off = 1 - weights
    return torch.einsum("ni,nij,nj->n", off, gram, off)


def fit_router(
    inputs: Tensor,
    gram: Tensor,
    energy: Tensor,
    *,
    k: int,
    sharpness: float,
    seed: int,
    steps: int = 150,
    batch: int = 1024,
    held_out: float = 0.1,
) -> Router:
    """Fit one layer's router.

    Args:
        inputs: `[N, H]`: what enters the layer.
        gram: `[N, E, E]`: products of the experts' outputs, per token.
        energy: `[N]`: squared norm of the layer's whole output.
        k: Experts per token.
        sharpness: Standard deviation of a token's logits over the experts, on average; it decides how unequal weights are.
        seed: Of the batches.
        steps: Steps of Adam.
        batch: Tokens in each.
        held_out: Share of the tokens, the last ones, that only the error is measured on.
    """
    learn = int(len(inputs) * (1 - held_out))
    deviation = inputs[:learn].float().pow(2).mean(0).sqrt().clamp(min=1e-6)
    weight = _by_norms(inputs[:learn].float() / deviation, gram[:learn]).requires_grad_()
    scale = torch.zeros(gram.shape[1], requires_grad=True)
    optimiser = torch.optim.Adam([{"params": [weight], "lr": 3e-3}, {"params": [scale], "lr": 5e-3}])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(learn, (min(batch, learn),), generator=generator)
        logits = _scaled(inputs[rows].float() / deviation @ weight.T, sharpness)
        given = k * gates(logits, k) * scale.exp()
        loss = (missing(given, gram[rows].float()) / energy[rows].float()).mean() + _idle(logits, k)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
    weight, scale = weight.detach() / deviation, scale.detach().exp()
    weight = weight * (sharpness / (inputs[:learn].float() @ weight.T).std(1).mean())
    given = gates(inputs[learn:].float() @ weight.T, k)
    lost = missing(k * given * scale, gram[learn:].float()) / energy[learn:].float()
    return Router(weight, scale, float(lost.mean()), (given > 0).float().mean(0))


def _idle(logits: Tensor, k: int) -> Tensor:
    """A penalty on experts that fewer tokens than `_LEAST` of an even share come near to choosing."""
    edge = logits.detach().topk(k).values[:, -1:]
    near = torch.sigmoid((logits - edge) / (logits.detach().std(1, keepdim=True) * _SOFTNESS).clamp(min=1e-6)).mean(0)
    least = _LEAST * k / logits.shape[1]
    return torch.relu(1 - near / least).sum()


def _scaled(logits: Tensor, sharpness: float) -> Tensor:
    return logits * (sharpness / logits.detach().std(1).mean().clamp(min=1e-6))


def _by_norms(inputs: Tensor, gram: Tensor) -> Tensor:
    """A first router: ridge regression of the logarithms of the experts' output norms, relative to the token's mean."""
    logs = gram.diagonal(dim1=1, dim2=2).float().clamp(min=1e-12).log() / 2
    logs = logs - logs.mean(1, keepdim=True)
    square = inputs.T @ inputs
    square.diagonal().add_(1e-3 * square.diagonal().mean())
    return torch.linalg.solve(square, inputs.T @ logs).T.contiguous()
