"""A second device for tests: it computes on the CPU and refuses what a GPU would refuse.

torch takes a backend that is written in Python. A tensor of this one holds a CPU tensor and a place, `gpu:0` or `gpu:1`, and
its results are the CPU's. As on GPUs, an operation on tensors of several places is an error; and every tensor that goes from
one place to another is noted. The backend cannot be taken back, so only processes made for it may import this file.
"""

from typing import ClassVar

import torch
from torch.utils._device import _device_constructors
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

aten = torch.ops.aten
KIND = "gpu"
COPIES = (aten.copy_.default, aten._to_copy.default)


class Moves:
    """The tensors that went from place to place, as `(from, to, shape)`."""

    seen: ClassVar[list[tuple[torch.device, torch.device, torch.Size]]] = []

    @classmethod
    def of(cls, run):
        """Those of one call."""
        cls.seen.clear()
        run()
        return list(cls.seen)


class Placed(torch.Tensor):
    """A tensor of the second device."""

    @staticmethod
    def __new__(cls, held, device=None, requires_grad=False):
        if device is None:  # as `nn.Parameter` is called
            return torch.nn.Parameter(held, requires_grad=requires_grad)
        about = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        with torch.inference_mode(False):
            made = torch.Tensor._make_wrapper_subclass(cls, held.size(), device=device, **about)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _compute(func, *args, **(kwargs or {}))

    def __repr__(self):
        return f"{self.held} on {self.device}"


def _compute(func, *args, **kwargs):
    """The operation on the CPU, and its result where it would be."""
    if func._can_decompose():  # in inference mode torch leaves that to us
        return func.decompose(*args, **kwargs)
    tensors = []
    held_args, held_kwargs = _map(lambda tensor: tensors.append(tensor) or _held(tensor), (args, kwargs))
    places = {tensor.device for tensor in tensors if tensor.ndim or tensor.device.type == KIND}
    if kwargs.get("device") is not None:
        target = torch.device(kwargs["device"])
        held_kwargs["device"] = "cpu" if target.type == KIND else target
    elif func is aten.copy_.default:
        target = args[0].device
    elif len(places) > 1:
        raise RuntimeError(f"{func} mixes tensors of {', '.join(sorted(map(str, places)))}")
    else:
        target = next(iter(places), torch.device("cpu"))
    if target.type == KIND and target.index is None:
        target = torch.device(KIND, 0)
    if func in COPIES:
        source = args[func is aten.copy_.default]
        if source.device != target:
            Moves.seen.append((source.device, target, source.shape))
    if func.namespace == "bitsandbytes":  # its kernels take bare pointers
        assert all(tensor.is_contiguous() for tensor in tensors), func
    return _placed(_on_cpu(func, held_args, held_kwargs), target, func, tensors)


def _map(function, value):
    """The value with its tensors replaced; `torch.utils._pytree` takes most of the tests' time."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, tuple | list):
        return type(value)(_map(function, part) for part in value)
    if isinstance(value, dict):
        return {name: _map(function, part) for name, part in value.items()}
    return value


def _on_cpu(func, args, kwargs):
    if func is aten.histc.default:  # GPUs count integers, the CPU does not
        return func(args[0].float(), *args[1:], **kwargs).to(args[0].dtype)
    return func(*args, **kwargs)


def _held(value):
    return value.held if isinstance(value, Placed) else value


def _placed(result, target, func, tensors):
    if target.type != KIND:
        return result
    if func._schema.is_mutable:
        same = {id(_held(tensor)): tensor for tensor in tensors}
        return _map(lambda value: same.get(id(value), value), result)
    return _map(lambda value: Placed(value, target), result)


_setup_privateuseone_for_python_backend(KIND)
_fallback, _ranges = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
_fallback.fallback(_compute, "PrivateUse1")
for _overload in (aten.arange.default, aten.arange.start, aten.arange.start_step):  # they resize, which wrappers cannot
    _ranges.impl(_overload, lambda *args, _of=_overload, **kwargs: _compute(_of, *args, **kwargs), "PrivateUse1")
_device_constructors()  # torch looks its functions up once: before the next line
_plain_tensor = torch.tensor


def _tensor(data, *args, device=None, **kwargs):
    """`torch.tensor`, which by itself calls backends with Python switched off."""
    made = _plain_tensor(data, *args, **kwargs)
    return made if device is None else made.to(device)


torch.tensor = _tensor
