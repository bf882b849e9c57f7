"""What is encoded → token ids and pixels: texts, and pictures of every kind, made RGB or refused by name."""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from ssmoe_embed.embedding.tokenization import TextError, clean_unicode

MOST_PIXELS = 100_000_000
"""A picture of more is refused before it is unpacked: a file of some kilobytes may unpack to gigabytes."""
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp"})
"""Files that are read as pictures; the same that sentence-transformers takes for such, and `.tif`."""
_LONG = 8
"""A picture that is so many times longer than wide is cut to that, around its middle: the rest would be cut anyway."""
_DATA = "data:image/"
_SHOWN = 60


class ImageError(ValueError):
    """A picture that cannot be read; the message names it."""


def is_image(given: Any) -> bool:
    """Whether an input is a picture: a PIL image, an array or tensor, a `Path`, or a string that names a picture's file.

    A string is a picture if it ends as one and such a file is there, or if it is a `data:image/` address; for a text that
    looks so, pass `{"text": …}`.
    """
    if isinstance(given, str):
        return given.startswith(_DATA) or (Path(given).suffix.lower() in SUFFIXES and Path(given).is_file())
    return isinstance(given, Image.Image | np.ndarray | torch.Tensor | Path | bytes)


def read_image(given: Any, where: str = "") -> Image.Image:
    """A picture in RGB, upright, on white where it was transparent.

    Args:
        given: A PIL image, a path, the bytes of a file, a `data:image/` address, or an array or tensor `[h,w]`, `[h,w,c]` or
            `[c,h,w]` of 8 or 16 bits or of floats from 0 to 1, with `c` of 1 (grey), 2 (with alpha), 3 or 4.
        where: What to call it in messages if it has no path; by default what it is.

    Raises:
        ImageError: It is broken, cut short, empty, larger than `MOST_PIXELS`, or nothing that is read as a picture.
    """
    name = _name(given) if isinstance(given, str | Path) or not where else where
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # pixels are counted here
        if isinstance(given, torch.Tensor | np.ndarray):
            picture = _from_array(given, name)
        else:
            picture = given if isinstance(given, Image.Image) else _opened(given, name)
        if 0 in picture.size:
            raise ImageError(f"{name} has no pixels ({picture.width} × {picture.height}); leave it out.")
        if picture.width * picture.height > MOST_PIXELS:
            raise ImageError(
                f"{name} has {picture.width:,} × {picture.height:,} pixels and at most {MOST_PIXELS:,} are read; shrink it."
            )
        try:
            frames = getattr(picture, "n_frames", 1)
            if frames > 1:
                warnings.warn(f"{name} has {frames} frames; the first is read.", stacklevel=3)
                picture.seek(0)
            return _cut(_in_rgb(ImageOps.exif_transpose(picture)))
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            raise ImageError(f"{name} is broken or cut short ({error}); copy or download it again.") from error


def _opened(given: Any, name: str) -> Image.Image:
    """A file as PIL opens it, which reads no pixels yet."""
    if isinstance(given, str) and given.startswith(("http://", "https://")):
        raise ImageError(f"{name} is an address; nothing is downloaded here. Save the picture and pass its path.")
    if isinstance(given, str) and given.startswith(_DATA):
        head, _, content = given.partition(",")
        try:
            given = base64.b64decode(content, validate=True) if head.endswith(";base64") else b""
        except binascii.Error as error:
            raise ImageError(f"{name} is no base64 ({error}).") from error
    if not isinstance(given, str | Path | bytes):
        raise ImageError(f"{name} is no picture; pass a PIL image, a path, an array, a tensor or a file's bytes.")
    try:
        return Image.open(io.BytesIO(given) if isinstance(given, bytes) else given)
    except FileNotFoundError:
        raise ImageError(f"There is no picture {name}.") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} is refused: {error} At most {MOST_PIXELS:,} pixels are read.") from error
    except UnidentifiedImageError:
        raise ImageError(f"{name} is no picture that Pillow knows; save it as PNG or JPEG.") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageError(f"{name} cannot be read ({error}).") from error


def _in_rgb(picture: Image.Image) -> Image.Image:
    """The picture in three channels of eight bits."""
    if picture.mode in {"I;16", "I;16B", "I;16L", "I;16N", "I", "F"}:
        picture = Image.fromarray(_eight_bits(np.asarray(picture)))
    if picture.mode in {"RGBA", "RGBa", "LA", "La", "PA"} or "transparency" in picture.info:
        shown = picture.convert("RGBA")
        ground = Image.new("RGBA", shown.size, "white")
        ground.alpha_composite(shown)
        picture = ground
    return picture.convert("RGB")


def _eight_bits(numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Numbers of 8 bits, of 16, or from 0 to 1 as bytes."""
    if numbers.dtype in (np.uint8, np.bool_):
        return numbers.astype(np.uint8) * (255 if numbers.dtype == np.bool_ else 1)
    if not np.isfinite(numbers).all():
        raise ValueError("it holds NaN or infinity")
    low, high = float(numbers.min()), float(numbers.max())
    if numbers.dtype.kind == "f" and low >= 0 and high <= 1:
        scaled = numbers.astype(np.float64) * 255
    else:
        scaled = numbers.astype(np.float64) / (257 if high > 255 else 1)
    if low < 0 or scaled.max() > 255:
        raise ValueError(f"its numbers lie from {low:g} to {high:g}; 0 to 1, to 255 or to 65535 is read")
    return np.rint(scaled).astype(np.uint8)


def _from_array(given: Any, name: str) -> Image.Image:
    """An array or tensor as a picture; its last dimension of 1 to 4 is its channels, or else its first."""
    if isinstance(given, torch.Tensor):
        given = (given.float() if given.is_floating_point() else given).detach().cpu()
    numbers = np.asarray(given)
    if numbers.ndim == 3 and numbers.shape[-1] not in range(1, 5) and numbers.shape[0] in range(1, 5):
        numbers = numbers.transpose(1, 2, 0)  # [c,h,w] → [h,w,c]
    if numbers.ndim == 3 and numbers.shape[-1] == 1:
        numbers = numbers[..., 0]
    shaped = numbers.ndim == 2 or (numbers.ndim == 3 and numbers.shape[-1] in (2, 3, 4))
    if not shaped or numbers.dtype.kind not in "buif":
        raise ImageError(
            f"{name} is no picture: shape {tuple(numbers.shape)} of {numbers.dtype}; pass [h,w], [h,w,c] or [c,h,w] "
            "with c of 1 to 4."
        )
    if not numbers.size:
        raise ImageError(f"{name} has no pixels (shape {tuple(numbers.shape)}); leave it out.")
    try:
        return Image.fromarray(np.ascontiguousarray(_eight_bits(numbers)))
    except ValueError as error:
        raise ImageError(f"{name} is no picture: {error}.") from error


def _cut(picture: Image.Image) -> Image.Image:
    """A picture that is not much longer than wide, so that scaling its shorter side cannot make it huge."""
    most = _LONG * min(picture.size)
    if max(picture.size) <= most:
        return picture
    left, top = max(0, (picture.width - most) // 2), max(0, (picture.height - most) // 2)
    return picture.crop((left, top, left + min(most, picture.width), top + min(most, picture.height)))


def _name(given: Any) -> str:
    """What to call a picture in a message."""
    if isinstance(given, Image.Image):
        return str(getattr(given, "filename", "") or f"The PIL image of {given.width} × {given.height}")
    if isinstance(given, str | Path):
        text = str(given)
        return text if len(text) <= _SHOWN or not text.startswith(_DATA) else f"{text[:_SHOWN]}…"
    if isinstance(given, bytes):
        return f"The picture of {len(given)} bytes"
    return f"The {type(given).__name__}"


_LONGEST = 16_384
"""Characters that are read of a text, without runs of space, which CLIP's tokenizer leaves out too: no tokenizer of its
kind makes fewer than 248 tokens of so many."""


def _parts(given: Any, name: str) -> tuple[str | None, Image.Image | None]:
    """The text and the picture of an input: a text, what `read_image` takes, or a dictionary of one or both."""
    if not isinstance(given, Mapping):
        if is_image(given):
            return None, read_image(given, name)
        if isinstance(given, str):
            return given, None
        raise TextError(
            f"{name} is of type {type(given).__name__}; pass a text, a picture (PIL image, path, array, "
            "tensor, bytes) or {'text': …, 'image': …}."
        )
    text, image = given.get("text"), given.get("image")
    if set(given) - {"text", "image"} or (text is None and image is None):
        raise TextError(f"{name} has the keys {sorted(map(str, given))}; pass 'text', 'image' or both, no others.")
    if text is not None and not isinstance(text, str):
        raise TextError(f"{name} has a text of type {type(text).__name__}; convert it with str(...).")
    return text, None if image is None else read_image(image, name)


class InputReader:
    """Makes what the model reads of a batch of inputs.

    Attributes:
        processor: CLIP's: a tokenizer and an image processor.
        limit: Tokens of a text at most.
    """

    def __init__(self, processor: Any, limit: int) -> None:
        self.processor = processor
        self.limit = limit

    def read(self, inputs: Sequence[Any], prompt: str = "") -> dict[str, torch.Tensor]:
        """Features of `B` inputs of any kinds.

        Args:
            inputs: Texts, pictures as `read_image` takes them, and `{"text": …}`, `{"image": …}` or both in one.
            prompt: Put before every text.

        Returns:
            `input_ids` and `attention_mask` `[b,T]` with `text_rows [b]`, which of the inputs they are of, where there are
            texts; `pixel_values [b,3,h,w]` with `image_rows [b]`, where there are pictures.

        Raises:
            TextError: An input is nothing of that kind.
            ImageError: A picture cannot be read.
        """
        parts = [_parts(given, f"Input {place}") for place, given in enumerate(inputs)]
        features: dict[str, torch.Tensor] = {}
        texts = {row: prompt + text for row, (text, _) in enumerate(parts) if text is not None}
        images = {row: image for row, (_, image) in enumerate(parts) if image is not None}
        if texts:
            tokens = self.processor.tokenizer(
                [clean_unicode(" ".join(text[: 64 * _LONGEST].split())[:_LONGEST]) for text in texts.values()],
                truncation=True,
                max_length=self.limit,
                padding=True,
                return_tensors="pt",
            )
            features |= {name: tokens[name] for name in ("input_ids", "attention_mask")}
            features["text_rows"] = torch.tensor(list(texts))
        if images:
            pixels = self.processor.image_processor(list(images.values()), return_tensors="pt")
            features |= {"pixel_values": pixels["pixel_values"], "image_rows": torch.tensor(list(images))}
        return features
