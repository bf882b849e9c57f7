"""What differs between families of MoE models, behind one interface.

A family says where its MoE layers, routers and expert matrices are, in a live model and in a checkpoint on disk, and
which score function its router applies. Everything else in the package works on this interface.
"""

from __future__ import annotations

import re
from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, ClassVar

import torch
from torch import nn

from ssmoe_embed.checkpoints import Checkpoint, StoredModule, read_row, read_weight
from ssmoe_embed.common.choices import Choice


class Score(Choice):
    """What a router applies to its logits before it picks experts."""

    SOFTMAX = "softmax"
    """Over all experts, or over the chosen ones, which orders and normalises alike."""
    SIGMOID = "sigmoid"
    """To each expert on its own."""
    SQRTSOFTPLUS = "sqrtsoftplus"
    """`√log(1 + exp(r))`, to each expert on its own."""


def each_expert(block: str, *matrices: str) -> tuple[str, ...]:
    """The names on disk of an expert's matrices that are tensors of their own, in a block of that name."""
    return tuple(f"layers.{{layer}}.{block}.experts.{{expert}}.{matrix}.weight" for matrix in matrices)


def ignored_setting(config: Any, assumed: Mapping[str, tuple[Any, ...]]) -> str | None:
    """A refusal if a setting that transformers does not implement has another value than it assumes, see `assumed`."""
    for name, values in assumed.items():
        value = getattr(config, name, values[0])
        if value not in values:
            return (
                f"its config.json says {name}={value!r}, which transformers does not implement (it runs the model as with "
                f"{name}={values[0]!r}), so its vectors would be those of another model. Choose a checkpoint of this "
                "family without that setting."
            )
    return None


def dense_model(config: Any, kind: str, setting: str, other: str) -> str:
    """A refusal of a model without experts in a family of which others have some."""
    return (
        f"it is one of the dense {kind} ({setting}={getattr(config, setting)}), which have no experts to route to; choose "
        f"one with experts, such as {other}."
    )


@dataclass(frozen=True)
class MoELayer:
    """One sparse decoder layer of a live model."""

    index: int
    """Position among all decoder layers, dense ones included."""
    block: nn.Module
    """The MoE block: what holds router and experts."""
    router: nn.Module
    experts: nn.Module


@dataclass(frozen=True)
class FamilyNotes:
    """What people want to know of a family before they use it; `ssmoe families` prints it."""

    weights: str
    """How scores become expert weights."""
    beside: str = "–"
    """What no router chooses: shared experts and dense layers."""
    layout: str = "`gate_proj`, `up_proj`, `down_proj` of each expert"
    """How a checkpoint keeps its experts."""
    four_bit: str = "yes"
    """Whether it can be loaded in 4 bits."""
    from_disk: str = "16 bits, FP8"
    """Number formats from which its experts are read without loading the model."""
    unsupported: str = "–"
    """What is refused; `MoEFamily.refusal` does it."""
    score: str = "–"
    """The score functions, where the configuration chooses among several."""


class MoEFamily(ABC):
    """One family of MoE decoders. The defaults fit the most common layout; a family overrides what differs.

    Shapes: `E` experts, `H` hidden size, `I` expert size, `N` tokens.
    """

    models: ClassVar[Mapping[str, str]]
    """The `config.model_type` values that it covers, each with well-known models; a twin is one more line."""
    notes: ClassVar[FamilyNotes]
    score: Score = Score.SOFTMAX
    block_attribute: ClassVar[str] = "mlp"
    """Attribute of a decoder layer that holds its MoE block (or its dense MLP); empty where the layer itself does."""
    router_attribute: ClassVar[str] = "gate"
    """Attribute of the MoE block that holds its router."""
    router_matrix: ClassVar[str] = "weight"
    """Where in the router its matrix is."""
    router_name: ClassVar[str] = "layers.{layer}.mlp.gate.weight"
    """On disk, below the model's prefix."""
    matrix_names: ClassVar[tuple[str, ...]] = each_expert("mlp", "gate_proj", "up_proj", "down_proj")
    """On disk, below the model's prefix: gate `[I,H]`, up `[I,H]`, down `[H,I]`."""
    packed_names: ClassVar[tuple[str, ...]] = ()
    """Instead or besides, all experts of a layer in one tensor: gate rows before up rows `[E,2I,H]`, down `[E,H,I]`.

    The names that transformers has in memory are not given here: every family may have those, see `stored_matrices`.
    """
    fused_names: ClassVar[tuple[str, ...]] = ("gate_up_proj", "down_proj")
    """What the experts module calls its weights."""
    final_norm_attribute: ClassVar[str] = "norm"
    """Attribute of the decoder that holds the norm after its last layer."""
    full_precision: ClassVar[tuple[str, ...]] = ("gate", "router", "wg", "shared_expert_gate")
    """Linear layers, by their last name, that 4 bits leave alone: routers and small gates, where rounding sends tokens
    elsewhere and gains nothing."""
    streams: ClassVar[bool] = False
    """Whether several residual streams run between its layers, so that only the last has a hidden state of size `H`."""
    layer_lists: ClassVar[tuple[str, ...]] = ("layer_types", "mlp_layer_types")
    """Names in the configuration of lists with one entry a decoder layer."""
    assumed: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Settings that transformers does not implement, each with the values that mean what it does; none means the first."""

    @property
    def model_types(self) -> tuple[str, ...]:
        """The `config.model_type` values that it covers: the whole model's, and its text part's where that has its own."""
        return tuple(self.models)

    # --- its configuration --------------------------------------------------------------------------------------------

    def register(self) -> None:  # noqa: B027 (most families have nothing to do)
        """Tell transformers of classes that it lacks; called once, before any configuration is loaded."""

    def refusal(self, config: Any, model: nn.Module | None = None) -> str | None:
        """Why a model of this family, with this `text_config`, is not supported, and the way out; None if it is."""
        return ignored_setting(config, self.assumed)

    def variant(self, config: Any) -> MoEFamily:
        """The adapter for one `text_config`, where that decides on more than what to refuse."""
        return self

    def text_config(self, config: Any) -> Any:
        """The decoder's part of a configuration: all of it, unless the model does more than read text."""
        return config.get_text_config()

    def shorten(self, config: Any, layers: int) -> None:
        """Make the configuration, in place, that of the model's first `layers` decoder layers."""
        text = self.text_config(config)
        text.num_hidden_layers = layers
        for name in self.layer_lists:
            if getattr(text, name, None):
                setattr(text, name, getattr(text, name)[:layers])

    # --- a live model -------------------------------------------------------------------------------------------------

    def decoder(self, model: nn.Module) -> Any:
        """The stack of decoder layers: the model itself, what its language-model head sits on, or its text part."""
        inner: Any = model
        while not hasattr(inner, "layers"):
            parts = [getattr(inner, name) for name in ("language_model", "model") if hasattr(inner, name)]
            if not parts:
                raise ValueError(f"{type(model).__name__} has no decoder layers; pass the language model itself.")
            inner = parts[0]
        return inner

    def drop_final_norm(self, model: nn.Module) -> None:
        """Let the model return the residual stream as its last layer leaves it."""
        decoder = self.decoder(model)
        if not hasattr(decoder, self.final_norm_attribute):
            raise ValueError(f"{type(decoder).__name__} has no {self.final_norm_attribute!r} to drop.")
        setattr(decoder, self.final_norm_attribute, nn.Identity())

    def layers(self, model: nn.Module) -> list[MoELayer]:
        """The sparse layers in order; dense ones are left out."""
        found = []
        for index, layer in enumerate(self.decoder(model).layers):
            block = getattr(layer, self.block_attribute) if self.block_attribute else layer
            if hasattr(block, self.router_attribute) and hasattr(block, "experts"):
                found.append(MoELayer(index, block, getattr(block, self.router_attribute), block.experts))
        return found

    def blocks_with_experts(self, model: nn.Module) -> list[MoELayer]:
        """`layers`, and those whose experts are chosen by something else than a score."""
        return self.layers(model)

    def is_attention(self, layer: nn.Module, part: str) -> bool:
        """Whether a part of a decoder layer, by its attribute, is attention or stands in its place."""
        return part != self.block_attribute and "shared" not in part

    def router_weight(self, router: Any) -> torch.Tensor:
        """`R [E,H]`, whose product with what has become of the router's input are its logits."""
        return attrgetter(self.router_matrix)(router)

    def expert_count(self, layer: MoELayer) -> int:
        """`E` of that layer."""
        return int(self.router_weight(layer.router).shape[0])

    def expert_groups(self, config: Any) -> tuple[int, int]:
        """Groups of neighbouring experts by a `text_config`, and of how many a token's may be; `(1, 1)` for none."""
        groups = getattr(config, "n_group", None) or 1
        return groups, (getattr(config, "topk_group", None) or 1) if groups > 1 else 1

    def expert_matrices(self, block: Any, expert: int) -> tuple[torch.Tensor, ...]:
        """The expert's matrices with rows in hidden space: gate, up, downᵀ, each `[I,H]`.

        Args:
            block: The MoE block, live or, under the same names, on disk (`StoredModule`).
            expert: Which of its experts.
        """
        gate, up = block.experts.gate_up_proj[expert].chunk(2, dim=0)  # [2I,H] → 2 × [I,H]
        return gate, up, block.experts.down_proj[expert].T  # [H,I] → [I,H]

    # --- a checkpoint on disk -----------------------------------------------------------------------------------------

    def stored_layers(self, source: Checkpoint) -> dict[int, str]:
        """The sparse layers' indices, each with the prefix that precedes `layers.` in its tensors' names."""
        names = (self.router_name, f"{self._live_block}.{self.router_attribute}.weight")
        found = sorted({place for name in names for place in _stored(name, source)})
        layers = dict(found)
        if len(layers) < len(found):
            raise ValueError(
                f"The checkpoint has several decoders, below {sorted({prefix for _, prefix in found})}; from_checkpoint "
                "cannot tell which is meant. Load the model and use SpectralRouters.from_model(model)."
            )
        return layers

    def stored_expert_layers(self, source: Checkpoint) -> set[int]:
        """The indices of the layers that have expert matrices, which should be those that have routers."""
        live = (f"{self._live_block}.experts.{name}" for name in self.fused_names)
        return {layer for name in (*self.matrix_names, *self.packed_names, *live) for layer, _ in _stored(name, source)}

    def stored_router(self, source: Checkpoint, prefix: str, layer: int) -> torch.Tensor:
        """`R [E,H]`."""
        name = prefix + self.router_name.format(layer=layer)
        live = f"{prefix}{self._live_block.format(layer=layer)}.{self.router_attribute}.weight"
        return source.read(live if live in source else name)

    def stored_matrices(self, source: Checkpoint, prefix: str, layer: int, expert: int) -> tuple[torch.Tensor, ...]:
        """The expert's matrices with rows in hidden space: gate, up, downᵀ, each `[I,H]`.

        transformers 5 saves in the family's published layout, or with `save_original_format=False` under the names and in
        the shapes that the model has in memory; those are read by the same rule as the live model's.
        """
        live = prefix + self._live_block.format(layer=layer)
        packed = [prefix + name.format(layer=layer) for name in self.packed_names]
        if f"{live}.experts.{self.fused_names[0]}" in source or not (packed or self.matrix_names):
            return self.expert_matrices(StoredModule(source, live), expert)
        if packed and (packed[0] in source or not self.matrix_names):
            gate_up, down = (read_row(source, name, expert) for name in packed)
            gate, up = gate_up.chunk(2, dim=0)  # [2I,H] → 2 × [I,H]
            return gate, up, down.T  # [H,I] → [I,H]
        names = [prefix + name.format(layer=layer, expert=expert) for name in self.matrix_names]
        *into, down = (read_weight(source, name) for name in names)
        return *into, down.T

    @property
    def _live_block(self) -> str:
        """The name of a layer's MoE block in memory, below the model's prefix."""
        return f"layers.{{layer}}.{self.block_attribute}".removesuffix(".")


def _stored(template: str, source: Checkpoint) -> set[tuple[int, str]]:
    """Layer index and prefix of every tensor whose name follows the template.

    Modules that predict tokens further ahead (`mtp.`) look like layers and are none: transformers does not load them.
    """
    escaped = re.escape(template).replace(r"\{layer\}", r"(?P<layer>\d+)").replace(r"\{expert\}", r"\d+")
    pattern = re.compile(rf"(?P<prefix>(?:.*\.)?){escaped}")
    found = {(int(match["layer"]), match["prefix"]) for match in map(pattern.fullmatch, source.shards) if match}
    return {(layer, prefix) for layer, prefix in found if "mtp" not in prefix.split(".")}
