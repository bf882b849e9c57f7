"""What is done to weights between the checkpoint and the model, so that no layer is ever whole in memory for long."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from transformers.core_model_loading import ConversionOps, MergeModulelist, WeightConverter
from typing_extensions import Self

from ssmoe_embed.quantization.packed import BlockwiseMatrices, Mxfp4Matrices, Packable, PackedLinear, PackedMatrices


class Packer(Protocol):
    """What knows which parameters are packed, and how."""

    targets: Mapping[str, Packable]
    """The parameters that are packed, by full name."""
    failures: list[Exception]
    """What went wrong while packing."""

    def room_for(self, name: str, like: torch.Tensor) -> BlockwiseMatrices:
        """Empty packed matrices for a parameter, on the device and in the dtype of the weights that arrive."""
        ...


class Packing(ConversionOps):
    """A conversion that puts packed weights into the model, so that nothing is left to be done for them.

    transformers turns whatever it raises into a line of a log and goes on with the next weight, so failures are kept for
    the caller, and after the first one nothing more is packed.
    """

    def __init__(self, quantizer: Packer) -> None:
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
        """Pack what arrived.

        Args:
            arrived: Tensors by name, or what reads them.
            known: transformers' other arguments: the model and the names that are still missing among them.

        Returns:
            What is left for transformers to put into the model.
        """


class Pack(Packing):
    """Packs parameters that arrive whole."""

    def pack(self, arrived: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
        """See `Packing.pack`."""
        for name in list(arrived):
            value = arrived.pop(name)
            weight = value[0] if isinstance(value, list) else value
            shape = self.quantizer.targets[name].shape
            if weight.shape != shape:
                raise ValueError(f"{name} is {tuple(weight.shape)} on disk and {tuple(shape)} in the model.")
            room = self.quantizer.room_for(name, weight)
            for index, matrix in enumerate(weight if weight.ndim == 3 else [weight]):
                room.put(index, matrix)
            install(known, name, room)
        return {}


class StreamedConverter(WeightConverter):
    """A converter that leaves the reading of its tensors to its operation: an expert is read when its turn comes."""

    __slots__ = ()

    def materialize_tensors(self) -> dict[str, Any]:
        """What reads each tensor, by source pattern, instead of the tensors."""
        return {pattern: self.collected_tensors.pop(pattern) for pattern in list(self.collected_tensors)}


class PackEach(Packing):
    """Packs a fused parameter that arrives as one tensor an expert, by running its conversion on each expert alone."""

    def __init__(self, quantizer: Packer, operations: Sequence[ConversionOps]) -> None:
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
        install(known, name, room)
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
        shape = self.quantizer.targets[name].shape
        if weight.shape != shape:
            raise ValueError(f"{name} is {tuple(weight.shape)} on disk and {tuple(shape)} in the model.")
        install(known, name, weight)
        return {}


def merges_experts(operations: Sequence[ConversionOps]) -> bool:
    """Whether a conversion begins with stacking experts."""
    return bool(operations) and isinstance(operations[0], MergeModulelist) and operations[0].dim == 0


def install(known: Mapping[str, Any], name: str, weight: PackedMatrices) -> None:
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
