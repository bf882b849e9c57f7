"""What mteb evaluates: a model of images and texts, under one routing, on clean images or on noisy ones.

The paper adds "random noise" and names neither its kind nor its strength, so kinds and a ladder are offered. What becomes of
an image depends on its pixels and the settings alone, never on its batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sentence_transformers import SentenceTransformer

from ssmoe_embed.common.lazy import require_mteb

require_mteb()

from mteb.models import ModelMeta  # noqa: E402
from mteb.models.abs_encoder import AbsEncoder  # noqa: E402
from mteb.models.model_meta import ScoringFunction  # noqa: E402

from ssmoe_embed.common.choices import Choice, unknown  # noqa: E402
from ssmoe_embed.embedding.model import EmbeddingModel  # noqa: E402
from ssmoe_embed.vision.inputs import read_image  # noqa: E402
from ssmoe_embed.vision.module import SSMoEVision  # noqa: E402
from ssmoe_embed.vision.routing import PAPER, VisionRouting, chosen_routing, method_of  # noqa: E402

LADDER = "image-ladder"
"""Name of clean images and rising noise of one kind."""
STRENGTHS = (0.05, 0.1, 0.2, 0.3, 0.5)


class Noise(Choice):
    """What is done to the pixels, which lie from 0 to 1."""

    GAUSSIAN = "gaussian"
    """A normal deviate of that standard deviation is added to every number."""
    UNIFORM = "uniform"
    """A number from minus to plus that strength is added to every number."""
    SALT_PEPPER = "salt-pepper"
    """That share of the pixels becomes black or white."""


@dataclass(frozen=True)
class ImageCorruption:
    """One kind of noise.

    Attributes:
        noise: Its kind.
        strength: How much, from 0 to 1.
        seed: Another seed draws other noise.

    Raises:
        ValueError: A value is out of range.
    """

    noise: Noise = Noise.GAUSSIAN
    strength: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise", Noise.parse(self.noise, "noise"))
        object.__setattr__(self, "strength", float(self.strength))
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength={self.strength} is outside 0 to 1; pixels lie from 0 to 1.")

    @classmethod
    def parse(cls, name: str) -> ImageCorruption:
        """Read a name such as `gaussian@0.1` or `salt-pepper@0.05,seed=1`; the inverse of `name`.

        Raises:
            ValueError: The name cannot be read.
        """
        head, _, seed = name.partition(",seed=")
        noise, _, strength = head.partition("@")
        if noise not in list(Noise):
            raise ValueError(unknown("corruption", name, [one.name for one in ladder()]))
        try:
            return cls(Noise(noise), float(strength or 0.1), int(seed or 0))
        except ValueError as error:
            raise ValueError(
                f"corruption={name!r} cannot be read ({error}); write gaussian@0.1 or gaussian@0.1,seed=1."
            ) from None

    @property
    def name(self) -> str:
        """A name of its own for every setting, fit for a folder."""
        return f"{self.noise}@{self.strength:g}" + (f",seed={self.seed}" if self.seed else "")

    def apply(self, image: Any) -> Image.Image:
        """The image with noise, as `read_image` reads it."""
        picture = read_image(image)
        pixels = np.asarray(picture, dtype=np.float64) / 255  # [h,w,3]
        digest = hashlib.blake2b(f"{self.seed}\0{picture.size}\0".encode() + picture.tobytes(), digest_size=16).digest()
        rng = np.random.default_rng(int.from_bytes(digest, "big"))
        if self.noise is Noise.SALT_PEPPER:
            drawn = rng.random(pixels.shape[:2])
            pixels[drawn < self.strength / 2] = 0.0
            pixels[drawn > 1 - self.strength / 2] = 1.0
        elif self.noise is Noise.GAUSSIAN:
            pixels = pixels + self.strength * rng.standard_normal(pixels.shape)
        else:
            pixels = pixels + rng.uniform(-self.strength, self.strength, pixels.shape)
        return Image.fromarray(np.rint(pixels.clip(0, 1) * 255).astype(np.uint8))


def ladder(noises: Iterable[str] = ("gaussian",), strengths: Iterable[float] = STRENGTHS) -> list[ImageCorruption]:
    """Noise of rising strength, to find the one that costs as much as the paper reports."""
    strengths = list(strengths)
    return [ImageCorruption(Noise.parse(noise, "noise"), strength) for noise in noises for strength in strengths]


def names_image_corruption(name: str) -> bool:
    """Whether a corruption's name is that of noise on images."""
    return name == LADDER or name.partition("@")[0] in list(Noise)


class VisionEncoder(AbsEncoder):
    """A `SentenceTransformer` that begins with an `SSMoEVision`, as mteb's image tasks call it."""

    def __init__(self, model: SentenceTransformer, name: str, corruption: ImageCorruption | None = None) -> None:
        """Wrap a loaded model under the name that it is called by, with noise on its images if there is any."""
        self.model = model
        self.mteb_model_meta = vision_meta(model, name, corruption)
        self._corruption = corruption

    def encode(self, inputs: Any, **kwargs: Any) -> NDArray[np.float32]:
        """See `mteb.models.abs_encoder.AbsEncoder.encode`; an input with an image and a text has the vector of both."""
        made = []
        for batch in inputs:
            shown = {key: batch[key] for key in ("image", "text") if key in batch}
            if self._corruption is not None and "image" in shown:
                shown["image"] = map(self._corruption.apply, shown["image"])
            rows = [dict(zip(shown, row, strict=True)) for row in zip(*shown.values(), strict=True)]
            made.append(self.model.encode(rows, batch_size=kwargs.get("batch_size", 32), show_progress_bar=False))
        return np.concatenate(made)


def routed_view(model: EmbeddingModel, method: str | None, changes: Mapping[str, Any]) -> EmbeddingModel:
    """A view of a loaded model under a method (smoe, ssmoe or paper; None for its own) and fields of `VisionRouting`.

    Raises:
        ValueError: One of them is not known or does not fit the others.
    """
    module = model[0]
    assert isinstance(module, SSMoEVision)
    given = dict(changes) | ({} if method is None else {"method": method})
    routing = chosen_routing(module.routing, given)
    if routing == module.routing:
        return model
    return EmbeddingModel(modules=[module.using(routing)], device=str(model.device))


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
