"""What one forward pass tells about each text at its pooled token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from accelerate.utils import align_module_device

from ssmoe_embed.embedding.methods import RoutingSignal
from ssmoe_embed.embedding.pooling import last_token
from ssmoe_embed.embedding.taps import install_taps, recording
from ssmoe_embed.families import MoEFamily, MoELayer
from ssmoe_embed.routing import SpectralRouting
from ssmoe_embed.routing.mixing import mixed_scores, scores


@dataclass(frozen=True)
class Reading:
    """One forward pass over `B` texts.

    Attributes:
        tokens: Hidden states of all tokens, `[B,T,H]`.
        hidden: Hidden state at each text's pooled token, float32 `[B,H]`.
        router_inputs: What entered each layer's router there, `[B,H]`, by layer index.
    """

    tokens: torch.Tensor
    hidden: torch.Tensor
    router_inputs: dict[int, torch.Tensor]


class Reader:
    """Runs a base model and reads its hidden state and its routers at the pooled tokens."""

    def __init__(self, model: torch.nn.Module, family: MoEFamily) -> None:
        self._family = family
        self.layers: list[MoELayer] = family.layers(model)
        install_taps(self.layers)

    @property
    def routing_size(self) -> int:
        """`ΣE`: experts of all layers."""
        return sum(self._family.expert_count(layer) for layer in self.layers)

    def read(self, model: torch.nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Reading:
        """Run the model on `[B,T]` token ids.

        Padding is moved to the right, where no causal model can see it: on the left, Hunyuan's attention and Llama 4's
        count it in, since they know a token's place in the row and not only its distance to others.
        """
        order = None
        if not attention_mask[:, 0].all():
            order = attention_mask.argsort(dim=1, descending=True, stable=True)  # [B,T], real tokens first
            input_ids, attention_mask = input_ids.gather(1, order), attention_mask.gather(1, order)
        last = last_token(attention_mask)  # [B]
        batch = torch.arange(len(last), device=last.device)
        with recording(batch * attention_mask.shape[1] + last) as taken:  # [B] rows of the N = B·T tokens
            output = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        tokens = output.last_hidden_state  # [B,T,H]
        hidden = tokens[batch.to(tokens.device), last.to(tokens.device)].float()
        if order is not None:
            back = order.argsort(dim=1).to(tokens.device).unsqueeze(-1)  # [B,T,1]
            tokens = tokens.gather(1, back.expand_as(tokens))
        return Reading(tokens, hidden, taken.inputs)

    def signal(self, reading: Reading, signal: RoutingSignal, spectral: SpectralRouting | None) -> torch.Tensor:
        """One routing signal of all layers, concatenated.

        Args:
            reading: One forward pass.
            signal: What to read off each layer's routers.
            spectral: The spectral routers and how they are mixed in; None for the learned routers alone.

        Returns:
            float32 `[B,ΣE]` on the hidden state's device.
        """
        parts = [
            self._layer_signal(layer, reading.router_inputs[layer.index], signal, spectral) for layer in self.layers
        ]
        return torch.cat([part.to(reading.hidden.device) for part in parts], dim=-1)  # L × [B,E] → [B,ΣE]

    def _layer_signal(
        self, layer: MoELayer, x: torch.Tensor, signal: RoutingSignal, spectral: SpectralRouting | None
    ) -> torch.Tensor:
        """One layer's signal `[B,E]` for its router inputs `x [B,H]`."""
        with _in_memory(layer.router):
            learned = self._family.router_logits(layer.router, x).float()
        if signal is RoutingSignal.LOGITS:
            return learned
        if spectral is None:
            if signal is RoutingSignal.WEIGHTS:
                return scores(learned, self._family.score)
            raise ValueError(f"routing_signal={str(signal)!r} needs spectral routers and the model has none.")
        e = spectral.routers.logits(layer.index, x)
        if signal is RoutingSignal.EV_LOGITS:
            return e
        return mixed_scores(learned, e, spectral.alpha, spectral.mix, self._family.score)


@contextmanager
def _in_memory(router: torch.nn.Module) -> Iterator[None]:
    """The router with its weights while the block runs: an offloaded module has them only within its own forward."""
    with ExitStack() as aligned:
        for part in router.modules():
            aligned.enter_context(align_module_device(part))
        yield
