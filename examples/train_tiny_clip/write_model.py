"""Write the trained model as the folder that ships: weights in bfloat16, tokenizer, image processor, card.

python examples/train_tiny_clip/write_model.py --work build/clip --output build/clip/model
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from model import make_processor
from transformers import CLIPProcessor, CLIPTokenizer

from ssmoe_embed.vision import ClipMoeModel


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Write the trained model as the folder that ships.")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    model = ClipMoeModel.from_pretrained(options.work / "trained", dtype=torch.bfloat16)
    model.save_pretrained(options.output)
    tokenizer = CLIPTokenizer.from_pretrained(options.work / "tokenizer")
    CLIPProcessor(make_processor(), tokenizer).save_pretrained(options.output)


if __name__ == "__main__":
    main()
