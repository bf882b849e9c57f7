"""Quantising a base model while transformers streams its checkpoint, so that no layer is ever whole in memory for long."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps, MergeModulelist, WeightConverter
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils import is_bitsandbytes_available
from transformers.utils.quantization_config import QuantizationConfigMixin
from typing_extensions import Self

from ssmoe_embed.families import family_of
from ssmoe_embed.quantization.packed import (
    BlockwiseMatrices,
    Mxfp4Matrices,
    Packable,
    PackedLinear,
    PackedMatrices,
    TrimAfter,
    trim,
)
from ssmoe_embed.quantization.settings import QuantizationSettings

METHOD = "ssmoe_4bit"
"""Its name among transformers' quantisation methods."""


@register_quantization_config(METHOD)
class FourBitConfig(QuantizationConfigMixin):
    """`QuantizationSettings` as transformers takes them.

    Attributes:
        settings: How to pack what is not packed.
        from_mxfp4: The checkpoint's experts are packed in MXFP4 already.
        failures: What went wrong while packing.
    """

    def __init__(self, settings: QuantizationSettings, from_mxfp4: bool = False) -> None:
        super().__init__(quant_method=METHOD)
        self.settings, self.from_mxfp4 = settings, from_mxfp4
        self.failures: list[Exception] = []

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
        self.targets = packable(model, self.quantization_config.settings)
        # the one implementation that asks for one expert at a time; the others want the whole stack
        model.set_experts_implementation("eager")

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        trim()
        for layer in family_of(model.config).blocks_with_experts(model):
            layer.experts.register_forward_hook(TrimAfter())
        return model

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **kwargs: Any) -> bool:
        """Whether it is packed when it arrives."""
        return param_name in self.targets

    def get_quantize_ops(self) -> ConversionOps:
        """What is done to a parameter that arrives whole."""
        return Pack(self)

    def update_weight_conversions(self, weight_conversions: list[Any], model: PreTrainedModel) -> list[Any]:
        """Let parameters that arrive expert by expert be packed expert by expert, and never be whole in memory."""
        for converter in weight_conversions:
            first = converter.operations[0] if isinstance(converter, WeightConverter) and converter.operations else None
            if isinstance(first, MergeModulelist) and first.dim == 0:  # it begins with stacking experts
                converter.operations = [PackEach(self, converter.operations)]
                converter.__class__ = StreamedConverter  # it keeps what transformers has set on it
        kept = ("gate_up_proj", "down_proj") if self.quantization_config.from_mxfp4 else ()  # packed as they are
        return weight_conversions + [
            WeightConverter([f"{name}_blocks", f"{name}_scales"], name, [KeepMxfp4(self)]) for name in kept
        ]

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


class Packing(ConversionOps):
    """A conversion that puts packed weights into the model, so that nothing is left to be done for them.

    transformers turns whatever it raises into a line of a log and goes on with the next weight, so failures are kept for
    the caller, and after the first one nothing more is packed.
    """

    def __init__(self, quantizer: FourBitQuantizer) -> None:
        self.quantizer = quantizer

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # transformers copies its converters for every parameter

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: Sequence[str] = (),
        target_patterns: Sequence[str] = (),
        **known: Any,
    ) -> dict[str, Any]:
        """See `ConversionOps.convert`."""
        if self.quantizer.failures:
            raise self.quantizer.failures[0]
        patterns = {"source_patterns": source_patterns, "target_patterns": target_patterns}
        try:
            return self.pack(input_dict, patterns | known)
        except Exception as error:
            self.quantizer.failures.append(error)
            raise

    @abstractmethod
    def pack(self, arrived: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
        """Pack what arrived, tensors by name or what reads them; return what is left for transformers to put into the model.

        `known` are transformers' other arguments: the model and the names that are still missing among them.
        """

    def check_shape(self, name: str, found: torch.Size) -> None:
        """Make sure that a parameter has the model's shape on disk, or raise `ValueError`."""
        shape = self.quantizer.targets[name].shape
        if found != shape:
            raise ValueError(f"{name} is {tuple(found)} on disk and {tuple(shape)} in the model.")


class Pack(Packing):
    """Packs parameters that arrive whole."""

    def pack(self, arrived: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
        """See `Packing.pack`."""
        for name in list(arrived):
            value = arrived.pop(name)
            weight = value[0] if isinstance(value, list) else value
            self.check_shape(name, weight.shape)
            room = self.quantizer.room_for(name, weight)
            for index, matrix in enumerate(weight if weight.ndim == 3 else [weight]):
                room.put(index, matrix)
            _install(known, name, room)
        return {}


class StreamedConverter(WeightConverter):
    """A converter that leaves the reading of its tensors to its operation: an expert is read when its turn comes."""

    __slots__ = ()

    def materialize_tensors(self) -> dict[str, Any]:
        """What reads each tensor, by source pattern, instead of the tensors."""
        return {pattern: self.collected_tensors.pop(pattern) for pattern in list(self.collected_tensors)}


class PackEach(Packing):
    """Packs a fused parameter that arrives as one tensor an expert, by running its conversion on each expert alone."""

    def __init__(self, quantizer: FourBitQuantizer, operations: Sequence[ConversionOps]) -> None:
        super().__init__(quantizer)
        self.operations = list(operations)

    def pack(self, arrived: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
        """See `Packing.pack`."""
        name = str(known["full_layer_name"])
        target = self.quantizer.targets.get(name)
        if target is None:
            read = {pattern: [reader() for reader in readers] for pattern, readers in arrived.items()}
            return self._converted(read, known)
        counts = {pattern: len(readers) for pattern, readers in arrived.items()}
        if set(counts.values()) != {target.shape[0]}:
            found = ", ".join(f"{count} of {pattern}" for pattern, count in counts.items())
            raise ValueError(f"{name} has {target.shape[0]} experts in the model, and on disk there are {found}.")
        room: BlockwiseMatrices | None = None
        for index in range(target.shape[0]):
            one = {pattern: [readers[index]()] for pattern, readers in arrived.items()}
            shapes = {pattern: tuple(tensors[0].shape) for pattern, tensors in one.items()}
            (fused,) = self._converted(one, known).values()  # [1,A,B]
            if fused.shape[1:] != target.shape[1:]:
                raise ValueError(
                    f"Expert {index} of {name} is {shapes} on disk, which makes {tuple(fused.shape[1:])}, not "
                    f"{tuple(target.shape[1:])}."
                )
            room = self.quantizer.room_for(name, fused) if room is None else room
            room.put(index, fused[0])
        assert room is not None
        _install(known, name, room)
        return {}

    def _converted(self, tensors: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
        for operation in self.operations:
            tensors = operation.convert(tensors, **known)
        return tensors


class KeepMxfp4(Packing):
    """Puts the blocks and scales of an MXFP4 checkpoint into the model as they are."""

    def pack(self, arrived: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
        """See `Packing.pack`."""
        name = str(known["full_layer_name"])
        parts = [arrived.pop(pattern) for pattern in known["source_patterns"]]
        blocks, exponents = (part[0] if isinstance(part, list) else part for part in parts)
        # transformers has cast the bytes to the model's dtype, in which all of 0 to 255 are exact
        weight = Mxfp4Matrices(blocks.to(torch.uint8), exponents.to(torch.uint8), blocks.dtype)
        self.check_shape(name, weight.shape)
        _install(known, name, weight)
        return {}


def _install(known: Mapping[str, Any], name: str, weight: PackedMatrices) -> None:
    """Put packed weights in the place of the parameter of that name, which is then no longer missing."""
    path, _, attribute = name.rpartition(".")
    owner: nn.Module = known["model"].get_submodule(path)
    if isinstance(owner, nn.Linear):
        linear = PackedLinear(weight, owner.bias)
        linear._is_hf_initialized = True  # type: ignore[assignment]  # or transformers fills it with random numbers
        known["model"].set_submodule(path, linear)
    else:
        delattr(owner, attribute)
        setattr(owner, attribute, weight)
        owner._is_hf_initialized = True  # type: ignore[assignment]
    if known.get("missing_keys") is not None:
        known["missing_keys"].discard(name)
