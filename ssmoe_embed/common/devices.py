"""Whether the places that a model is to run on are there."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch

_PLANS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Device maps that accelerate makes itself."""


def check_device(device: str, name: str = "device") -> None:
    """Refuse a device that this machine does not have, before anything is read.

    Args:
        device: As torch names it, such as `cpu` or `cuda:1`.
        name: What the caller calls it.

    Raises:
        ValueError: It is no device, or is not there; the message lists those that are.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = ", ".join(["cpu", *_accelerators()])
        built = "" if there != "cpu" or torch.version.cuda else "; torch is installed for the CPU alone"
        raise ValueError(f"{name}={device!r} cannot be used here; this machine has {there}{built}.") from error


def check_backend(backend: str) -> None:
    """Refuse a backend of sentence-transformers that cannot run these models.

    Raises:
        ValueError: It is not torch.
    """
    if backend != "torch":
        raise ValueError(
            f"backend={backend!r} cannot be used: the routers are read, and re-routed, in the running torch model, which an "
            "exported graph does not allow. Leave backend out; model_kwargs={'dtype': 'bfloat16'}, a GPU or "
            "load_in_4bit=True make it faster or smaller."
        )


def warn_of_half_precision(model: Any) -> None:
    """Say that a model, in 16 bits as many checkpoints are, computes slowly on a CPU that has no units for them."""
    if model.device.type == "cpu" and model.dtype in _UNITS and not _has_unit(model.dtype):
        name = str(model.dtype).removeprefix("torch.")
        warnings.warn(
            f"The model is in {name}, which this CPU computes several times slower than float32; load it with "
            "dtype='float32' (--dtype float32), which takes twice the memory.",
            stacklevel=3,
        )


_UNITS = {torch.bfloat16: "bf16", torch.float16: "fp16"}


def _has_unit(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies numbers of 16 bits itself; older versions of torch cannot tell."""
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(there and name.endswith(_UNITS[dtype]) for name, there in known.items())


def check_device_map(device_map: Any) -> None:
    """Refuse a `device_map` that names a device which this machine does not have.

    Args:
        device_map: One device, places by module name, the name of a plan such as `auto`, or None.

    Raises:
        ValueError: A device is not there.
    """
    places = set(device_map.values()) if isinstance(device_map, Mapping) else {device_map}
    for place in places - {None, "disk", *_PLANS}:
        if isinstance(place, int):
            if not 0 <= place < len(_accelerators()):
                raise ValueError(f"device_map={place} is no GPU of this machine, which has {len(_accelerators())}.")
        else:
            check_device(str(place), "device_map")


def _accelerators() -> list[str]:
    """`cuda:0`, `cuda:1`, …, or whatever this machine has."""
    kind = torch.accelerator.current_accelerator(check_available=True)
    return [f"{kind}:{index}" for index in range(torch.accelerator.device_count())] if kind else []
