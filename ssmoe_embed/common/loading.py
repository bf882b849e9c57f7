"""How a model is fetched and placed: `HubOptions`, one value handed on by whatever loads one, and devices."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypedDict


class HubKeywords(TypedDict, total=False):
    """The keywords by which functions of this package take `HubOptions`, for editors and type checkers."""

    revision: str | None
    token: bool | str | None
    cache_folder: str | Path | None
    local_files_only: bool
    trust_remote_code: bool


@dataclass(frozen=True)
class HubOptions:
    """How a model's files are fetched.

    Attributes:
        revision: Branch, tag or commit; None for the default branch.
        token: For private models; None for the one that the user has logged in with.
        cache_folder: Where downloads are kept; None for the hub's own place.
        local_files_only: Never ask the hub: a folder, or what was downloaded before.
        trust_remote_code: Allow code that comes with a model.
    """

    revision: str | None = None
    token: bool | str | None = field(default=None, repr=False)
    cache_folder: str | Path | None = None
    local_files_only: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.cache_folder is not None:
            object.__setattr__(self, "cache_folder", str(Path(self.cache_folder).expanduser()))

    @classmethod
    def taken_from(cls, keywords: dict[str, Any]) -> HubOptions:
        """The options among keywords, which are taken out of them."""
        return cls(**{one.name: keywords.pop(one.name) for one in fields(cls) if one.name in keywords})

    @classmethod
    def among(cls, keywords: Mapping[str, Any]) -> HubOptions:
        """The options among keywords, which stay as they are."""
        return cls.taken_from(dict(keywords))

    @property
    def files(self) -> dict[str, Any]:
        """Keywords of the hub's own functions."""
        return {
            "revision": self.revision,
            "token": self.token,
            "cache_dir": self.cache_folder,
            "local_files_only": self.local_files_only,
        }

    @property
    def loading(self) -> dict[str, Any]:
        """Keywords of transformers' `from_pretrained`."""
        return self.files | {"trust_remote_code": self.trust_remote_code}

    @property
    def keywords(self) -> dict[str, Any]:
        """Keywords of this package's functions, and of sentence-transformers'."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


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
    import torch

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
    import torch

    unit = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(model.dtype)
    if model.device.type != "cpu" or unit is None:
        return
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch cannot tell
    if not any(there and name.endswith(unit) for name, there in known.items()):
        name = str(model.dtype).removeprefix("torch.")
        warnings.warn(
            f"The model is in {name}, which this CPU computes several times slower than float32; load it with "
            "dtype='float32' (--dtype float32), which takes twice the memory.",
            stacklevel=3,
        )


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
    import torch

    kind = torch.accelerator.current_accelerator(check_available=True)
    return [f"{kind}:{index}" for index in range(torch.accelerator.device_count())] if kind else []
