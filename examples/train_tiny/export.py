"""Write a checkpoint as a model folder that `AutoModelForCausalLM` and `AutoTokenizer` load.

python examples/train_tiny/export.py --work build/tiny --output ssmoe_embed/data/tiny/base
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import Any

import checkpoint
import torch
from architecture import make_model

KEPT = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
LARGEST = 25_000_000
"""Bytes of weights that the package may ship."""


def export(model: Any, tokenizer: Any, output: Path) -> int:
    """Write the model in bfloat16 beside the output folder, then swap; returns the bytes of the weights."""
    part = output.with_name(output.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(part)
    tokenizer.save_pretrained(part)
    for path in part.iterdir():
        if path.name not in KEPT:
            path.unlink()
    size = (part / "model.safetensors").stat().st_size
    if size > LARGEST:
        raise ValueError(f"the weights take {size:,} bytes, more than {LARGEST:,}: choose a smaller architecture")
    (part / "model.safetensors").chmod(0o644)
    shutil.rmtree(output, ignore_errors=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    os.replace(part, output)  # noqa: PTH105  atomic on every system
    return size


def main() -> None:
    """Run from the command line."""
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(description="Export the trained model.")
    parser.add_argument("--work", type=Path, required=True, help="folder of the training")
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint other than the last one")
    parser.add_argument("--output", type=Path, required=True, help="model folder to write; an old one is replaced")
    options = parser.parse_args()
    model = make_model()
    state = checkpoint.load(options.checkpoint or options.work / "last.safetensors", model)
    size = export(model, AutoTokenizer.from_pretrained(options.work / "tokenizer"), options.output)
    print(f"{options.output}: step {state['step']}, {size:,} bytes of weights")


if __name__ == "__main__":
    main()
