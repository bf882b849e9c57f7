"""Families that keep all experts of a layer in one tensor, in an order or a space of their own."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import AutoModel

from ssmoe_embed.checkpoints import Checkpoint, read_row, unpack_mxfp4
from ssmoe_embed.families.base import FamilyNotes, MoEFamily, Score, dense_model, each_expert


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

    def stored_matrices(self, source: Checkpoint, prefix: str, layer: int, expert: int) -> tuple[torch.Tensor, ...]:
        """See `MoEFamily.stored_matrices`; in MXFP4, rows and columns are swapped."""
        blocks = [prefix + name.format(layer=layer) for name in self.packed_names]
        if blocks[0] not in source:
            return super().stored_matrices(source, prefix, layer, expert)
        experts = SimpleNamespace()
        for attribute, name in zip(self.fused_names, blocks, strict=True):
            scales = source.read_row(f"{name.removesuffix('_blocks')}_scales", expert)
            setattr(experts, attribute, {expert: unpack_mxfp4(source.read_row(name, expert), scales).T})  # [in,out]
        return self.expert_matrices(SimpleNamespace(experts=experts), expert)

    def refusal(self, config: Any, model: nn.Module | None = None) -> str | None:
        """See `MoEFamily.refusal`."""
        if model is None or not any(type(layer.experts).__name__.startswith("Mxfp4") for layer in self.layers(model)):
            return None
        return (
            "its MXFP4 kernels compute the routing themselves and never run the router, so it can be neither read nor "
            "re-routed. Load it with quantization_config=Mxfp4Config(dequantize=True), or through ssmoe_embed with "
            "load_in_4bit=True, which keeps the MXFP4 weights packed and runs the router."
        )


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


# Granite 3 MoE, and its successors with a shared expert, Mamba layers (Granite 4) or sliding windows.
class GraniteMoe(MoEFamily):
    """Router and experts have names of their own on disk."""

    models = {
        "granitemoe": "granite-3.1-1b-a400m, granite-3.1-3b-a800m",
        "granitemoeshared": "moe-7b-1b-active-shared-experts",
        "granitemoehybrid": "granite-4.0-h-tiny, granite-4.0-h-small",
    }
    notes = FamilyNotes(
        weights="top-k of the logits → softmax of the chosen",
        beside="a shared expert in `granitemoeshared` and `granitemoehybrid`",
        layout="all experts in one tensor, gate rows before up rows",
        unsupported="dense Granite 4 (`num_local_experts` 0)",
    )
    block_attribute = "block_sparse_moe"
    router_attribute = "router"
    router_name = "layers.{layer}.block_sparse_moe.router.layer.weight"
    matrix_names = ()
    packed_names = (
        "layers.{layer}.block_sparse_moe.input_linear.weight",
        "layers.{layer}.block_sparse_moe.output_linear.weight",
    )

    def refusal(self, config: Any, model: nn.Module | None = None) -> str | None:
        """See `MoEFamily.refusal`."""
        if config.num_local_experts:
            return None
        return dense_model(config, "Granites", "num_local_experts", "ibm-granite/granite-4.0-h-tiny")


class GraniteMoeSwa(MoEFamily):
    """Saved under the names that it has in memory."""

    models = {"granitemoe_swa": "none published yet"}
    notes = replace(GraniteMoe.notes, beside="a shared expert where `shared_intermediate_size` > 0", unsupported="–")
    block_attribute = "block_sparse_moe"
    router_attribute = "router"
    router_name = "layers.{layer}.block_sparse_moe.router.weight"
    matrix_names = ()
    layer_lists = ("layer_types", "layer_rope_theta")


class Qwen3VLMoe(MoEFamily):
    """All experts of a layer in two tensors, which checkpoints keep transposed: what is what shows in their shapes."""

    models = {
        "qwen3_vl_moe": "Qwen3-VL-30B-A3B, Qwen3-VL-235B-A22B",
        "qwen3_vl_moe_text": "its text part",
    }
    notes = FamilyNotes(
        weights="softmax → top-k → ÷ sum",
        beside="dense layers by `mlp_only_layers`, `decoder_sparse_step`; the vision model is not used",
        layout="all experts in one tensor, gate columns before up columns, or transposed",
        unsupported="images and videos",
    )
    matrix_names = ()

    def expert_matrices(self, block: Any, expert: int) -> tuple[torch.Tensor, ...]:
        """See `MoEFamily.expert_matrices`."""
        gate_up, down = block.experts.gate_up_proj[expert], block.experts.down_proj[expert]
        if gate_up.shape[1] != down.shape[0]:  # [H,2I] and [I,H], not [2I,H] and [H,I]
            gate_up, down = gate_up.T, down.T
        gate, up = gate_up.chunk(2, dim=0)
        return gate, up, down.T


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

    def stored_matrices(self, source: Checkpoint, prefix: str, layer: int, expert: int) -> tuple[torch.Tensor, ...]:
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
    router_matrix = "proj.weight"
    router_name = "layers.{layer}.router.proj.weight"
    matrix_names = ()

    def refusal(self, config: Any, model: nn.Module | None = None) -> str | None:
        """See `MoEFamily.refusal`."""
        if config.enable_moe_block:
            return None
        return (
            "it is one of the dense Gemmas (enable_moe_block=False), which have no experts to route to; choose "
            "google/gemma-4-26B-A4B."
        )

    def is_attention(self, layer: nn.Module, part: str) -> bool:
        """See `MoEFamily.is_attention`."""
        return part == "self_attn"

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
