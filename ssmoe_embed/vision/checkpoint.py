"""CLIP-MoE's published checkpoint, `clip-moe-4-2-sharegpt4v.pt`: its names and shapes, and what they are called here.

A plain state dict in the layout of OpenAI's CLIP, with experts: 915 tensors at the size of ViT-L/14.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ssmoe_embed.vision.modeling import KEPT_POSITIONS, ClipMoeConfig, ClipMoeModel

HEAD = 64
"""Dimensions of an attention head in every CLIP of OpenAI's."""
_POSITIONS = "text_model.embeddings.position_embedding.weight"
_OUTSIDE = {
    "positional_embedding": (_POSITIONS, "TH"),
    "positional_embedding_res": (_POSITIONS, "TH"),
    "text_projection": ("text_projection.weight", "HP"),
    "logit_scale": ("logit_scale", ""),
    "token_embedding.weight": ("text_model.embeddings.token_embedding.weight", "VH"),
    "visual.class_embedding": ("vision_model.embeddings.class_embedding", "W"),
    "visual.positional_embedding": ("vision_model.embeddings.position_embedding.weight", "NW"),
    "visual.proj": ("visual_projection.weight", "WP"),
    "visual.conv1.weight": ("vision_model.embeddings.patch_embedding.weight", "WCSS"),
    "ln_final.weight": ("text_model.final_layer_norm.weight", "H"),
    "ln_final.bias": ("text_model.final_layer_norm.bias", "H"),
    "visual.ln_pre.weight": ("vision_model.pre_layrnorm.weight", "W"),
    "visual.ln_pre.bias": ("vision_model.pre_layrnorm.bias", "W"),
    "visual.ln_post.weight": ("vision_model.post_layernorm.weight", "W"),
    "visual.ln_post.bias": ("vision_model.post_layernorm.bias", "W"),
}
"""By published name the name here and the published shape, for whose letters see `_layout`."""
_IN_BLOCKS = {
    "attn.in_proj_weight": ("self_attn.{qkv}_proj.weight", "AH"),
    "attn.in_proj_bias": ("self_attn.{qkv}_proj.bias", "A"),
    "attn.out_proj.weight": ("self_attn.out_proj.weight", "HH"),
    "attn.out_proj.bias": ("self_attn.out_proj.bias", "H"),
    "gate.weight": ("mlp.gate.weight", "EH"),
    "ln_1.weight": ("layer_norm1.weight", "H"),
    "ln_1.bias": ("layer_norm1.bias", "H"),
    "ln_2.weight": ("layer_norm2.weight", "H"),
    "ln_2.bias": ("layer_norm2.bias", "H"),
}
_IN_EXPERTS = {
    "c_fc.weight": ("fc1.weight", "IH"),
    "c_fc.bias": ("fc1.bias", "I"),
    "c_proj.weight": ("fc2.weight", "HI"),
    "c_proj.bias": ("fc2.bias", "H"),
}
_TRANSPOSED = ("text_projection", "visual.proj")
"""What is multiplied from the other side."""


def load_published(path: str | Path, *, top_k: int = 2, dtype: torch.dtype = torch.float32) -> ClipMoeModel:
    """Load a CLIP-MoE from its published state dict; `save_pretrained` then writes it as safetensors.

    Args:
        path: `clip-moe-4-2-sharegpt4v.pt`, or the same tensors as a `.safetensors` file. Nothing but tensors is unpickled.
        top_k: Experts per token, which the tensors do not tell (the second number in the file's name).
        dtype: Of the loaded model.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no state dict, or tensors are missing, unknown, of a wrong shape or not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {path}; download clip-moe-4-2-sharegpt4v.pt from the hub's MajorDavidZhang/CLIP-MoE. "
            "A folder that save_pretrained wrote is loaded with ClipMoeModel.from_pretrained."
        )
    try:
        is_safe = path.suffix == ".safetensors"
        found = load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, SafetensorError, RuntimeError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{path} is truncated, or holds other things than tensors ({reason}); nothing was run."
        ) from error
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        is_dictionary = isinstance(found, dict)
        kind = f"a dictionary with {sorted(map(str, found))[:5]}" if is_dictionary else f"a {type(found).__name__}"
        raise ValueError(f"{path} holds {kind}, not a state dict of named tensors; save only the model's state_dict().")
    tensors = {str(name): tensor for name, tensor in found.items()}
    return from_published(tensors, top_k=top_k, dtype=dtype, source=str(path))


def from_published(
    tensors: Mapping[str, torch.Tensor],
    *,
    top_k: int = 2,
    dtype: torch.dtype = torch.float32,
    source: str = "The checkpoint",
) -> ClipMoeModel:
    """The model of a published state dict; see `load_published`."""
    config = published_config({name: tuple(tensor.shape) for name, tensor in tensors.items()}, top_k, source)
    broken = [name for name, tensor in tensors.items() if not tensor.sum(dtype=torch.float64).isfinite()]
    if broken:
        raise ValueError(f"{source}: {_listed(broken)} hold NaN or infinity; copy or download it again.")
    state = converted(tensors, config, dtype)
    return ClipMoeModel.from_pretrained(None, config=config, state_dict=state, dtype=dtype).eval()


def published_config(
    shapes: Mapping[str, tuple[int, ...]], top_k: int = 2, source: str = "The checkpoint"
) -> ClipMoeConfig:
    """The configuration that the shapes of a published state dict tell, all of which are checked.

    Args:
        shapes: By published name.
        top_k: Experts per token.
        source: What is checked, for messages.

    Raises:
        ValueError: Tensors are missing, unknown or of a wrong shape; the message names them.
    """
    try:
        config = _told_by(shapes, top_k)
    except (KeyError, IndexError) as error:
        advice = "Names are expected as in clip-moe-4-2-sharegpt4v.pt."
        if any(".mlp.c_fc." in name for name in shapes):
            advice = "It is a dense CLIP: load that in transformers and use ClipMoeModel.from_clip."
        raise ValueError(f"{source} is no CLIP-MoE: it lacks {error}. {advice}") from None
    expected = published_shapes(config)
    wrong = [
        f"{name} is {list(shapes[name])}, not {list(shape)}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    faults = {
        "lacks": [name for name in expected if name not in shapes],
        "has unknown": [name for name in shapes if name not in expected],
        "has wrong shapes:": wrong,
        f"has widths that are no multiple of {HEAD}, an attention head's:": [
            str(tower.hidden_size) for tower in (config.text_config, config.vision_config) if tower.hidden_size % HEAD
        ],
    }
    found = "; ".join(f"{what} {_listed(names)}" for what, names in faults.items() if names)
    if found:
        raise ValueError(f"{source} is no complete CLIP-MoE in the published layout: it {found}.")
    return config


def published_shapes(config: ClipMoeConfig) -> dict[str, tuple[int, ...]]:
    """All names of a published state dict with their shapes; 915 at the published size."""
    return {name: shape for name, (_, shape) in _layout(config).items()}


def _layout(config: ClipMoeConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Every published name with the name here and the published shape."""
    text, vision = config.text_config, config.vision_config
    sizes = {
        "H": text.hidden_size,
        "T": text.max_position_embeddings,
        "V": text.vocab_size,
        "W": vision.hidden_size,
        "N": (vision.image_size // vision.patch_size) ** 2 + 1,
        "C": vision.num_channels,
        "S": vision.patch_size,
        "P": config.projection_dim,
    }
    found = {name: (here, tuple(map(sizes.__getitem__, shape))) for name, (here, shape) in _OUTSIDE.items()}
    for prefix, model, tower in (("", "text_model", text), ("visual.", "vision_model", vision)):
        H, I, E = tower.hidden_size, tower.intermediate_size, tower.num_experts  # noqa: E741 (the papers' notation)
        sizes = {"H": H, "A": 3 * H, "I": I, "E": E}
        names = dict(_IN_BLOCKS)
        for expert in range(E):
            for name, (here, shape) in _IN_EXPERTS.items():
                names[f"experts.{expert}.{name}"] = f"mlp.experts.{expert}.{here}", shape
        for index in range(tower.num_hidden_layers):
            block, layer = f"{prefix}transformer.resblocks.{index}.", f"{model}.encoder.layers.{index}."
            for name, (here, shape) in names.items():
                found[block + name] = layer + here, tuple(map(sizes.__getitem__, shape))
    return found


def converted(
    tensors: Mapping[str, torch.Tensor], config: ClipMoeConfig, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """A published state dict under the names, and in the shapes, of `ClipMoeModel`; all tensors are copies."""
    made: dict[str, torch.Tensor] = {}
    for name, (here, _) in _layout(config).items():
        if name in _TRANSPOSED:
            made[here] = tensors[name].T
        elif "{qkv}" in here:  # [3H,…] → three [H,…]
            thirds = zip("qkv", tensors[name].chunk(3), strict=True)
            made |= {here.format(qkv=which): third for which, third in thirds}
        else:
            made[here] = tensors[name]
    kept, stretched = tensors["positional_embedding"], tensors["positional_embedding_res"]
    made[_POSITIONS] = torch.cat([kept[:KEPT_POSITIONS], stretched[KEPT_POSITIONS:]])
    return {name: tensor.to(dtype, copy=True).contiguous() for name, tensor in made.items()}


def _told_by(shapes: Mapping[str, tuple[int, ...]], top_k: int) -> ClipMoeConfig:
    """The configuration, as far as shapes tell it; a `KeyError` or `IndexError` where a tensor that tells is missing."""
    width, projected = shapes["text_projection"]
    vocabulary = shapes["token_embedding.weight"][0]
    patches, (_, channels, patch, _) = shapes["visual.positional_embedding"][0] - 1, shapes["visual.conv1.weight"]

    def tower(prefix: str, width: int) -> dict[str, Any]:
        first = f"{prefix}transformer.resblocks.0."
        block = re.compile(rf"{prefix}transformer\.resblocks\.(\d+)\..+[._](weight|bias)")
        return {
            "hidden_size": width,
            "intermediate_size": shapes[f"{first}experts.0.c_fc.weight"][0],
            "num_hidden_layers": 1 + max(int(found[1]) for found in map(block.fullmatch, shapes) if found),
            "num_attention_heads": 1 if width % HEAD else width // HEAD,
            "num_experts": shapes[f"{first}gate.weight"][0],
            "num_experts_per_tok": top_k,
            "projection_dim": projected,
        }

    text = tower("", width) | {
        "vocab_size": vocabulary,
        "max_position_embeddings": shapes["positional_embedding_res"][0],
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,  # the largest id, at which the release reads a text
        "pad_token_id": 0,
    }
    vision = tower("visual.", shapes["visual.class_embedding"][0]) | {
        "num_channels": channels,
        "patch_size": patch,
        "image_size": patch * math.isqrt(patches),
    }
    return ClipMoeConfig(text_config=text, vision_config=vision, projection_dim=projected)


def _listed(names: list[str], shown: int = 5) -> str:
    """The first few names, and how many there are beside them."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
