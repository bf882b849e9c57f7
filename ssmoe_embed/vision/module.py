"""`SSMoEVision`, the sentence-transformers module that reads texts and pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCardData
from sentence_transformers.base.modules import InputModule
from torch.nn import functional
from transformers import BitsAndBytesConfig, CLIPProcessor
from typing_extensions import Self

from ssmoe_embed.common.loading import HubOptions, check_backend, check_device_map, warn_of_half_precision
from ssmoe_embed.common.version import __version__
from ssmoe_embed.data import bundled_folder
from ssmoe_embed.embedding.persistence import GENERATED, require_this_package, write_json
from ssmoe_embed.routing import RoutingPolicy
from ssmoe_embed.routing.sites import install_sites, routed
from ssmoe_embed.spectral.routers import SpectralRouters
from ssmoe_embed.vision.inputs import InputReader
from ssmoe_embed.vision.modeling import ClipMoeModel
from ssmoe_embed.vision.routing import (
    ClipMoeTower,
    Tower,
    VisionRouting,
    chosen_routing,
    spectral_policies,
    spectral_routers,
)

CONFIG = "ssmoe_vision_config.json"
_ROUTERS = "spectral_{tower}.safetensors"
_NOT_IN_4_BITS = ["gate", "visual_projection", "text_projection"]
"""Routers, where a rounding sends tokens elsewhere, and the two matrices into the shared space."""
_CARD = """\
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


def is_vision_model(name: str | Path) -> bool:
    """Whether a name is that of a saved model of images and texts: the bundled one, or a folder."""
    folder = Path(name).expanduser()
    folder = folder if folder.is_dir() else bundled_folder(str(name)) or folder
    return (folder / CONFIG).is_file()


class SSMoEVision(InputModule):
    """CLIP-MoE as an embedding module: texts, pictures and pictures with a text, in one vector space.

    Use it as the one module of a `SentenceTransformer`. The vector of a picture with a text is the sum of the unit vectors
    of both. Sources: SSMoE, https://arxiv.org/abs/2605.30992; CLIP-MoE, https://arxiv.org/abs/2409.19291.

    Attributes:
        model: The CLIP-MoE, frozen.
        processor: CLIP's processor.
        routing: How its towers are routed; None for its learned routers.
        routers: The spectral routers of its towers.
    """

    config_file_name = CONFIG
    save_in_root = True

    def __init__(
        self,
        model: ClipMoeModel,
        processor: CLIPProcessor,
        routing: VisionRouting | None = None,
        routers: Mapping[Tower, SpectralRouters] | None = None,
    ) -> None:
        """Put the parts together; most users load a saved model.

        Args:
            model: A CLIP-MoE.
            processor: Its tokenizer and image processor.
            routing: How its towers are routed; None for its learned routers.
            routers: Spectral routers of this very model; made if the routing needs them and they are not given.

        Raises:
            ValueError: The model is no CLIP-MoE, or the routers are not of this model.
        """
        super().__init__()
        if not isinstance(model, ClipMoeModel):
            raise ValueError(f"{type(model).__name__} is no CLIP-MoE; make one with ClipMoeModel.from_clip.")
        self.model = model.requires_grad_(False).eval()
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.routing, self.routers = routing, dict(routers or {})
        if routing is not None:
            lacking = [tower for tower in routing.towers if tower not in self.routers]
            self.routers |= spectral_routers(model, routing, progress=False) if lacking else {}
        self._policies: dict[Tower, RoutingPolicy] = spectral_policies(self.routers, routing) if routing else {}
        for tower, policy in self._policies.items():
            policy.check(tower.of(model))
            install_sites(tower.of(model), ClipMoeTower())
        self.max_seq_length: int = min(
            model.config.text_config.max_position_embeddings, self.tokenizer.model_max_length
        )

    def using(self, routing: VisionRouting | None, **changes: Any) -> Self:
        """A view of the same loaded model under another routing; this one stays as it is.

        Args:
            routing: Its routing; None for the learned routers.
            **changes: Fields of it that differ.
        """
        if routing is not None and changes:
            routing = VisionRouting(**(vars(routing) | changes))
        kept = self.routers if routing and self.routing and routing.makes_routers_as(self.routing) else {}
        return type(self)(self.model, self.processor, routing, kept)

    @property
    def auto_model(self) -> ClipMoeModel:
        """The model, as sentence-transformers' own module calls it."""
        return self.model

    @property
    def modalities(self) -> list[Any]:
        """What it reads."""
        return ["text", "image", ("image", "text")]

    @property
    def modality_config(self) -> dict[Any, Any]:
        """What it reads, in the form in which libraries look it up in sentence-transformers' own module."""
        return {modality: {"method": "forward", "method_output_name": None} for modality in self.modalities}

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Token ids and pixels of `B` inputs; see `InputReader.read`.

        Raises:
            TextError: An input is no text, picture or dictionary of both.
            ImageError: A picture cannot be read.
        """
        del kwargs
        return InputReader(self.processor, self.max_seq_length).read(inputs, prompt or "")

    def forward(self, features: dict[str, torch.Tensor], **kwargs: Any) -> dict[str, torch.Tensor]:
        """The features that `preprocess` gives, with the batch's vectors `sentence_embedding [B,D]`, float32.

        Raises:
            ValueError: A vector is not finite.
        """
        del kwargs
        both = self._vectors(features, Tower.TEXT), self._vectors(features, Tower.VISION)
        found = [one for one in both if one is not None]
        embedding = found[0][1]
        if len(found) > 1:
            parts = torch.cat([rows for rows, _ in found]).bincount()  # of each input, [B]: 2 are a picture with a text
            embedding = torch.zeros(len(parts), embedding.shape[1], device=embedding.device)
            for rows, vectors in found:
                is_shared = (parts[rows] == 2)[:, None]
                embedding.index_add_(0, rows, torch.where(is_shared, functional.normalize(vectors, dim=-1), vectors))
        broken = (~embedding.isfinite().all(dim=-1)).nonzero().flatten().tolist()
        if broken:
            raise ValueError(
                f"The vectors at {broken[:5]} of the batch are not finite; load the model with "
                "model_kwargs={'dtype': 'float32'}."
            )
        return features | {"sentence_embedding": embedding}

    def _vectors(self, features: dict[str, torch.Tensor], tower: Tower) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Which inputs have something for a tower, `[b]`, and its vectors of them `[b,D]`."""
        given, rows = ("input_ids", "text_rows") if tower is Tower.TEXT else ("pixel_values", "image_rows")
        if given not in features:
            return None
        policy = self._policies.get(tower)
        with nullcontext() if policy is None else routed(policy):  # without one, whatever the model itself was given
            if tower is Tower.TEXT:
                made = self.model.get_text_features(features[given], attention_mask=features["attention_mask"])
            else:
                made = self.model.get_image_features(features[given].to(self.model.dtype))
        vectors = made.pooler_output.float()
        return features.get(rows, torch.arange(len(vectors))).to(vectors.device), vectors

    def get_embedding_dimension(self) -> int:
        """Length of a vector."""
        return int(self.model.config.projection_dim)

    def get_config_dict(self) -> dict[str, Any]:
        """Everything of the saved configuration that is not a weight."""
        return {"routing": None if self.routing is None else self.routing.as_dict()}

    def on_model_ready(self, model: Any) -> None:
        """Give the model that owns this module a model card of its own, unless it has another one."""
        if not model._model_card_text or GENERATED in model._model_card_text:
            model._model_card_text = self.card()

    def card(self) -> str:
        """Its model card, as Markdown with a YAML header."""
        vision, text = self.model.config.vision_config, self.model.config.text_config
        rows = {
            "image": f"{vision.image_size} × {vision.image_size} pixels, patches of {vision.patch_size}",
            "text": f"{text.max_position_embeddings} tokens",
            "experts": f"{vision.num_experts_per_tok} of {vision.num_experts} per token",
            "routing": "learned routers" if self.routing is None else "spectral",
        }
        if self.routing is not None:
            rows |= vars(self.routing) | {"towers": ", ".join(self.routing.towers)}
        front_matter = ModelCardData(
            library_name="sentence-transformers",
            pipeline_tag="feature-extraction",
            tags=["sentence-transformers", "feature-extraction", "clip", "mixture-of-experts", "ssmoe"],
        )
        return _CARD.format(
            front_matter=front_matter.to_yaml(),
            generated=GENERATED,
            version=__version__,
            dimensions=self.model.config.projection_dim,
            settings="\n".join(f"| {name} | `{value}` |" for name, value in rows.items()),
        )

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write model, processor, routing and spectral routers to a folder, which transformers' AutoModel reads too.

        Raises:
            ValueError: `safe_serialization` is false, and nothing is ever pickled, or the model is in 4 bits.
        """
        del args, kwargs
        if not safe_serialization:
            raise ValueError("safe_serialization=False would pickle the weights; SSMoEVision writes safetensors only.")
        if getattr(self.model, "is_quantized", False):
            raise ValueError(
                "This model was rounded to 4 bits when it was loaded; load it without load_in_4bit and save that."
            )
        folder = Path(output_path)
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        for tower, routers in self.routers.items():
            routers.save(folder / _ROUTERS.format(tower=tower))
        write_json(folder / CONFIG, self.get_config_dict())
        require_this_package(folder / "config_sentence_transformers.json")

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        *,
        model_kwargs: Mapping[str, Any] | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        config_kwargs: Mapping[str, Any] | None = None,
        backend: str = "torch",
        **kwargs: Any,
    ) -> Self:
        """Load a saved module, or a folder that holds nothing but the model and its processor.

        Args:
            model_name_or_path: Folder or hub id.
            subfolder: Where in it.
            model_kwargs: `dtype`, `device_map`, `load_in_4bit`, ….
            processor_kwargs: For the processor.
            config_kwargs: `method` (smoe, ssmoe or paper) and fields of `VisionRouting`, which override the saved routing.
            backend: Must be torch.
            **kwargs: What else `SentenceTransformer(...)` was given: `token`, `revision`, ….

        Raises:
            FileNotFoundError: A file of the model is missing.
            ValueError: A file is broken, or an option is not known.
        """
        check_backend(backend)
        given = dict(model_kwargs or {})
        check_device_map(given.get("device_map"))
        hub = HubOptions.taken_from(kwargs)
        place = {"subfolder": subfolder} | hub.loading
        files = hub.keywords | {"subfolder": subfolder}
        del files["trust_remote_code"]
        try:
            config = cls.load_config(model_name_or_path, config_filename=CONFIG, **files) or {}
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{CONFIG} of {model_name_or_path} is broken ({error}); copy or download it again."
            ) from None
        saved = VisionRouting(**config["routing"]) if config.get("routing") else None
        if config.get("dtype"):  # what to load it in, where that is not its weights' own
            given.setdefault("dtype", config["dtype"])
        routing = chosen_routing(saved, dict(config_kwargs or {}))
        if given.pop("load_in_4bit", False):
            given["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=_NOT_IN_4_BITS
            )
        model = ClipMoeModel.from_pretrained(model_name_or_path, **place, **given)
        if "dtype" not in given and "quantization_config" not in given:
            warn_of_half_precision(model)
        processor = CLIPProcessor.from_pretrained(model_name_or_path, **place, **dict(processor_kwargs or {}))
        routers: dict[Tower, SpectralRouters] = {}
        for tower in Tower if routing and routing == saved else ():
            path = cls.load_file_path(model_name_or_path, _ROUTERS.format(tower=tower), **files)
            if path is not None and Path(path).is_file():
                routers[tower] = SpectralRouters.load(path)
        if "quantization_config" in given and routing is not None and not routers:
            raise ValueError(
                "Spectral routers cannot be made of weights in 4 bits; load the model without load_in_4bit, save it with "
                "its routing, and load that in 4 bits."
            )
        return cls(model, processor, routing, routers)


SSMoEVision.__module__ = "ssmoe_embed"  # saved models name the class by its public path
