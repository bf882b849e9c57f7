"""Families that keep all experts of a layer in one tensor, in an order or a space of their own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import AutoModel

from ssmoe_embed.checkpoints.formats import read_row, unpack_mxfp4
from ssmoe_embed.checkpoints.shards import TensorSource
from ssmoe_embed.families.base import FamilyNotes, MoEFamily, Score, each_expert


# GPT-OSS (arXiv 2508.10925).
class GptOss(MoEFamily):
    """All experts of a layer in one tensor, gate and up columns interleaved; the router has a bias."""

    models = {"gpt_oss": "gpt-oss-20b, gpt-oss-120b"}
    notes = FamilyNotes(
        weights="top-k of the logits, with the router's bias → softmax of the chosen",
        layout="all experts in one tensor, gate and up columns interleaved; in MXFP4 on the hub",
        four_bit="yes, also as the checkpoint's MXFP4",
        from_disk="16 bits, MXFP4",
        unsupported="MXFP4 kernels on a GPU, which bypass the router (it is unpacked instead)",
    )
    router_attribute = "router"
    router_name = "layers.{layer}.mlp.router.weight"
    matrix_names = ()
    packed_names = ("layers.{layer}.mlp.experts.gate_up_proj_blocks", "layers.{layer}.mlp.experts.down_proj_blocks")

    def expert_matrices(self, block: Any, expert: int) -> tuple[torch.Tensor, ...]:
        """See `MoEFamily.expert_matrices`."""
        gate_up, down = block.experts.gate_up_proj[expert], block.experts.down_proj[expert]  # [H,2I], [I,H]
        return gate_up[:, ::2].T, gate_up[:, 1::2].T, down

    def stored_matrices(self, source: TensorSource, prefix: str, layer: int, expert: int) -> tuple[torch.Tensor, ...]:
        """See `MoEFamily.stored_matrices`; in MXFP4, rows and columns are swapped."""
        blocks = [prefix + name.format(layer=layer) for name in self.packed_names]
        if blocks[0] not in source:
            return super().stored_matrices(source, prefix, layer, expert)
        gate_up, down = (_unpacked(source, name, expert) for name in blocks)
        experts = SimpleNamespace(gate_up_proj={expert: gate_up}, down_proj={expert: down})
        return self.expert_matrices(SimpleNamespace(experts=experts), expert)

    def refusal(self, config: Any, model: nn.Module | None = None) -> str | None:
        """See `MoEFamily.refusal`."""
        del config
        if model is None or not any(type(layer.experts).__name__.startswith("Mxfp4") for layer in self.layers(model)):
            return None
        return (
            "its MXFP4 kernels compute the routing themselves and never run the router, so it can be neither read nor "
            "re-routed. Load it with quantization_config=Mxfp4Config(dequantize=True), or through ssmoe_embed with "
            "load_in_4bit=True, which keeps the MXFP4 weights packed and runs the router."
        )


def _unpacked(source: TensorSource, blocks: str, expert: int) -> torch.Tensor:
    """One expert's matrix `[in,out]`."""
    scales = f"{blocks.removesuffix('_blocks')}_scales"
    return unpack_mxfp4(source.read_row(blocks, expert), source.read_row(scales, expert)).T


# Llama 4 (https://ai.meta.com/blog/llama-4-multimodal-intelligence/); its text part.
class Llama4(MoEFamily):
    """All experts of a layer in one tensor; an expert's score scales what enters it, not what comes out."""

    models = {"llama4": "Llama-4-Scout, Llama-4-Maverick", "llama4_text": "its text part"}
    notes = FamilyNotes(
        weights="top-k of the logits → sigmoid, applied to the expert's input",
        beside="a shared expert; dense layers by `interleave_moe_layer_step`; the vision model is not used",
        layout="all experts in one tensor, gate columns before up columns; or `gate_proj`, `up_proj`, `down_proj` of each",
        unsupported="images",
    )
    score = Score.SIGMOID
    block_attribute = "feed_forward"
    router_attribute = "router"
    router_name = "layers.{layer}.feed_forward.router.weight"
    matrix_names = each_expert("feed_forward", "gate_proj", "up_proj", "down_proj")
    layer_lists = ("layer_types", "no_rope_layers")

    def shorten(self, config: Any, layers: int) -> None:
        """See `MoEFamily.shorten`."""
        super().shorten(config, layers)
        text = self.text_config(config)
        text.moe_layers = [layer for layer in text.moe_layers if layer < layers]

    def expert_matrices(self, block: Any, expert: int) -> tuple[torch.Tensor, ...]:
        """See `MoEFamily.expert_matrices`."""
        gate, up = block.experts.gate_up_proj[expert].T.chunk(2, dim=0)  # [H,2I] → 2 × [I,H]
        return gate, up, block.experts.down_proj[expert]  # [I,H]


# Step 3.5 and 3.7 (https://huggingface.co/stepfun-ai/Step-3.7-Flash); the text part.
class Step3(MoEFamily):
    """Gate, up and down of all experts in one tensor each. The correction bias chooses and does not weigh."""

    models = {"step3p7": "Step-3.7-Flash", "step3p5": "its text part"}
    notes = FamilyNotes(
        weights="sigmoid; top-k of score + correction bias; weight = score ÷ sum, × `moe_router_scaling_factor`",
        beside="a shared expert; dense layers by `mlp_layer_types`; the vision model is not used",
        layout="`gate_proj`, `up_proj`, `down_proj` of all experts in one tensor each, in `moe`",
        from_disk="16 bits",
        unsupported="images",
    )
    score = Score.SIGMOID
    router_name = "layers.{layer}.moe.gate.weight"
    matrix_names = (
        "layers.{layer}.moe.gate_proj.weight",
        "layers.{layer}.moe.up_proj.weight",
        "layers.{layer}.moe.down_proj.weight",
    )

    def register(self) -> None:
        """See `MoEFamily.register`; transformers knows the text part only inside the whole."""
        from transformers.models.step3p7 import modeling_step3p7 as step

        AutoModel.register(step.Step3p7TextConfig, step.Step3p7TextModel, exist_ok=True)

    def stored_matrices(self, source: TensorSource, prefix: str, layer: int, expert: int) -> tuple[torch.Tensor, ...]:
        """See `MoEFamily.stored_matrices`."""
        names = [prefix + name.format(layer=layer) for name in self.matrix_names]
        if names[0] not in source:
            return super().stored_matrices(source, prefix, layer, expert)
        gate, up, down = (read_row(source, name, expert) for name in names)
        return gate, up, down.T


# Gemma 4 with experts (https://ai.google.dev/gemma/docs/core/model_card_4); its text part.
class Gemma4(MoEFamily):
    """Router and experts stand beside a dense MLP in the decoder layer, each with a norm of its own.

    The router multiplies `z = rms(x) · s`, with `s = scale/√H`, and the experts `u = rms(x) · w`: one vector in two
    coordinates. The experts' matrices are given in the router's: what reads `u` is multiplied by `w/s`, what writes is
    divided by it.
    """

    models = {"gemma4": "gemma-4-26B-A4B", "gemma4_text": "its text part"}
    notes = FamilyNotes(
        weights="softmax → top-k ÷ sum, × `per_expert_scale`",
        beside="a dense MLP in every layer",
        layout="all experts in one tensor, gate rows before up rows, in the decoder layer itself",
        unsupported="dense Gemma 4 (`enable_moe_block` false); images, sound and video",
    )
    block_attribute = ""
    router_attribute = "router"
    router_name = "layers.{layer}.router.proj.weight"
    matrix_names = ()

    def refusal(self, config: Any, model: nn.Module | None = None) -> str | None:
        """See `MoEFamily.refusal`."""
        del model
        if config.enable_moe_block:
            return None
        return (
            "it is one of the dense Gemmas (enable_moe_block=False), which have no experts to route to; choose "
            "google/gemma-4-26B-A4B."
        )

    def is_attention(self, layer: nn.Module, part: str) -> bool:
        """See `MoEFamily.is_attention`."""
        del layer
        return part == "self_attn"

    def router_weight(self, router: Any) -> torch.Tensor:
        """See `MoEFamily.router_weight`."""
        weight: torch.Tensor = router.proj.weight
        return weight

    def expert_matrices(self, block: Any, expert: int) -> tuple[torch.Tensor, ...]:
        """See `MoEFamily.expert_matrices`."""
        gate, up, down = (matrix.double() for matrix in super().expert_matrices(block, expert))
        scale = block.router.scale.double() * gate.shape[1] ** -0.5  # [H]
        weight = block.pre_feedforward_layernorm_2.weight.double()  # [H]
        reads, writes = _ratio(weight, scale), _ratio(scale, weight)
        return gate * reads, up * reads, down * writes


def _ratio(above: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
    """Their ratio, 0 where one of them never sees that dimension."""
    return torch.where(below == 0, torch.zeros_like(above), above / below)
