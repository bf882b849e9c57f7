"""What is minimised: images and texts of one concept together, texts where the teacher has them, experts in even use."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def contrast(images: Tensor, texts: Tensor, scale: Tensor, shared: Tensor, smoothing: float = 0.05) -> Tensor:
    """CLIP's loss: the right text of every image and the right image of every text, among those of the batch.

    Args:
        images: `[B,D]` unit vectors.
        texts: `[B,D]` unit vectors, in the same order.
        scale: What cosines are multiplied with.
        shared: `[B,B]`: whether a text is true of an image too, and so is no wrong answer.
        smoothing: Label smoothing.
    """
    logits = (scale * images @ texts.T).masked_fill(shared, -1e4)  # [B,B]
    right = torch.arange(len(logits))
    wrong = (~shared).float()
    return (_cross_entropy(logits, right, wrong, smoothing) + _cross_entropy(logits.T, right, wrong.T, smoothing)) / 2


def _cross_entropy(logits: Tensor, right: Tensor, kept: Tensor, smoothing: float) -> Tensor:
    """Cross entropy whose smoothing is spread over the answers that count."""
    logs = logits.log_softmax(dim=-1)
    hit = logs[right, right]
    spread = (logs * kept).sum(dim=-1) / kept.sum(dim=-1)
    return -((1 - smoothing) * hit + smoothing * spread).mean()


def distil(texts: Tensor, targets: Tensor, scale: float = 20.0) -> Tensor:
    """Vectors where the teacher has them, nearer to their own target than to others' (`[B,D]` unit vectors)."""
    cosines = texts @ targets.T  # [B,B]
    ranking = functional.cross_entropy(scale * cosines, (scale * targets @ targets.T).softmax(dim=-1))
    return (1 - cosines.diagonal()).mean() + 0.2 * ranking


def alike(images: Tensor, scale: float = 10.0) -> Tensor:
    """Two drawings of one concept nearer to each other than to drawings of others.

    Args:
        images: `[2·C,D]` unit vectors: one drawing of each of `C` concepts, then another one of each.
        scale: What cosines are multiplied with.
    """
    half = len(images) // 2
    logits = scale * images @ images.T - torch.diag(torch.full((len(images),), 1e4))  # [2C,2C]
    return functional.cross_entropy(logits, torch.arange(len(images)).roll(half))


class Balance:
    """Watches every router of a model and tells how unevenly a batch used the experts."""

    def __init__(self, model: nn.Module) -> None:
        self.seen: list[Tensor] = []
        for name, module in model.named_modules():
            if name.endswith(".gate"):
                module.register_forward_hook(self._note)

    def _note(self, _module: nn.Module, _inputs: Any, logits: Tensor) -> None:
        self.seen.append(logits)

    def loss(self, top_k: int = 2) -> Tensor:
        """Switch's balance loss, a mean over the routers: 1 where use is even. What was seen is forgotten."""
        losses = []
        for logits in self.seen:
            p = logits.float().softmax(dim=-1)  # [N,E]
            used = torch.zeros_like(p).scatter(-1, p.topk(top_k).indices, 1.0 / top_k).mean(dim=0)
            losses.append(p.shape[-1] * (used * p.mean(dim=0)).sum())
        self.seen.clear()
        return torch.stack(losses).mean()
