"""What is done to weights between the checkpoint and the model, so that no layer is ever whole in memory for long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps, MergeModulelist, WeightConverter

from ssmoe_embed.quantization.packed import BlockwiseMatrices, Mxfp4Matrices, PackedLinear, PackedMatrices


class Packer(Protocol):
    """What knows which parameters are packed, and how."""

    targets: Mapping[str, torch.Size]
    """The parameters that are packed, by full name, with their shapes."""

    def room_for(self, name: str, like: torch.Tensor) -> BlockwiseMatrices:
        """Empty packed matrices for a parameter, on the device and in the dtype of the weights that arrive."""
        ...


class Pack(ConversionOps):
    """Packs parameters that arrive whole and puts them into the model, so that nothing is left to be done for them."""

    def __init__(self, quantizer: Packer) -> None:
        self.quantizer = quantizer

    def __deepcopy__(self, memo: dict[int, Any]) -> Pack:
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


class StreamedConverter(WeightConverter):
    """A converter that leaves the reading of its tensors to its operation: an expert is read when its turn comes."""

    __slots__ = ()

    def materialize_tensors(self) -> dict[str, Any]:
        """What reads each tensor, by source pattern, instead of the tensors."""
        return {pattern: self.collected_tensors.pop(pattern) for pattern in list(self.collected_tensors)}


class PackEach(ConversionOps):
    """Packs a fused parameter that arrives as one tensor an expert, by running its conversion on each expert alone."""

    def __init__(self, quantizer: Packer, operations: Sequence[ConversionOps]) -> None:
        self.quantizer = quantizer
        self.operations = list(operations)

    def __deepcopy__(self, memo: dict[int, Any]) -> PackEach:
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
        count = {len(readers) for readers in input_dict.values()}
        shape = self.quantizer.targets.get(name)
        if shape is None:
            read = {pattern: [reader() for reader in readers] for pattern, readers in input_dict.items()}
            return self._converted(read, known)
        if count != {shape[0]}:
            raise ValueError(f"{name} has {sorted(count)} experts on disk and {shape[0]} in the model.")
        assert model is not None
        room: BlockwiseMatrices | None = None
        for index in range(shape[0]):
            one = {pattern: [readers[index]()] for pattern, readers in input_dict.items()}
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


class KeepMxfp4(ConversionOps):
    """Puts the blocks and scales of an MXFP4 checkpoint into the model as they are."""

    def __init__(self, quantizer: Packer) -> None:
        self.quantizer = quantizer

    def __deepcopy__(self, memo: dict[int, Any]) -> KeepMxfp4:
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


def merges_experts(operations: Sequence[ConversionOps]) -> bool:
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
