"""The model card of a CLIP-MoE embedding model."""

from __future__ import annotations

from huggingface_hub import ModelCardData

from ssmoe_embed.common.version import __version__
from ssmoe_embed.embedding.persistence import GENERATED
from ssmoe_embed.vision.modeling import ClipMoeModel
from ssmoe_embed.vision.routing import VisionRouting

_TEXT = """\
---
{front_matter}
---

{generated}

# CLIP-MoE as an embedding model of texts and images

This is a [sentence-transformers](https://www.sbert.net) model: a [CLIP-MoE](https://arxiv.org/abs/2409.19291) that maps
texts and images to vectors of {dimensions} dimensions in one space, by `ssmoe_embed` {version}.

## Use

```
pip install ssmoe-embed
```

```python
import ssmoe_embed  # makes the module known to sentence-transformers
from PIL import Image
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("sentence_transformers_model_id")
images = model.encode([Image.open("cat.jpg"), Image.open("dog.jpg")])
texts = model.encode(["a photo of a cat", "a photo of a dog"])
print(model.similarity(texts, images))
```

## Settings

| setting | value |
|---|---|
{settings}

## Limits

A text of more tokens than are read is cut at its end; an image is scaled by its shorter side and cut to its middle. The
vectors inherit what the model knows, and its biases. Vectors of another routing cannot be compared with these.

## Sources

Spectral routing is that of [SSMoE](https://arxiv.org/abs/2605.30992).
"""


def vision_card(model: ClipMoeModel, routing: VisionRouting | None) -> str:
    """The card, as Markdown with a YAML header."""
    vision, text = model.config.vision_config, model.config.text_config
    rows = {
        "image": f"{vision.image_size} × {vision.image_size} pixels, patches of {vision.patch_size}",
        "text": f"{text.max_position_embeddings} tokens",
        "experts": f"{vision.num_experts_per_tok} of {vision.num_experts} per token",
        "routing": "learned routers" if routing is None else "spectral",
    }
    if routing is not None:
        rows |= {name: ", ".join(value) if isinstance(value, tuple) else value for name, value in vars(routing).items()}
    front_matter = ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag="feature-extraction",
        tags=["sentence-transformers", "feature-extraction", "clip", "mixture-of-experts", "ssmoe"],
    )
    return _TEXT.format(
        front_matter=front_matter.to_yaml(),
        generated=GENERATED,
        version=__version__,
        dimensions=model.config.projection_dim,
        settings="\n".join(f"| {name} | `{value}` |" for name, value in rows.items()),
    )
