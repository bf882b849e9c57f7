"""One model, one tokenizer, any forward pass: a text in its template is read once, at the template's last token.

A learned router and its spectral twin see the same `x`, so `x` and the learned logits at the pooled token are all that any
routing signal needs; sites around the routers record them while the model runs (`routing/sites.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ssmoe_embed.embedding.methods import RoutingSignal
from ssmoe_embed.embedding.prompts import templates
from ssmoe_embed.embedding.settings import Block, EmbeddingSettings, ForwardSettings
from ssmoe_embed.embedding.tokenization import TemplateTokenizer
from ssmoe_embed.families import MoEFamily, MoELayer, family_of
from ssmoe_embed.routing.mixing import mixed_scores, scores
from ssmoe_embed.routing.named import policy_named
from ssmoe_embed.routing.policies import RoutingPolicy, SpectralMix, SpectralRouting
from ssmoe_embed.routing.sites import install_sites, keep_context_in_checkpoints, recording, routed
from ssmoe_embed.routing.tokens import needs_tokens, noted
from ssmoe_embed.spectral.routers import SpectralRouters


@dataclass(frozen=True)
class Reading:
    """What one forward pass tells about `B` texts.

    Attributes:
        tokens: Hidden states of all tokens, `[B,T,H]`.
        hidden: Hidden state at each text's pooled token, float32 `[B,H]`.
        router_inputs: What each layer's router was given there, `[B,H]`, by decoder layer index.
        router_logits: What it made of it, `[B,E]`, by decoder layer index.
    """

    tokens: torch.Tensor
    hidden: torch.Tensor
    router_inputs: dict[int, torch.Tensor]
    router_logits: dict[int, torch.Tensor]


@dataclass(frozen=True)
class Encoder:
    """A base model that reads texts under any `ForwardSettings`, each for that call only.

    Nothing is changed by reading, so threads can share an encoder, whatever routing each of them asks for.

    Attributes:
        model: The base model without its head.
        tokenizer: Its fast tokenizer.
        routers: The spectral routers of this very model, if it has any.

    Raises:
        UnsupportedModelError: The model's family has no adapter.
        ValueError: The spectral routers are another model's.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    routers: SpectralRouters | None = None
    _tokenizers: dict[tuple[str, str, int], TemplateTokenizer] = field(default_factory=dict, repr=False, compare=False)
    _policies: dict[str, tuple[int, RoutingPolicy]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.routers is not None:
            self.routers.check(self.model)
        install_sites(self.model, self.family)

    @cached_property
    def family(self) -> MoEFamily:
        """The model's adapter."""
        return family_of(self.model)

    @cached_property
    def layers(self) -> list[MoELayer]:
        """The layers with experts."""
        return self.family.layers(self.model)

    @property
    def hidden_size(self) -> int:
        """`H`."""
        return int(self.model.config.get_text_config().hidden_size)

    def block_size(self, block: Block) -> int:
        """`D`: numbers per text, `H` of the hidden state or `ΣE`, the experts of all layers."""
        return self.hidden_size if block.signal is None else sum(map(self.family.expert_count, self.layers))

    def limit(self, forward: ForwardSettings) -> int:
        """Tokens read of a text, template included: the setting, or fewer where the model takes fewer."""
        config = self.model.config.get_text_config()
        longest = getattr(config, "max_position_embeddings", None) or self.tokenizer.model_max_length
        return int(longest if forward.max_seq_length is None else min(forward.max_seq_length, longest))

    # --- reading ------------------------------------------------------------------------------------------------------

    def tokenize(self, texts: Sequence[str], forward: ForwardSettings, prompt: str = "") -> dict[str, torch.Tensor]:
        """Token ids of texts in their template.

        Args:
            texts: `B` texts.
            forward: Names the template.
            prompt: A sentence-transformers prompt, put before the template.

        Returns:
            `input_ids` and `attention_mask`, `[B,T]`; `P` rows per text for an ensemble of `P` prompts.

        Raises:
            TextError: An input is not a string.
            ValueError: The template alone fills the limit.
        """
        return self._template_tokenizer(forward)(texts, prompt)

    def _template_tokenizer(self, forward: ForwardSettings) -> TemplateTokenizer:
        """What puts texts into the template of a forward pass."""
        key = (forward.prompt, forward.instruction, self.limit(forward))
        if key not in self._tokenizers:
            self._tokenizers[key] = TemplateTokenizer(self.tokenizer, templates(*key[:2]), key[2])
        return self._tokenizers[key]

    def check(self, settings: EmbeddingSettings) -> None:
        """Make sure that settings can be read by this model as it is.

        Raises:
            ValueError: The template fills the limit, there is no router to read, spectral routers are needed and there
                are none, or the routing does not fit the model.
        """
        self._template_tokenizer(settings.forward)
        self.check_layers(settings)
        if settings.needs_spectral_routers:
            self._spectral(f"method={str(settings.method)!r}")
        if settings.routing is not None:
            known = self._policies.get(settings.routing)
            if known is not None and known[0] != self._weights_version():
                self._policies.pop(settings.routing, None)  # made of weights that have changed since
            self.policy(settings.forward)

    def check_layers(self, settings: EmbeddingSettings) -> None:
        """Make sure that a method that reads routers finds some: the first layers of many families are dense.

        Raises:
            ValueError: There is none among the layers that are run.
        """
        if settings.representation.signal is not None and not self.layers:
            raise ValueError(
                f"hidden_layer={settings.hidden_layer} lies below the first layer with experts, so method="
                f"{str(settings.method)!r} has no router to read; choose a later layer, or method='smoe'."
            )

    def policy(self, forward: ForwardSettings) -> RoutingPolicy | None:
        """What routes a forward pass; None for the model's own routers.

        Raises:
            ValueError: It needs spectral routers and there are none, or does not fit the model.
        """
        routing = forward.routing
        if isinstance(routing, SpectralMix):
            return SpectralRouting(self._spectral("a re-routed forward pass"), routing.alpha, routing.mix)
        if isinstance(routing, str):
            if routing not in self._policies:
                made = policy_named(routing, self.model, self.tokenizer)
                self._policies[routing] = (self._weights_version(), made)
            return self._policies[routing][1]
        if routing is not None:
            routing.check(self.model)
        return routing

    def _weights_version(self) -> int:
        """Changes whenever a weight is changed in place, as by training."""
        return sum(weight._version for weight in self.model.parameters() if not weight.is_inference())

    def read(self, features: dict[str, torch.Tensor], forward: ForwardSettings) -> Reading:
        """Run the model on a batch.

        Padding is moved to the right, where no causal model can see it: on the left, Hunyuan's attention and Llama 4's
        count it in, since they know a token's place in the row and not only its distance to others.

        Args:
            features: `input_ids` and `attention_mask`, `[B,T]`.
            forward: The forward pass.

        Raises:
            ValueError: A text has no token, or the forward pass needs spectral routers and there are none.
        """
        ids, mask, order = features["input_ids"], features["attention_mask"], None
        if not mask[:, 0].all():
            order = mask.argsort(dim=1, descending=True, stable=True)  # [B,T], real tokens first
            ids, mask = ids.gather(1, order), mask.gather(1, order)
        places = torch.arange(mask.shape[1], device=mask.device) + 1  # [T]
        last = (mask.bool() * places).amax(dim=1) - 1  # [B,T] → [B]
        if bool((last < 0).any()):
            empty = [int(row) for row in (last < 0).nonzero().flatten()]
            raise ValueError(f"The texts at positions {empty} of the batch have no token that is not padding.")
        batch = torch.arange(len(last), device=last.device)
        policy = self.policy(forward)
        keep_context_in_checkpoints(self.model)
        rows = batch * mask.shape[1] + last  # [B] of the N = B·T tokens
        with recording(rows) as taken, routed(policy), noted(ids, mask) if needs_tokens(policy) else nullcontext():
            output = self.model(input_ids=ids, attention_mask=mask, use_cache=False)
        tokens = output.last_hidden_state  # [B,T,H]
        hidden = tokens[batch.to(tokens.device), last.to(tokens.device)].float()
        if order is not None:
            back = order.argsort(dim=1).to(tokens.device).unsqueeze(-1)  # [B,T,1]
            tokens = tokens.gather(1, back.expand_as(tokens))
        return Reading(tokens, hidden, taken.inputs, taken.logits)

    def features(self, reading: Reading, block: Block) -> torch.Tensor:
        """The features `[B,D]` of one block, float32, before calibration.

        A text that stands in several templates has as many rows in the reading; its features are their mean.
        """
        features = reading.hidden
        if block.signal is not None:
            features = self.signal(reading, block.signal, block.mix or SpectralMix())
        count = len(templates(block.forward.prompt))  # P
        if count == 1:
            return features
        return features.reshape(-1, count, features.shape[-1]).mean(dim=1)  # [B·P,D] → [B,D]

    def signal(self, reading: Reading, signal: RoutingSignal, mix: SpectralMix) -> torch.Tensor:
        """One routing signal of all layers, concatenated.

        Args:
            reading: One forward pass.
            signal: What to read off each layer's routers.
            mix: Of learned and spectral scores, for the signal `weights`.

        Returns:
            float32 `[B,ΣE]` on the hidden state's device.

        Raises:
            ValueError: It needs spectral routers and there are none.
        """
        parts, score = [], self.family.score
        for layer in self.layers:
            part = reading.router_logits[layer.index].float()  # [B,E]
            if signal is RoutingSignal.SCORES or (signal is RoutingSignal.WEIGHTS and mix.alpha == 0):
                part = scores(part, score)
            elif signal is not RoutingSignal.LOGITS:
                routers = self._spectral(f"routing_signal={str(signal)!r}")
                spectral = routers.logits(layer.index, reading.router_inputs[layer.index])
                mixes = signal is RoutingSignal.WEIGHTS
                part = mixed_scores(part, spectral, mix.alpha, mix.mix, score) if mixes else spectral
            parts.append(part.to(reading.hidden.device))
        return torch.cat(parts, dim=-1)  # L × [B,E] → [B,ΣE]

    def _spectral(self, what: str) -> SpectralRouters:
        if self.routers is None:
            raise ValueError(
                f"{what} needs spectral routers and the model has none; build it with `ssmoe build`, or pass "
                "routers=SpectralRouters.from_model(model)."
            )
        return self.routers
