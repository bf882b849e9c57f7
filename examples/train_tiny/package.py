"""Make the bundled model of a trained base: `ssmoe build` with its settings, and one card for both.

python examples/train_tiny/package.py --base build/base --output ssmoe_embed/data/tiny
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import ssmoe_embed
from ssmoe_embed.data import search_folder
from ssmoe_embed.embedding.persistence import GENERATED, save_references
from ssmoe_embed.search.corpora import write_bundled_vectors

SETTINGS: dict[str, Any] = {
    "method": "smoe",
    "prompt": "{text}<|endoftext|>",
    "calibration": "standardize",
    "top_c": 0.05,
    "max_seq_length": 256,
}
"""The prompt is the read-out it was trained for; `top_c` is the paper's share of eigenvectors, 50 of 1,024."""
ALSO_PROMPTS = ("none", "prompteol")
CALIBRATION = "none"
"""Its hidden state was trained for the cosine of the features as they are. The fitted factors ship with it all the same."""


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Make the bundled model of a trained base.")
    parser.add_argument("--base", type=Path, required=True, help="what export.py wrote")
    parser.add_argument("--output", type=Path, required=True, help="folder to make; an old one is replaced")
    parser.add_argument("--corpus-vectors", type=Path, default=search_folder(), help="where to put the search corpus's")
    options = parser.parse_args()
    ssmoe_embed.build(
        options.base,
        options.output,
        prompts=ALSO_PROMPTS,
        dtype="float32",
        license="apache-2.0",
        include_base=True,
        overwrite=True,
        **SETTINGS,
    )
    module = ssmoe_embed.load(options.output)[0].using(calibration=CALIBRATION)
    save_references(module.parts, options.output, included=True)
    write_card(module, options.output / "README.md")
    for old in options.corpus_vectors.glob("*.safetensors"):
        old.unlink()
    write_bundled_vectors(ssmoe_embed.load(options.output), options.corpus_vectors)


def write_card(module: ssmoe_embed.SSMoE, path: Path) -> None:
    """Write the card of the embedding model, followed by that of its base."""
    text = module.card().replace(f"{GENERATED}\n\n", "")
    text = text.replace("sentence_transformers_model_id", "ssmoe/tiny")
    text = text.replace("SentenceTransformer(", "ssmoe_embed.load(")
    text = text.replace("from sentence_transformers import SentenceTransformer\n", "")
    training = Path(__file__).with_name("CARD.md").read_text(encoding="utf-8").split("---\n", 2)[2]
    path.write_text(text + training.replace("\n# ssmoe/tiny\n", "\n# The enclosed language model\n"), encoding="utf-8")


if __name__ == "__main__":
    main()
