"""The model card of an embedding model: what it is, how it was made, what is known of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from huggingface_hub import ModelCardData

from ssmoe_embed.embedding.methods import Method
from ssmoe_embed.embedding.persistence import OWN_BASE
from ssmoe_embed.version import __version__

if TYPE_CHECKING:
    from ssmoe_embed.embedding.module import SSMoE

_REPRESENTATION = {
    Method.ROUTER: "the logits of the learned routers of all layers",
    Method.SMOE: "the hidden state",
    Method.MOEE: "the hidden state, joined with the logits of the learned routers of all layers",
    Method.EV: "the logits of the spectral routers of all layers",
    Method.SSMOE: "the hidden state of a forward pass routed by the mix of learned and spectral routers, joined with the "
    "routing weights of all layers",
}

_TEXT = """\
---
{front_matter}
---

# {base_name} as a sentence-embedding model

This is a [sentence-transformers](https://www.sbert.net) model made from the Mixture-of-Experts language model {base}
without any training, by `ssmoe_embed` {version}. It maps a text to {dimension} numbers: {representation}, read at the
last token of the text in its template.

{contents}

## Use

```
pip install ssmoe-embed
```

```python
import ssmoe_embed  # makes the module known to sentence-transformers
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("sentence_transformers_model_id")
vectors = model.encode(["first text", "second text"])
print(model.similarity(vectors, vectors))
```

Without the import, pass `trust_remote_code=True`. `ssmoe_embed.load(..., method="ev", prompt="prompteol")` changes settings.

## Settings

| setting | value |
|---|---|
{settings}

## Limits

The vectors inherit what the base model knows, its languages and its biases. A text longer than `max_seq_length` tokens,
template included, is cut at its end. Vectors of other settings, or of another base model, cannot be compared with these.

## Sources

The method follows [SSMoE](https://arxiv.org/abs/2605.30992) and [MoEE](https://arxiv.org/abs/2410.10814). The licence of
the base model applies to whatever is made with it{license_note}.
"""


def model_card(module: SSMoE) -> str:
    """The card of one module, as Markdown with a YAML header."""
    source, settings = module.source, module.settings
    spectral = module.routers.settings.as_dict() if module.routers else {}
    rows = {"base revision": module.get_config_dict()["base_revision"] or "not pinned"} | settings.as_dict() | spectral
    name = OWN_BASE if source.embedded else source.name_or_path.rstrip("/").rsplit("/", 1)[-1]
    front_matter = ModelCardData(
        license=source.license,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        base_model=None if source.embedded or source.is_local else source.name_or_path,
        tags=["sentence-transformers", "sentence-similarity", "feature-extraction", "mixture-of-experts", "ssmoe"],
    )
    return _TEXT.format(
        front_matter=front_matter.to_yaml(),
        base_name="The enclosed model" if source.embedded else name,
        base="in the folder `base`" if source.embedded else f"`{name}`",
        version=__version__,
        dimension=module.get_embedding_dimension(),
        representation=_REPRESENTATION[settings.method],
        contents=(
            "The base model is part of this repository."
            if source.embedded
            else "The base model is not part of this repository; it is loaded from where it is."
        ),
        settings="\n".join(f"| {key} | `{_cell(value)}` |" for key, value in rows.items()),
        license_note=f" ({source.license})" if source.license else "",
    )


def _cell(value: object) -> str:
    """A value that cannot break out of its table cell."""
    return str(value).replace("|", "\\|").replace("\n", "\\n")
