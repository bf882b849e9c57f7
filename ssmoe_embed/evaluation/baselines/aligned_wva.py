"""AlignedWVA, https://arxiv.org/abs/2602.01572: what attention adds to the residual stream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ssmoe_embed.evaluation.baselines.base import ModelBaseline


class AlignedWVA(ModelBaseline):
    """What attention adds to the residual stream at the last token, the mean over the later half of the layers.

    That is the values of all tokens, weighed by the last token's attention to them and brought into the stream's space by
    the output projection. Which layers are pooled is not in what we could read of the paper; the half is ours.
    """

    def rows(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """See `ModelBaseline.rows`."""
        family, model = self.encoder.family, self.encoder.model
        layers = list(family.decoder(model).layers)
        found = [
            part
            for layer in layers[len(layers) // 2 :]
            for name, part in layer.named_children()
            if family.is_attention(layer, name) and any(isinstance(one, nn.Linear) for one in part.modules())
        ]
        last = tokens["attention_mask"].sum(dim=1) - 1  # [B], where the model is given padding on the right
        with _outputs(found, last, self.encoder.hidden_size) as outputs:
            device = self.read(tokens).hidden.device
        return torch.stack([one.to(device) for one in outputs]).mean(dim=0)  # [B,H]


@contextmanager
def _outputs(parts: list[nn.Module], last: torch.Tensor, size: int) -> Iterator[list[torch.Tensor]]:
    """What modules give out at the last tokens while the block runs a model, float32 `[B,H]` each."""
    found: list[torch.Tensor] = []

    def hook(_: nn.Module, args: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output  # [B,T,H]
        if isinstance(states, torch.Tensor) and states.ndim == 3 and states.shape[-1] == size:
            places = last.to(states.device)
            found.append(states[torch.arange(len(places), device=states.device), places].float())

    handles = [part.register_forward_hook(hook) for part in parts]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
