"""EmbedFilter, https://arxiv.org/abs/2606.07502: the hidden state in the middle of the unembedding's spectrum."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch

from ssmoe_embed.checkpoints import Checkpoint, read_weight
from ssmoe_embed.embedding.base_model import BaseModelSource
from ssmoe_embed.embedding.encoder import Encoder
from ssmoe_embed.embedding.settings import ForwardSettings
from ssmoe_embed.evaluation.baselines.base import ModelBaseline

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
