"""Training-free embeddings of a base model that use its unembedding or its attention.

EmbedFilter, https://arxiv.org/abs/2606.07502; AlignedWVA, https://arxiv.org/abs/2602.01572.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ssmoe_embed.checkpoints.float8 import read_weight
from ssmoe_embed.checkpoints.shards import Checkpoint
from ssmoe_embed.embedding.base_model import BaseModelSource
from ssmoe_embed.embedding.encoder import Encoder
from ssmoe_embed.embedding.settings import ForwardSettings
from ssmoe_embed.evaluation.baselines.pooled import ModelBaseline

_HEAD = "lm_head.weight"


class EmbedFilter(ModelBaseline):
    """The last hidden state in the middle half of the unembedding's spectrum: `H/2` numbers.

    The directions of the largest and of the smallest singular values, which write frequent tokens that say little, are left
    out, as many of each, as the authors' code does.
    """

    def __init__(self, encoder: Encoder, forward: ForwardSettings, unembedding: Callable[[], torch.Tensor]) -> None:
        """Bind a model.

        Args:
            encoder: See `ModelBaseline`.
            forward: Likewise.
            unembedding: Reads `W_U [V,H]`, when it is needed.
        """
        super().__init__(encoder, forward)
        self._unembedding = unembedding

    @cached_property
    def basis(self) -> torch.Tensor:
        """The directions that are kept, `[H//2,H]`."""
        return middle_directions(self._unembedding())

    def rows(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """See `ModelBaseline.rows`."""
        hidden = self.read(tokens).hidden  # [B,H]
        return hidden @ self.basis.to(hidden.device).T


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


def middle_directions(unembedding: torch.Tensor) -> torch.Tensor:
    """The right singular vectors of the middle half of the singular values.

    Args:
        unembedding: `W_U [V,H]`.

    Returns:
        float32 `[H//2,H]`.
    """
    H = unembedding.shape[1]
    squares = torch.zeros(H, H, dtype=torch.float64)
    for rows in torch.split(unembedding, 2**14):
        part = rows.detach().double().cpu()
        squares += part.T @ part
    vectors = torch.linalg.eigh(squares).eigenvectors.flip(1).T  # [H,H], the largest first
    kept = H // 2
    start = (H - kept) // 2
    return vectors[start : start + kept].float()


def unembedding_of(encoder: Encoder, source: BaseModelSource) -> torch.Tensor:
    """`W_U [V,H]`, which the model without its head does not have unless it is tied to the embeddings.

    Args:
        encoder: Of the model.
        source: Where it came from.

    Raises:
        ValueError: Its checkpoint has no unembedding, or cannot be read.
    """
    model = encoder.model
    if model.config.get_text_config().tie_word_embeddings:
        weight: torch.Tensor = model.get_input_embeddings().weight
        return weight
    checkpoint = Checkpoint.open(source.name_or_path, **source.hub.keywords)
    name = next((name for name in sorted(checkpoint.names(), key=len) if name.endswith(_HEAD)), None)
    if name is None:
        raise ValueError(
            f"The checkpoint in {source.name_or_path} has no {_HEAD}, so embed-filter has no unembedding to filter by; "
            "leave that baseline out."
        )
    return read_weight(checkpoint, name)
