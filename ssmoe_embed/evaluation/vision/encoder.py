"""What mteb evaluates: a model of images and texts, under one routing, on clean or corrupted images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ScoringFunction
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from ssmoe_embed.data import bundled_folder
from ssmoe_embed.embedding.model import EmbeddingModel
from ssmoe_embed.evaluation.vision.corruption import ImageCorruption
from ssmoe_embed.vision.module import CONFIG, SSMoEVision
from ssmoe_embed.vision.routing import PAPER, VisionRouting, chosen_routing, method_of


class VisionEncoder(AbsEncoder):
    """A `SentenceTransformer` that begins with an `SSMoEVision`, as mteb's image tasks call it."""

    def __init__(self, model: SentenceTransformer, name: str, corruption: ImageCorruption | None = None) -> None:
        """Wrap a loaded model.

        Args:
            model: The model.
            name: What it is called.
            corruption: Noise on its images.
        """
        self.model = model
        self.mteb_model_meta = vision_meta(model, name, corruption)
        self._corruption = corruption

    def encode(self, inputs: Any, **kwargs: Any) -> NDArray[np.float32]:
        """See `mteb.models.abs_encoder.AbsEncoder.encode`; an input with an image and a text has the vector of both."""
        made = []
        for batch in inputs:
            shown = batch if self._corruption is None or "image" not in batch else self._corruption.of_batch(batch)
            keys = [key for key in ("image", "text") if key in shown]
            rows = [dict(zip(keys, row, strict=True)) for row in zip(*(shown[key] for key in keys), strict=True)]
            made.append(self.model.encode(rows, batch_size=kwargs.get("batch_size", 32), show_progress_bar=False))
        return np.concatenate(made)


def routed_view(model: EmbeddingModel, method: str | None, changes: Mapping[str, Any]) -> EmbeddingModel:
    """A view of a loaded model under another routing.

    Args:
        model: The model.
        method: smoe, ssmoe or paper; None for its own.
        changes: Fields of `VisionRouting`.

    Raises:
        ValueError: One of them is not known or does not fit the others.
    """
    module = model[0]
    assert isinstance(module, SSMoEVision)
    given = dict(changes) | ({} if method is None else {"method": method})
    routing = chosen_routing(module.routing, given)
    return (
        model
        if routing == module.routing
        else EmbeddingModel(modules=[module.using(routing)], device=str(model.device))
    )


def is_vision_model(name: str | Path) -> bool:
    """Whether a name is that of a saved model of images and texts: the bundled one, or a folder."""
    folder = Path(name).expanduser()
    folder = folder if folder.is_dir() else bundled_folder(str(name)) or folder
    return (folder / CONFIG).is_file()


def vision_meta(model: SentenceTransformer, name: str, corruption: ImageCorruption | None) -> ModelMeta:
    """The record of a model for mteb."""
    module = model[0]
    assert isinstance(module, SSMoEVision)
    method = method_of(module.routing)
    experiment = _changes(module.routing) | ({} if corruption is None else {"corruption": corruption.name})
    if experiment or module.routing is not None:
        experiment = {"method": method, "prompt": "none"} | experiment
    path = Path(name)
    return ModelMeta(
        loader=None,
        loader_kwargs={"method": method, "prompt": "none"},
        name=name if name.count("/") == 1 and not path.is_dir() else f"ssmoe_embed/{path.resolve().name}",
        revision=_revision(module),
        experiment_kwargs=experiment or None,
        release_date=None,
        languages=["eng-Latn"],
        n_parameters=sum(weight.numel() for weight in module.model.parameters()),
        memory_usage_mb=None,
        max_tokens=module.max_seq_length,
        embed_dim=module.get_embedding_dimension(),
        license=None,
        open_weights=True,
        public_training_code=None,
        public_training_data=None,
        framework=["Sentence Transformers", "PyTorch"],
        similarity_fn_name=ScoringFunction.COSINE,
        use_instructions=False,
        training_datasets=None,
        modalities=["image", "text"],
    )


def _changes(routing: VisionRouting | None) -> dict[str, Any]:
    """What a routing sets otherwise than its method does."""
    if routing is None:
        return {}
    own = PAPER if method_of(routing) == "paper" else VisionRouting()
    fields = {name: "+".join(value) if isinstance(value, tuple) else value for name, value in vars(routing).items()}
    return {name: fields[name] for name, value in vars(routing).items() if value != getattr(own, name)}


def _revision(module: SSMoEVision) -> str:
    """16 hexadecimal digits that depend on weights, tokenizer and image processor; the routing is told beside it."""
    from ssmoe_embed.embedding.fingerprint import Fingerprint

    digest = hashlib.sha256(Fingerprint.of(module.model, module.tokenizer).digest())
    digest.update(repr(sorted(module.processor.image_processor.to_dict().items())).encode())
    return digest.hexdigest()[:16]
