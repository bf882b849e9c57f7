"""Checkpoints without pickle, replaced in one step."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def save(path: Path, model: Any, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Write weights, optimizer moments and counters into one safetensors file."""
    tensors = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    for (name, _), slot in zip(model.named_parameters(), _slots(model, optimizer), strict=True):
        for key, value in slot.items():
            tensors[f"optimizer.{key}.{name}"] = value
    part = path.with_suffix(".part")
    save_file({k: v.contiguous() for k, v in tensors.items()}, part, metadata={"state": json.dumps(state)})
    os.replace(part, path)  # noqa: PTH105  atomic on every system


def load(path: Path, model: Any, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Read what `save` wrote into the model (and the optimizer); returns the counters."""
    from safetensors import safe_open

    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        state: dict[str, Any] = json.loads(file.metadata()["state"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
            if optimizer is not None:
                optimizer.state[parameter] = {
                    key: tensors[f"optimizer.{key}.{name}"]
                    for key in ("step", "exp_avg", "exp_avg_sq")
                    if f"optimizer.{key}.{name}" in tensors
                }
    return state


def _slots(model: Any, optimizer: torch.optim.Optimizer) -> list[dict[str, torch.Tensor]]:
    """Return the optimizer's tensors of each parameter, in the model's order."""
    return [optimizer.state.get(parameter, {}) for _, parameter in model.named_parameters()]
