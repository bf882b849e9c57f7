"""Loading a base model in 4 bits, with a peak of memory near the 4-bit size."""

from __future__ import annotations

from contextlib import ExitStack
from copy import deepcopy
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModel, Mxfp4Config, PretrainedConfig, PreTrainedModel

from ssmoe_embed.checkpoints import Checkpoint, read_weight, scale_of
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
    method, packed = _method(config), is_mxfp4(config)
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


class _EightBits:
    """A weight that is kept in eight bits and unpacked when it is read, as transformers reads the slices of a file."""

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        self.checkpoint = checkpoint
        self.name = name

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


def is_mxfp4(config: PretrainedConfig) -> bool:
    """Whether the checkpoint's experts are packed in MXFP4."""
    return _method(config) == "mxfp4"


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
    if not is_mxfp4(config):
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

    Args:
        model: A model of a checkpoint with a `quantization_config`; nothing is done if it is packed still.
    """
    if not getattr(model, "is_quantized", False):
        model._weight_conversions = None  # the family's own are looked up when it is saved


def _dtype(config: PretrainedConfig, tensors: dict[str, Any]) -> torch.dtype:
    """The checkpoint's own dtype."""
    named = config.get_text_config().dtype or config.dtype
    if named is not None:
        return getattr(torch, named) if isinstance(named, str) else named
    found = [_DTYPES[kind] for kind in (tensor.get_dtype() for tensor in tensors.values()) if kind in _DTYPES]
    return found[0] if found else torch.float32
