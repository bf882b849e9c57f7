"""Quantising a base model while transformers streams its checkpoint, one expert at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps, MergeModulelist, WeightConverter
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils import is_bitsandbytes_available
from transformers.utils.quantization_config import QuantizationConfigMixin

from ssmoe_embed.families import family_of
from ssmoe_embed.quantization.packed import BlockwiseMatrices, Mxfp4Matrices, PackedLinear, PackedMatrices
from ssmoe_embed.quantization.settings import QuantizationSettings

METHOD = "ssmoe_4bit"
"""Its name among transformers' quantisation methods."""
_KEPT = ("gate", "router", "wg", "shared_expert_gate")
"""What routers and gates of one output are called: a rounding there sends tokens elsewhere, and nothing is gained."""


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
        self.targets: dict[str, torch.Size] = {}
        """The parameters that are packed, by full name, with their shapes."""

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

    @property
    def quantized_element_size(self) -> float:
        """Bytes a weight, its scale included."""
        settings = self.quantization_config.settings
        return 0.5 + (1 if settings.double else 4) / settings.block_size

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        del kwargs
        self.targets = packable(model)
        # the one implementation that asks for one expert at a time; the others want the whole stack
        model.set_experts_implementation("eager")

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **kwargs: Any) -> bool:
        """Whether it is packed when it arrives."""
        del model, kwargs
        return param_name in self.targets

    def get_quantize_ops(self) -> ConversionOps:
        """What is done to a parameter that arrives whole."""
        return _Pack(self)

    def update_weight_conversions(self, weight_conversions: list[Any], model: PreTrainedModel) -> list[Any]:
        """Let parameters that arrive expert by expert be packed expert by expert, and never be whole in memory."""
        for converter in weight_conversions:
            if isinstance(converter, WeightConverter) and _merges_experts(converter.operations):
                converter.operations = [_PackEach(self, converter.operations)]
        return [*weight_conversions, *(self._mxfp4_conversions() if self.quantization_config.from_mxfp4 else ())]

    def _mxfp4_conversions(self) -> list[WeightConverter]:
        """What keeps the experts of an MXFP4 checkpoint packed as they are."""
        names = ("gate_up_proj", "down_proj")
        return [WeightConverter([f"{name}_blocks", f"{name}_scales"], name, [_KeepMxfp4(self)]) for name in names]

    def is_serializable(self) -> bool:
        """Never: the small repository points to the base model, which is packed again when it is loaded."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Packed weights are frozen."""
        return False

    def room_for(self, name: str, like: torch.Tensor) -> BlockwiseMatrices:
        """Empty packed matrices for a parameter, on the device and in the dtype of the weights that arrive."""
        return BlockwiseMatrices(tuple(self.targets[name]), like.dtype, like.device, self.quantization_config.settings)


def packable(model: PreTrainedModel) -> dict[str, torch.Size]:
    """The parameters of a model that are packed, by full name: linear layers and 3-D expert weights of its decoder.

    Raises:
        ValueError: The experts of a layer are neither.
    """
    family = family_of(model.config)
    names = {id(module): name for name, module in model.named_modules()}
    layers = family.layers(model)
    routers = {id(part) for layer in layers for part in layer.router.modules()}
    found: dict[str, torch.Size] = {}
    for layer in layers:
        prefix = names[id(layer.experts)]
        fused = {
            f"{prefix}.{name}": weight.shape
            for name, weight in layer.experts.named_parameters(recurse=False)
            if weight.ndim == 3
        }
        if not fused and not any(type(module) is nn.Linear for module in layer.experts.modules()):
            raise ValueError(
                f"4-bit loading does not know how {type(layer.experts).__name__} keeps its experts (no 3-D weights, no "
                "linear layers), so most of the model would stay as it is; load it without 4-bit."
            )
        found |= fused
    for module in family.decoder(model).layers.modules():
        name = names[id(module)]
        if type(module) is nn.Linear and id(module) not in routers and name.rsplit(".", 1)[-1] not in _KEPT:
            found[f"{name}.weight"] = module.weight.shape
    return found


class _Pack(ConversionOps):
    """Packs parameters that arrive whole and puts them into the model, so that nothing is left to be done for them."""

    def __init__(self, quantizer: FourBitQuantizer) -> None:
        self.quantizer = quantizer

    def __deepcopy__(self, memo: dict[int, Any]) -> _Pack:
        return self  # transformers copies its converters for every parameter

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: Sequence[str] = (),
        target_patterns: Sequence[str] = (),
        *,
        model: PreTrainedModel | None = None,
        missing_keys: set[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """See `ConversionOps.convert`."""
        del source_patterns, target_patterns, kwargs
        assert model is not None
        for name in list(input_dict):
            value = input_dict.pop(name)
            weight = value[0] if isinstance(value, list) else value
            shape = self.quantizer.targets[name]
            if weight.shape != shape:
                raise ValueError(f"{name} is {tuple(weight.shape)} on disk and {tuple(shape)} in the model.")
            room = self.quantizer.room_for(name, weight)
            for index, matrix in enumerate(weight if weight.ndim == 3 else [weight]):
                room.put(index, matrix)
            install(model, name, room)
            (missing_keys if missing_keys is not None else set()).discard(name)
        return {}


class _PackEach(ConversionOps):
    """Packs a fused parameter that arrives as one tensor an expert, by running its conversion on each expert alone."""

    def __init__(self, quantizer: FourBitQuantizer, operations: Sequence[ConversionOps]) -> None:
        self.quantizer = quantizer
        self.operations = list(operations)

    def __deepcopy__(self, memo: dict[int, Any]) -> _PackEach:
        return self

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        *,
        full_layer_name: str | None = None,
        model: PreTrainedModel | None = None,
        missing_keys: set[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """See `ConversionOps.convert`."""
        name = str(full_layer_name)
        patterns = {"source_patterns": source_patterns, "target_patterns": target_patterns}
        known = patterns | {"full_layer_name": name, "model": model, "missing_keys": missing_keys} | kwargs
        count = {len(tensors) for tensors in input_dict.values()}
        shape = self.quantizer.targets.get(name)
        if shape is None:
            return self._converted(input_dict, known)
        if count != {shape[0]}:
            raise ValueError(f"{name} has {sorted(count)} experts on disk and {shape[0]} in the model.")
        assert model is not None
        room: BlockwiseMatrices | None = None
        for index in range(shape[0]):
            one = {pattern: [tensors[index]] for pattern, tensors in input_dict.items()}
            for tensors in input_dict.values():
                tensors[index] = None
            (fused,) = self._converted(one, known).values()  # [1,A,B]
            if fused.shape[1:] != shape[1:]:
                raise ValueError(f"{name}[{index}] is {tuple(fused.shape[1:])} on disk, not {tuple(shape[1:])}.")
            room = self.quantizer.room_for(name, fused) if room is None else room
            room.put(index, fused[0])
        assert room is not None
        install(model, name, room)
        (missing_keys if missing_keys is not None else set()).discard(name)
        return {}

    def _converted(self, tensors: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
        for operation in self.operations:
            tensors = operation.convert(tensors, **known)
        return tensors


class _KeepMxfp4(ConversionOps):
    """Puts the blocks and scales of an MXFP4 checkpoint into the model as they are."""

    def __init__(self, quantizer: FourBitQuantizer) -> None:
        self.quantizer = quantizer

    def __deepcopy__(self, memo: dict[int, Any]) -> _KeepMxfp4:
        return self

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: Sequence[str] = (),
        target_patterns: Sequence[str] = (),
        *,
        full_layer_name: str | None = None,
        model: PreTrainedModel | None = None,
        missing_keys: set[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """See `ConversionOps.convert`."""
        del target_patterns, kwargs
        assert model is not None
        name = str(full_layer_name)
        parts = [input_dict.pop(pattern) for pattern in source_patterns]
        blocks, exponents = (part[0] if isinstance(part, list) else part for part in parts)
        # transformers has cast the bytes to the model's dtype, in which all of 0 to 255 are exact
        weight = Mxfp4Matrices(blocks.to(torch.uint8), exponents.to(torch.uint8), blocks.dtype)
        if weight.shape != self.quantizer.targets[name]:
            raise ValueError(
                f"{name} is {tuple(weight.shape)} on disk and {tuple(self.quantizer.targets[name])} in the model."
            )
        install(model, name, weight)
        (missing_keys if missing_keys is not None else set()).discard(name)
        return {}


def _merges_experts(operations: Sequence[ConversionOps]) -> bool:
    """Whether a conversion begins with stacking experts."""
    return bool(operations) and isinstance(operations[0], MergeModulelist) and operations[0].dim == 0


def install(model: nn.Module, name: str, weight: PackedMatrices) -> None:
    """Put packed weights in the place of the parameter of that name."""
    path, _, attribute = name.rpartition(".")
    owner = model.get_submodule(path)
    if isinstance(owner, nn.Linear):
        linear = PackedLinear(weight, owner.bias)
        linear._is_hf_initialized = True  # type: ignore[assignment]  # or transformers fills it with random numbers
        model.set_submodule(path, linear)
    else:
        delattr(owner, attribute)
        setattr(owner, attribute, weight)
        owner._is_hf_initialized = True  # type: ignore[assignment]
