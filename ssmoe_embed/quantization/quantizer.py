"""Quantising a base model while transformers streams its checkpoint, one expert at a time."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils import is_bitsandbytes_available
from transformers.utils.quantization_config import QuantizationConfigMixin

from ssmoe_embed.families import family_of
from ssmoe_embed.quantization.conversions import KeepMxfp4, Pack, PackEach, StreamedConverter, merges_experts
from ssmoe_embed.quantization.packed import BlockwiseMatrices, Packable
from ssmoe_embed.quantization.settings import QuantizationSettings


def trim() -> None:
    """Hand the holes of the heap back, where the C library can; elsewhere do nothing."""
    function = _malloc_trim()
    if function is not None:
        function(0)


@cache
def _malloc_trim() -> Any:
    """Glibc's function, or None."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None


class TrimAfter:
    """A forward hook that trims the heap after a module that unpacks on the CPU; a class, so that models stay picklable."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """Trim, if it ran on the CPU."""
        del module, args
        if output.device.type == "cpu":
            trim()


METHOD = "ssmoe_4bit"
"""Its name among transformers' quantisation methods."""


@register_quantization_config(METHOD)
class FourBitConfig(QuantizationConfigMixin):
    """`QuantizationSettings` as transformers takes them."""

    def __init__(self, settings: QuantizationSettings, from_mxfp4: bool = False) -> None:
        """Wrap settings.

        Args:
            settings: How to pack what is not packed.
            from_mxfp4: The checkpoint's experts are packed in MXFP4 already.
        """
        super().__init__(quant_method=METHOD)
        self.settings = settings
        self.from_mxfp4 = from_mxfp4
        self.failures: list[Exception] = []
        """What went wrong while packing."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"quant_method": METHOD, "from_mxfp4": self.from_mxfp4} | asdict(self.settings)


@register_quantizer(METHOD)
class FourBitQuantizer(HfQuantizer):
    """Packs the linear layers and fused expert weights of a MoE decoder as they come from disk.

    Embeddings, norms, biases, routers and shared experts' gates stay as they are.
    """

    requires_calibration = False
    quantization_config: FourBitConfig

    def __init__(self, quantization_config: FourBitConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.targets: dict[str, Packable] = {}
        """The parameters that are packed, by full name."""
        self.failures = quantization_config.failures

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse what cannot work.

        Raises:
            ImportError: bitsandbytes is missing.
            ValueError: Part of the model is to be offloaded.
        """
        del args
        if not is_bitsandbytes_available():
            raise ImportError("4-bit models need bitsandbytes: pip install 'ssmoe-embed[quantization]'.")
        device_map = kwargs.get("device_map")
        places = {str(place) for place in device_map.values()} if isinstance(device_map, dict) else set()
        if "disk" in places or ("cpu" in places and len(places) > 1):
            raise ValueError(
                f"device_map offloads part of a 4-bit model ({', '.join(sorted(places))}), and packed weights cannot be "
                "offloaded. Put all of it on one device or spread it over GPUs, or load it without 4-bit."
            )

    def update_device_map(self, device_map: Any) -> Any:
        """Without a wish, the current GPU if there is one: quantising is fastest where the model will run."""
        if device_map is not None:
            return device_map
        return {"": torch.cuda.current_device() if torch.cuda.is_available() else "cpu"}

    def param_element_size(self, model: PreTrainedModel, param_name: str, param: torch.Tensor) -> float:
        """Bytes a weight, its scale included: what parameters take where a plan puts them on devices."""
        if param_name not in self.targets:
            return super().param_element_size(model, param_name, param)
        scale = 1 if self.quantization_config.settings.double else 4
        return 0.5 + scale / self.targets[param_name].block_size

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        del kwargs
        self.targets = packable(model, self.quantization_config.settings)
        # the one implementation that asks for one expert at a time; the others want the whole stack
        model.set_experts_implementation("eager")

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        del kwargs
        trim()
        for layer in family_of(model.config).blocks_with_experts(model):
            layer.experts.register_forward_hook(TrimAfter())
        return model

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **kwargs: Any) -> bool:
        """Whether it is packed when it arrives."""
        del model, kwargs
        return param_name in self.targets

    def get_quantize_ops(self) -> ConversionOps:
        """What is done to a parameter that arrives whole."""
        return Pack(self)

    def update_weight_conversions(self, weight_conversions: list[Any], model: PreTrainedModel) -> list[Any]:
        """Let parameters that arrive expert by expert be packed expert by expert, and never be whole in memory."""
        for converter in weight_conversions:
            if isinstance(converter, WeightConverter) and merges_experts(converter.operations):
                converter.operations = [PackEach(self, converter.operations)]
                converter.__class__ = StreamedConverter  # it keeps what transformers has set on it
        return [*weight_conversions, *(self._mxfp4_conversions() if self.quantization_config.from_mxfp4 else ())]

    def _mxfp4_conversions(self) -> list[WeightConverter]:
        """What keeps the experts of an MXFP4 checkpoint packed as they are."""
        names = ("gate_up_proj", "down_proj")
        return [WeightConverter([f"{name}_blocks", f"{name}_scales"], name, [KeepMxfp4(self)]) for name in names]

    def is_serializable(self) -> bool:
        """Never: the small repository points to the base model, which is packed again when it is loaded."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Packed weights are frozen."""
        return False

    def room_for(self, name: str, like: torch.Tensor) -> BlockwiseMatrices:
        """Empty packed matrices for a parameter, on the device and in the dtype of the weights that arrive."""
        shape, block_size = self.targets[name]
        settings = replace(self.quantization_config.settings, block_size=block_size)
        return BlockwiseMatrices(tuple(shape), like.dtype, like.device, settings)


def packable(model: PreTrainedModel, settings: QuantizationSettings) -> dict[str, Packable]:
    """The parameters of a model that are packed, by full name: linear layers and 3-D expert weights of its decoder.

    Args:
        model: The model, on any device.
        settings: Whether attention is packed, and how many weights share a scale.

    Raises:
        ValueError: The experts of a layer are neither.
    """
    family = family_of(model.config)
    names = {id(module): name for name, module in model.named_modules()}
    layers = family.blocks_with_experts(model)
    routers = {id(part) for layer in layers for part in layer.router.modules()}
    found: dict[str, Packable] = {}
    for layer in layers:
        prefix = names[id(layer.experts)]
        fused = {
            f"{prefix}.{name}": Packable(weight.shape, settings.block_size)
            for name, weight in layer.experts.named_parameters(recurse=False)
            if weight.ndim == 3
        }
        if not fused and not any(type(module) is nn.Linear for module in layer.experts.modules()):
            raise ValueError(
                f"4-bit loading does not know how {type(layer.experts).__name__} keeps its experts (no 3-D weights, no "
                "linear layers), so most of the model would stay as it is; load it without 4-bit."
            )
        found |= fused
    for decoder_layer, part, module in _parts(family.decoder(model).layers):
        name, attention = names[id(module)], family.is_attention(decoder_layer, part)
        if attention and not settings.attention:
            continue
        if (
            type(module) is nn.Linear
            and id(module) not in routers
            and name.rsplit(".", 1)[-1] not in family.full_precision
        ):
            block_size = settings.attention_block_size if attention else settings.block_size
            found[f"{name}.weight"] = Packable(module.weight.shape, block_size)
    return found


def _parts(layers: Iterable[nn.Module]) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Every module of decoder layers, with the layer and the name of the part of it that it belongs to."""
    for layer in layers:
        for part, child in layer.named_children():
            for module in child.modules():
                yield layer, part, module
