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
_TOWERS = {"": "text_model", "visual.": "vision_model"}
_OUTSIDE = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
"""What is only called otherwise."""
_TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
"""What is multiplied from the other side."""
_IN_BLOCKS = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "gate": "mlp.gate",
}
_BLOCK = re.compile(
    r"(?P<tower>|visual\.)transformer\.resblocks\.(?P<index>\d+)\.(?P<module>.+)(?P<part>[._](?:weight|bias))"
)
_EXPERT = re.compile(r"experts\.(\d+)\.(c_fc|c_proj)")


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
    return from_published(read_state_dict(path), top_k=top_k, dtype=dtype, source=str(path))


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.pt` or `.safetensors` file by name.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds anything but named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {path}; download clip-moe-4-2-sharegpt4v.pt from the hub's MajorDavidZhang/CLIP-MoE. "
            "A folder that save_pretrained wrote is loaded with ClipMoeModel.from_pretrained."
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, SafetensorError, RuntimeError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{path} is truncated, or holds other things than tensors ({reason}); nothing was run."
        ) from error
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        kind = (
            f"a dictionary with {sorted(map(str, found))[:5]}"
            if isinstance(found, dict)
            else f"a {type(found).__name__}"
        )
        raise ValueError(f"{path} holds {kind}, not a state dict of named tensors; save only the model's state_dict().")
    return {str(name): tensor for name, tensor in found.items()}


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
    return ClipMoeModel.from_pretrained(None, config=config, state_dict=converted(tensors, dtype), dtype=dtype).eval()


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
        dense = any(".mlp.c_fc." in name for name in shapes)
        advice = (
            "It is a dense CLIP: load that in transformers and use ClipMoeModel.from_clip."
            if dense
            else ("Names are expected as in clip-moe-4-2-sharegpt4v.pt.")
        )
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
    text, vision, P = config.text_config, config.vision_config, config.projection_dim
    H, V = text.hidden_size, vision.hidden_size
    positions, patches = (text.max_position_embeddings, H), (vision.image_size // vision.patch_size) ** 2
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": positions,
        "positional_embedding_res": positions,
        "text_projection": (H, P),
        "logit_scale": (),
        "token_embedding.weight": (text.vocab_size, H),
        "visual.class_embedding": (V,),
        "visual.positional_embedding": (patches + 1, V),
        "visual.proj": (V, P),
        "visual.conv1.weight": (V, vision.num_channels, vision.patch_size, vision.patch_size),
    }
    for norm, width in (("ln_final", H), ("visual.ln_pre", V), ("visual.ln_post", V)):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for prefix, tower in (("", text), ("visual.", vision)):
        for index in range(tower.num_hidden_layers):
            block = f"{prefix}transformer.resblocks.{index}."
            shapes |= {block + name: shape for name, shape in _block_shapes(tower).items()}
    return shapes


def converted(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """A published state dict under the names, and in the shapes, of `ClipMoeModel`; all tensors are copies."""
    made = {
        "text_model.embeddings.position_embedding.weight": torch.cat(
            [tensors["positional_embedding"][:KEPT_POSITIONS], tensors["positional_embedding_res"][KEPT_POSITIONS:]]
        )
    }
    for name, tensor in tensors.items():
        block = _BLOCK.fullmatch(name)
        if block is not None:
            made |= _converted_block(block, tensor)
        elif name in _TRANSPOSED:
            made[_TRANSPOSED[name]] = tensor.T
        elif name in _OUTSIDE:
            made[_OUTSIDE[name]] = tensor
    return {name: tensor.to(dtype, copy=True).contiguous() for name, tensor in made.items()}


def _converted_block(name: re.Match[str], tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """One tensor of a block; attention's input projection `[3H,…]` becomes three `[H,…]`."""
    block, part = f"{_TOWERS[name['tower']]}.encoder.layers.{name['index']}.", name["part"][1:]
    expert = _EXPERT.fullmatch(name["module"])
    if expert is not None:
        return {f"{block}mlp.experts.{expert[1]}.{'fc1' if expert[2] == 'c_fc' else 'fc2'}.{part}": tensor}
    if name["module"] == "attn.in_proj":
        thirds = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{block}self_attn.{which}_proj.{part}": third for which, third in thirds}
    return {f"{block}{_IN_BLOCKS[name['module']]}.{part}": tensor}


def _block_shapes(tower: Any) -> dict[str, tuple[int, ...]]:
    """The names of one block's tensors with their shapes."""
    H, I, E = tower.hidden_size, tower.intermediate_size, tower.num_experts  # noqa: E741 (the papers' notation)
    shapes: dict[str, tuple[int, ...]] = {
        "attn.in_proj_weight": (3 * H, H),
        "attn.in_proj_bias": (3 * H,),
        "attn.out_proj.weight": (H, H),
        "attn.out_proj.bias": (H,),
        "gate.weight": (E, H),
    }
    for norm in ("ln_1", "ln_2"):
        shapes |= {f"{norm}.weight": (H,), f"{norm}.bias": (H,)}
    for expert in range(E):
        into, back = f"experts.{expert}.c_fc", f"experts.{expert}.c_proj"
        shapes |= {f"{into}.weight": (I, H), f"{into}.bias": (I,), f"{back}.weight": (H, I), f"{back}.bias": (H,)}
    return shapes


def _told_by(shapes: Mapping[str, tuple[int, ...]], top_k: int) -> ClipMoeConfig:
    """The configuration, as far as shapes tell it; a `KeyError` or `IndexError` where a tensor that tells is missing."""
    blocks = [match for match in map(_BLOCK.fullmatch, shapes) if match is not None]
    width, projected = shapes["text_projection"]
    vocabulary = shapes["token_embedding.weight"][0]
    patches, (_, channels, patch, _) = shapes["visual.positional_embedding"][0] - 1, shapes["visual.conv1.weight"]

    def tower(prefix: str, width: int) -> dict[str, Any]:
        first = f"{prefix}transformer.resblocks.0."
        return {
            "hidden_size": width,
            "intermediate_size": shapes[f"{first}experts.0.c_fc.weight"][0],
            "num_hidden_layers": 1 + max(int(block["index"]) for block in blocks if block["tower"] == prefix),
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
