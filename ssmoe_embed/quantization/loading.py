"""Loading a base model in 4 bits, with a peak of memory near the 4-bit size, and what its parts take in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModel, Mxfp4Config, PretrainedConfig, PreTrainedModel

from ssmoe_embed.checkpoints import Checkpoint, read_weight, scale_of
from ssmoe_embed.common.choices import Choice
from ssmoe_embed.families import MoEFamily, family_of
from ssmoe_embed.quantization.packed import PackedMatrices
from ssmoe_embed.quantization.settings import QuantizationSettings

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_EIGHT_BITS = ("F8_E4M3", "F8_E5M2")
_HUB = ("revision", "token", "cache_dir", "local_files_only")


def load_quantized(
    name_or_path: str, settings: QuantizationSettings, *, config: PretrainedConfig, **kwargs: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load the model of a checkpoint and pack its weights while they are read.

    Tensors are read by `pread`: with mapped files, which is what `from_pretrained` uses, the pages of the whole checkpoint
    count as the process's memory by the end.

    Returns:
        The model and transformers' report on what was loaded.

    Raises:
        FileNotFoundError: There are no safetensors.
        MemoryError: There is no room for the packed weights.
        ValueError: The checkpoint does not fit its configuration, or is quantised in a form that cannot be unpacked.
    """
    from ssmoe_embed.quantization.quantizer import FourBitConfig

    hub = {name: kwargs.pop(name) for name in _HUB if name in kwargs}
    trusted = {"trust_remote_code": kwargs.pop("trust_remote_code", False)}
    checkpoint = Checkpoint.open(name_or_path, **hub)
    method = _method(config)
    packed = method == "mxfp4"
    if method is not None:
        del config.quantization_config  # MXFP4 stays as it is, eight bits are unpacked, and the rest is packed here
    with torch.device("meta"):
        kind = type(AutoModel.from_config(deepcopy(config), **trusted))
    with ExitStack() as opened:
        files = {
            shard: opened.enter_context(safe_open(str(checkpoint.folder / shard), framework="pt", backend="pread"))
            for shard in sorted(set(checkpoint.shards.values()))
        }
        tensors = {name: files[shard].get_slice(name) for name, shard in checkpoint.shards.items()}
        tensors = tensors if packed else _unquantised(tensors, checkpoint, method)
        wish = kwargs.pop("dtype", kwargs.pop("torch_dtype", None))
        kwargs["dtype"] = _dtype(config, tensors) if wish in (None, "auto") else wish
        name = config.name_or_path
        wanted = FourBitConfig(settings, packed)
        try:
            model, report = kind.from_pretrained(
                None, config=config, state_dict=tensors, quantization_config=wanted, **kwargs
            )
        except RuntimeError:
            if wanted.failures:
                raise _explained(wanted.failures[0], name_or_path) from None
            raise
        model.config.name_or_path = name
    return model, report


@dataclass(frozen=True)
class _EightBits:
    """A weight that is kept in eight bits and unpacked when it is read, as transformers reads the slices of a file."""

    checkpoint: Checkpoint
    name: str

    def __getitem__(self, everything: Any) -> torch.Tensor:
        return read_weight(self.checkpoint, self.name)[everything]

    def get_dtype(self) -> str:
        """What it is unpacked to."""
        return "F32"


def _unquantised(tensors: dict[str, Any], checkpoint: Checkpoint, method: str | None) -> dict[str, Any]:
    """The tensors of a checkpoint, those in eight bits unpacked as they are read and without their scales.

    Raises:
        ValueError: It is quantised in another form.
    """
    small = {name for name, tensor in tensors.items() if tensor.get_dtype() in _EIGHT_BITS}
    if method is not None and not small:
        raise ValueError(
            f"{checkpoint.folder} is quantised already (quant_method={method!r}), in a form that is not packed again. Leave "
            "load_in_4bit and quantize out, or choose the checkpoint that is not quantised."
        )
    scales = {scale_of(checkpoint, name) for name in small}
    kept = {name: tensor for name, tensor in tensors.items() if name not in scales}
    return kept | {name: _EightBits(checkpoint, name) for name in small}


def _explained(error: Exception, name_or_path: str) -> Exception:
    """What to raise for an error while packing."""
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):  # on a GPU, on a CPU
        return MemoryError(
            f"There is no room for {name_or_path} in 4 bits: {error} Free the device, choose another one, or spread the "
            "model with model_kwargs={'device_map': 'auto'}."
        )
    if isinstance(error, ValueError):
        return ValueError(f"The checkpoint {name_or_path} does not fit its config.json: {error} Download it again.")
    return error


def _method(config: PretrainedConfig) -> str | None:
    """How the checkpoint is quantised, if it is."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    method = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None)
    return str(getattr(method, "value", method))


def unpacked_mxfp4(config: PretrainedConfig, wish: Any) -> dict[str, Any]:
    """The keywords that let transformers unpack an MXFP4 checkpoint; none for any other.

    With kernels, a GPU computes the routing inside them: the router module never runs, so it can be neither read nor
    re-routed.

    Raises:
        ValueError: The user asks for the kernels.
    """
    if _method(config) != "mxfp4":
        return {}
    if wish is not None and not getattr(wish, "dequantize", True):
        raise ValueError(
            "Mxfp4Config(dequantize=False) lets MXFP4 kernels compute the routing, and the router never runs, so it can be "
            "neither read nor re-routed. Leave quantization_config out (the experts are unpacked to 16 bits), or pass "
            "load_in_4bit=True (they stay packed in MXFP4, at a quarter of the memory, and the router runs)."
        )
    return {} if wish is not None else {"quantization_config": Mxfp4Config(dequantize=True)}


def forget_unpacking(model: PreTrainedModel) -> None:
    """Let a model whose packed checkpoint was unpacked as it was loaded be saved in its family's plain format.

    transformers notes how it converts a checkpoint and reverts that when it saves. Of an unpacking it reverts no more than
    the names: a model saved so would come back with random experts and a warning, or could not be saved at all.
    Nothing is done to a model that is packed still.
    """
    if not getattr(model, "is_quantized", False):
        model._weight_conversions = None  # the family's own are looked up when it is saved


def _dtype(config: PretrainedConfig, tensors: dict[str, Any]) -> torch.dtype:
    """The checkpoint's own dtype."""
    named = config.get_text_config().dtype or config.dtype
    if named is not None:
        return getattr(torch, named) if isinstance(named, str) else named
    kinds = (tensor.get_dtype() for tensor in tensors.values())
    return next((_DTYPES[kind] for kind in kinds if kind in _DTYPES), torch.float32)


# --- what it takes in memory ------------------------------------------------------------------------------------------


class Component(Choice):
    """A part of an embedding model."""

    EMBEDDINGS = "embeddings"
    ATTENTION = "attention"
    """And what stands in its place, such as state-space layers."""
    EXPERTS = "experts"
    SHARED_EXPERTS = "shared experts"
    """With their gates."""
    DENSE = "dense layers"
    """MLPs without experts."""
    ROUTERS = "routers"
    SPECTRAL_ROUTERS = "spectral routers"
    """W_EV, its fingerprints and its copy on the model's device."""
    CALIBRATION = "calibration"
    OTHER = "norms and other"


def memory_by_component(model: nn.Module) -> dict[Component, int]:
    """Bytes of every part of a model, packed or not. A tensor that two parts share counts once.

    Args:
        model: A transformers MoE model, an `SSMoE` module, or a `SentenceTransformer` that begins with one.

    Returns:
        Bytes by component, all components included.

    Raises:
        UnsupportedModelError: The model's family has no adapter.
    """
    sizes = dict.fromkeys(Component, 0)
    seen: set[int] = set()
    for component, tensor in _tensors(model):
        storage = tensor.untyped_storage()
        if tensor.is_meta or storage.data_ptr() in seen:
            continue
        seen.add(storage.data_ptr())
        sizes[component] += storage.nbytes()
    return sizes


def weight_count(model: nn.Module) -> int:
    """How many numbers a transformers model has learned, packed or not."""
    packed = [prod(module.shape) for module in model.modules() if isinstance(module, PackedMatrices)]
    return sum(packed) + sum(weight.numel() for weight in model.parameters())


def _tensors(model: Any) -> Iterator[tuple[Component, torch.Tensor]]:
    """Every tensor with its component."""
    if isinstance(model, nn.Sequential):
        model = model[0]
    routers, calibrations = getattr(model, "routers", None), getattr(model, "calibrations", {})
    base = model.model if hasattr(model, "calibrations") else model
    yield from _base_tensors(base)
    if routers is not None:
        for tensor in [*routers.tensors().values(), *routers._placed.values()]:
            yield Component.SPECTRAL_ROUTERS, tensor
    for calibration in getattr(calibrations, "factors", {}).values():
        for value in vars(calibration).values():
            if isinstance(value, torch.Tensor):
                yield Component.CALIBRATION, value


def _base_tensors(model: Any) -> Iterator[tuple[Component, torch.Tensor]]:
    """The base model's parameters and buffers, and the tensors that modules hold as plain attributes."""
    family = family_of(model.config)
    places = _places(model, family)
    for path, module in model.named_modules():
        owned = [*module._parameters.items(), *module._buffers.items(), *vars(module).items()]
        for name, value in owned:
            if isinstance(value, torch.Tensor):
                held = (component for prefix, component in places if f"{path}.{name}".startswith(prefix))
                yield next(held, Component.OTHER), value


def _places(model: Any, family: MoEFamily) -> list[tuple[str, Component]]:
    """Prefixes of names with their components; the first that fits holds."""
    names = {id(module): f"{name}." for name, module in model.named_modules()}
    places = [(names[id(model.get_input_embeddings())], Component.EMBEDDINGS)]
    head = model.get_output_embeddings()
    if head is not None:
        places.append((names[id(head)], Component.EMBEDDINGS))
    layers = family.blocks_with_experts(model)
    for layer in layers:
        places.append((names[id(layer.router)], Component.ROUTERS))
        places.append((names[id(layer.experts)], Component.EXPERTS))
    held = {id(part) for layer in layers for part in (layer.block, layer.router, layer.experts)}
    for layer in family.decoder(model).layers:
        for name, module in layer.named_children():
            if "norm" in name:
                continue
            for part, child in module.named_modules(prefix=name):
                if "shared" in part.rsplit(".", 1)[-1]:
                    places.append((names[id(child)], Component.SHARED_EXPERTS))
            if family.is_attention(layer, name):
                places.append((names[id(module)], Component.ATTENTION))
            elif id(module) not in held:
                places.append((names[id(module)], Component.DENSE))
    return places
