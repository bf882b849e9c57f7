"""What is encoded → token ids and pixels: texts, pictures, and pictures with a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image

from ssmoe_embed.embedding.tokenization import TextError, clean_unicode
from ssmoe_embed.vision.reading import is_image, read_image

_LONGEST = 16_384
"""Characters that are read of a text: no tokenizer of CLIP's kind makes fewer than 248 tokens of so many."""


class TextAndImage(NamedTuple):
    """One input: its text, its picture, or both."""

    text: str | None
    image: Image.Image | None


def parts_of(given: Any, where: str = "") -> TextAndImage:
    """What an input consists of.

    Args:
        given: A text; a picture, as `read_image` takes it; or `{"text": …}`, `{"image": …}` or both.
        where: What to call it in messages.

    Raises:
        TextError: It is neither.
        ImageError: Its picture cannot be read.
    """
    if isinstance(given, Mapping):
        wrong = [str(key) for key in given if key not in ("text", "image")]
        text, image = given.get("text"), given.get("image")
        if wrong or (text is None and image is None):
            raise TextError(
                f"{where or 'The input'} has the keys {sorted(map(str, given))}; pass 'text', 'image' or both, no others."
            )
        if text is not None and not isinstance(text, str):
            raise TextError(
                f"{where or 'The input'} has a text of type {type(text).__name__}; convert it with str(...)."
            )
        return TextAndImage(text, None if image is None else read_image(image, where))
    if is_image(given):
        return TextAndImage(None, read_image(given, where))
    if not isinstance(given, str):
        raise TextError(
            f"{where or 'The input'} is of type {type(given).__name__}; pass a text, a picture (PIL image, path, array, "
            "tensor, bytes) or {'text': …, 'image': …}."
        )
    return TextAndImage(given, None)


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
            inputs: See `parts_of`.
            prompt: Put before every text.

        Returns:
            `input_ids` and `attention_mask` `[b,T]` with `text_rows [b]`, which of the inputs they are of, where there are
            texts; `pixel_values [b,3,h,w]` with `image_rows [b]`, where there are pictures.
        """
        parts = [parts_of(given, f"Input {place}") for place, given in enumerate(inputs)]
        features: dict[str, torch.Tensor] = {}
        texts = {row: prompt + part.text for row, part in enumerate(parts) if part.text is not None}
        images = {row: part.image for row, part in enumerate(parts) if part.image is not None}
        if texts:
            tokens = self.processor.tokenizer(
                [shortened(text) for text in texts.values()],
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


def shortened(text: str) -> str:
    """A text without runs of space, which CLIP's tokenizer leaves out too, and not much longer than what is read of it."""
    return clean_unicode(" ".join(text[: 64 * _LONGEST].split())[:_LONGEST])
