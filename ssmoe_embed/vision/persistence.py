"""The model card of a CLIP-MoE embedding model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import ModelCardData
from sentence_transformers.base.modules import Module
from transformers import BitsAndBytesConfig, CLIPProcessor

from ssmoe_embed.common.choices import unknown
from ssmoe_embed.common.devices import check_backend, check_device_map, warn_of_half_precision
from ssmoe_embed.common.hub import HubOptions
from ssmoe_embed.common.version import __version__
from ssmoe_embed.embedding.card import GENERATED
from ssmoe_embed.embedding.persistence import require_this_package, write_json
from ssmoe_embed.spectral.routers import SpectralRouters
from ssmoe_embed.vision.modeling import ClipMoeModel
from ssmoe_embed.vision.routing import PAPER, Tower, VisionRouting

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


CONFIG = "ssmoe_vision_config.json"
_METHODS = ("smoe", "ssmoe", "paper")
"""By the learned routers, by the default spectral routing, by the paper's release's."""
_NOT_IN_4_BITS = ["gate", "visual_projection", "text_projection"]
"""Routers, where a rounding sends tokens elsewhere, and the two matrices into the shared space."""


class VisionParts(NamedTuple):
    """What a module consists of."""

    model: ClipMoeModel
    processor: CLIPProcessor
    routing: VisionRouting | None
    routers: dict[Tower, SpectralRouters]

    def config(self) -> dict[str, Any]:
        """How it is routed, as JSON values."""
        if self.routing is None:
            return {"routing": None}
        plain = {name: str(value) if isinstance(value, str) else value for name, value in vars(self.routing).items()}
        return {"routing": plain | {"towers": [str(tower) for tower in self.routing.towers]}}


def save_vision(parts: VisionParts, folder: Path) -> None:
    """Write a model into a folder.

    Raises:
        ValueError: It is in 4 bits.
    """
    if getattr(parts.model, "is_quantized", False):
        raise ValueError(
            "This model was rounded to 4 bits when it was loaded; load it without load_in_4bit and save that."
        )
    parts.model.save_pretrained(folder)
    parts.processor.save_pretrained(folder)
    for tower, routers in parts.routers.items():
        routers.save(_routers_file(folder, tower))
    write_json(folder / CONFIG, parts.config())
    require_this_package(folder / "config_sentence_transformers.json")


def load_vision(
    cls: type[Module],
    model_name_or_path: str,
    subfolder: str = "",
    *,
    model_kwargs: Mapping[str, Any] | None = None,
    processor_kwargs: Mapping[str, Any] | None = None,
    config_kwargs: Mapping[str, Any] | None = None,
    backend: str = "torch",
    **options: Any,
) -> VisionParts:
    """Read what `save_vision` wrote; see `SSMoEVision.load`."""
    check_backend(backend)
    given = dict(model_kwargs or {})
    check_device_map(given.get("device_map"))
    hub = HubOptions.taken_from(options)
    config = _config(cls, model_name_or_path, subfolder, hub)
    saved = _routing(config)
    if config.get("dtype"):
        given.setdefault("dtype", config["dtype"])
    routing = chosen_routing(saved, dict(config_kwargs or {}))
    if given.pop("load_in_4bit", False):
        given["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=_NOT_IN_4_BITS
        )
    place = {"subfolder": subfolder} | hub.loading
    model = ClipMoeModel.from_pretrained(model_name_or_path, **place, **given)
    if "dtype" not in given and "quantization_config" not in given:
        warn_of_half_precision(model)
    processor = CLIPProcessor.from_pretrained(model_name_or_path, **place, **dict(processor_kwargs or {}))
    routers = _saved_routers(cls, model_name_or_path, subfolder, hub) if routing and routing == saved else {}
    if "quantization_config" in given and routing is not None and not routers:
        raise ValueError(
            "Spectral routers cannot be made of weights in 4 bits; load the model without load_in_4bit, save it with its "
            "routing, and load that in 4 bits."
        )
    return VisionParts(model, processor, routing, routers)


def chosen_routing(saved: VisionRouting | None, changes: dict[str, Any]) -> VisionRouting | None:
    """The saved routing with what a user changes of it.

    Args:
        saved: As the folder says.
        changes: `method`, and fields of `VisionRouting`.

    Raises:
        ValueError: One of them is not known or does not fit the others.
    """
    method = changes.pop("method", None)
    for name in changes:
        if name not in VisionRouting.__dataclass_fields__:
            raise ValueError(unknown("setting", name, ["method", *VisionRouting.__dataclass_fields__]))
    if method is not None and method not in _METHODS:
        raise ValueError(unknown("method", method, _METHODS))
    if method == "smoe":
        if changes:
            raise ValueError(f"method='smoe' is the learned routers' own; {sorted(changes)} belong to ssmoe or paper.")
        return None
    base = PAPER if method == "paper" else saved or VisionRouting()
    if saved is None and method is None and not changes:
        return None
    return VisionRouting(**(vars(base) | changes))


def method_of(routing: VisionRouting | None) -> str:
    """The name of a routing: smoe by the learned routers, paper as released, ssmoe any other."""
    return "smoe" if routing is None else "paper" if routing == PAPER else "ssmoe"


def _config(cls: type[Module], name: str, subfolder: str, hub: HubOptions) -> dict[str, Any]:
    """What a folder says beside its model: its routing, and the dtype to load it in where that is not its weights' own."""
    try:
        return cls.load_config(name, subfolder=subfolder, config_filename=CONFIG, **_files(hub)) or {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{CONFIG} of {name} is broken ({error}); copy or download it again.") from None


def _routing(config: Mapping[str, Any]) -> VisionRouting | None:
    """The routing of a saved configuration; one that says nothing of it is routed by its learned routers."""
    routing = config.get("routing")
    return None if routing is None else VisionRouting(**routing | {"towers": tuple(routing["towers"])})


def _saved_routers(cls: type[Module], name: str, subfolder: str, hub: HubOptions) -> dict[Tower, SpectralRouters]:
    """The spectral routers that a folder holds."""
    found = {}
    for tower in Tower:
        path = cls.load_file_path(name, _routers_file(Path(), tower).name, subfolder=subfolder, **_files(hub))
        if path is not None and Path(path).is_file():
            found[tower] = SpectralRouters.load(path)
    return found


def _files(hub: HubOptions) -> dict[str, Any]:
    """How single files are fetched."""
    return {name: value for name, value in hub.keywords.items() if name != "trust_remote_code"}


def _routers_file(folder: Path, tower: Tower) -> Path:
    return folder / f"spectral_{tower}.safetensors"
