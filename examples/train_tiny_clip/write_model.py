"""Write the trained model as the folder that ships: weights in bfloat16, tokenizer, image processor, card.

python examples/train_tiny_clip/write_model.py --work build/clip --output build/clip/model
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from model import make_processor
from transformers import CLIPProcessor, CLIPTokenizer

from ssmoe_embed import EmbeddingModel, SSMoEVision
from ssmoe_embed.embedding.persistence import write_json
from ssmoe_embed.vision import ClipMoeModel
from ssmoe_embed.vision.module import CONFIG


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Write the trained model as the folder that ships.")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    model = ClipMoeModel.from_pretrained(options.work / "trained", dtype=torch.bfloat16)
    tokenizer = CLIPTokenizer.from_pretrained(options.work / "tokenizer")
    module = SSMoEVision(model, CLIPProcessor(make_processor(), tokenizer))
    EmbeddingModel(modules=[module], device="cpu").save(str(options.output))
    write_json(options.output / CONFIG, module.get_config_dict() | {"dtype": "float32"})  # faster on a CPU
    pieces = options.output / "tokenizer.json"  # without the spaces, which are half of it
    told = json.loads(pieces.read_text(encoding="utf-8"))
    pieces.write_text(json.dumps(told, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
    card = options.output / "README.md"
    text = card.read_text(encoding="utf-8").replace("sentence_transformers_model_id", "ssmoe/tiny-clip")
    own = Path(__file__).with_name("CARD.md").read_text(encoding="utf-8")
    card.write_text(text + "\n" + own, encoding="utf-8")


if __name__ == "__main__":
    main()
