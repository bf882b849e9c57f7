"""Noise on images.

The paper adds "random noise" and names neither its kind nor its strength, so kinds and a ladder are offered.

What becomes of an image depends on its pixels and the settings alone, never on its batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ssmoe_embed.common.choices import Choice, unknown
from ssmoe_embed.vision.inputs import read_image

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

    def of_batch(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """A batch of mteb with its images corrupted."""
        return {key: [self.apply(one) for one in value] if key == "image" else value for key, value in batch.items()}


def ladder(noises: Iterable[str] = ("gaussian",), strengths: Iterable[float] = STRENGTHS) -> list[ImageCorruption]:
    """Noise of rising strength, to find the one that costs as much as the paper reports."""
    strengths = list(strengths)
    return [ImageCorruption(Noise.parse(noise, "noise"), strength) for noise in noises for strength in strengths]


def names_image_corruption(name: str) -> bool:
    """Whether a corruption's name is that of noise on images."""
    return name == LADDER or name.partition("@")[0] in list(Noise)
