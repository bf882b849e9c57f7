"""Batches: pictures as they may look to a user, and texts as token ids."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from model import IMAGE
from pictures import HELD_OUT_STYLE
from torch import Tensor
from torch.nn import functional

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
LONGEST = 24
"""Tokens of a text in training."""


KEPT_BACK = 300
"""Pictures of concepts that are trained on which are not, to watch the training by."""
_SIDED = {"left", "right", "leftwards", "rightwards", "clock", "time", "east", "west", "letter", "text", "abc", "music"}
"""Words of what has a side."""


@dataclass
class Material:
    """Everything that is trained on.

    Attributes:
        pixels: `[n,48,48,4]` bytes.
        black: `[n]`: whether a picture is black on nothing, so needs a light ground.
        pictures: Row numbers in `pixels` by concept that is trained on.
        kept_back: Concepts by row number in `pixels`: pictures that are not trained on, to watch the training by.
        mirrored: By concept: whether its picture may be mirrored.
        said: Token ids of a concept's texts, as `texts`.
        texts: The texts themselves, by concept.
        anchors: `[C,192]`: the teacher's vector of each concept's name and tags.
        broad: Token ids of the broad texts, shortest first.
        targets: `[n,192]`: the teacher's vectors of the broad texts.
    """

    pixels: np.ndarray
    black: np.ndarray
    pictures: dict[int, list[int]]
    kept_back: dict[int, int]
    mirrored: np.ndarray
    said: list[list[list[int]]]
    texts: list[list[str]]
    anchors: Tensor
    broad: list[list[int]]
    targets: np.ndarray


def read_material(work: Path, tokenizer: Any) -> Material:
    """Read what `pictures.py` and `texts.py` wrote."""
    drawn = json.loads((work / "pictures.json").read_text(encoding="utf-8"))
    texts = json.loads((work / "texts.json").read_text(encoding="utf-8"))
    pictures: dict[int, list[int]] = {}
    for row, one in enumerate(drawn["pictures"]):
        if one["style"] != HELD_OUT_STYLE and not drawn["concepts"][one["concept"]]["held_out"]:
            pictures.setdefault(one["concept"], []).append(row)
    kept_back = _keep_back(pictures)
    ids = tokenizer([text for said in texts["said"] for text in said], truncation=True, max_length=LONGEST)["input_ids"]
    rest = iter(ids)
    said = [[next(rest) for _ in one] for one in texts["said"]]
    broad = tokenizer(texts["broad"], truncation=True, max_length=LONGEST)["input_ids"]
    order = sorted(range(len(broad)), key=lambda row: len(broad[row]))
    return Material(
        pixels=np.load(work / "pixels.npy"),
        black=np.array([one["style"] == "fluent-emoji-high-contrast" for one in drawn["pictures"]]),
        pictures=pictures,
        kept_back=kept_back,
        mirrored=np.array([_may_be_mirrored(one) for one in drawn["concepts"]]),
        said=said,
        texts=texts["said"],
        anchors=torch.from_numpy(np.load(work / "meant.npy").astype(np.float32)),
        broad=[broad[row] for row in order],
        targets=np.load(work / "broad.npy")[order],
    )


def _keep_back(pictures: dict[int, list[int]]) -> dict[int, int]:
    """Take one picture away from some concepts that have at least four."""
    rng = np.random.default_rng(KEPT_BACK)
    rich = sorted(concept for concept, rows in pictures.items() if len(rows) >= 4)
    chosen = rng.choice(rich, min(KEPT_BACK, len(rich)), replace=False)
    return {pictures[concept].pop(int(rng.integers(len(pictures[concept])))): concept for concept in map(int, chosen)}


def _may_be_mirrored(concept: dict[str, Any]) -> bool:
    """Whether what is drawn stays what it is called."""
    words = {*concept["label"].lower().replace("-", " ").split(), *concept["tags"]}
    return concept["group"] not in ("symbols", "flags") and words.isdisjoint(_SIDED)


def padded(rows: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask `[B,T]`."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, mask


def premultiplied(pixels: np.ndarray) -> Tensor:
    """Pictures whose colours are weighed by their opacity, so that edges stay clean: `[B,h,w,4] → [B,4,h,w]`."""
    picture = torch.from_numpy(pixels.astype(np.float32) / 255).permute(0, 3, 1, 2)
    return torch.cat([picture[:, :3] * picture[:, 3:], picture[:, 3:]], dim=1)


def seen(
    pictures: Tensor, black: np.ndarray, mirrored: np.ndarray, rng: np.random.Generator, size: int = IMAGE
) -> Tensor:
    """Pictures as they may look elsewhere: turned, moved, resized, mirrored, recoloured, blurred, partly covered.

    Args:
        pictures: `[B,4,48,48]`, see `premultiplied`.
        black: `[B]`: whether a picture needs a light ground.
        mirrored: `[B]`: whether it may be mirrored.
        rng: Draws everything.
        size: Side of what is given.

    Returns:
        `[B,3,size,size]`, normalised as CLIP's.
    """
    picture = _moved(pictures, mirrored, rng, size)
    blurred = functional.avg_pool2d(picture, 3, 1, 1, count_include_pad=False)
    picture = torch.lerp(picture, blurred, _some(rng, len(picture), 0.2))
    colour, alpha = picture[:, :3], picture[:, 3:] * (1 - _covered(rng, len(picture), size))
    colour = torch.einsum("bij,bjhw->bihw", recolouring(rng, len(picture)), colour) * (alpha > 0)
    shown = (colour + (1 - alpha) * grounds(black, rng)).clamp(0, 1)
    return (shown - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def plain(pixels: np.ndarray, size: int = IMAGE) -> Tensor:
    """Pictures on white as they are: `[B,48,48,4] → [B,3,size,size]`, normalised as CLIP's."""
    picture = functional.interpolate(premultiplied(pixels), (size, size), mode="bilinear", antialias=True)
    shown = picture[:, :3] + 1 - picture[:, 3:]
    return (shown - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def _moved(pictures: Tensor, mirrored: np.ndarray, rng: np.random.Generator, size: int) -> Tensor:
    """Each turned, sheared, moved, larger or smaller, a third of those that may be mirrored."""
    B = len(pictures)
    angle, scale = rng.normal(0, math.radians(9), B), np.exp(rng.normal(0.02, 0.17, B))
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=1).reshape(B, 2, 2)
    turn = turn * scale[:, None, None] * np.exp(rng.normal(0, 0.07, (B, 2, 1)))
    turn[:, :, 0] *= np.where(mirrored & (rng.random(B) < 0.33), -1, 1)[:, None]
    moves = rng.normal(0, 0.09, (B, 2, 1))
    theta = torch.from_numpy(np.concatenate([turn, moves], axis=2).astype(np.float32))
    grid = functional.affine_grid(theta, [B, 4, size, size], align_corners=False)
    return functional.grid_sample(pictures, grid, align_corners=False)


def recolouring(rng: np.random.Generator, B: int) -> Tensor:
    """Linear maps of colours `[B,3,3]`: hue turned a little, paler or stronger, a tenth of them grey, tinted."""
    hue = np.where(rng.random(B) < 0.1, rng.uniform(-math.pi, math.pi, B), rng.normal(0, 0.15, B))
    strength = np.where(rng.random(B) < 0.1, 0, np.exp(rng.normal(0, 0.25, B)))[:, None, None]
    grey = np.full((3, 3), 1 / 3)
    around = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    turned = np.cos(hue)[:, None, None] * (np.eye(3) - grey) + np.sin(hue)[:, None, None] * around
    tint = rng.normal(1, 0.08, (B, 3, 1)) * np.exp(rng.normal(0, 0.12, (B, 1, 1)))
    return torch.from_numpy(((grey + strength * turned) * tint).astype(np.float32))


def _some(rng: np.random.Generator, B: int, share: float) -> Tensor:
    """Which of `B` pictures, as ones among zeros `[B,1,1,1]`."""
    return torch.from_numpy((rng.random((B, 1, 1, 1)) < share).astype(np.float32))


def _covered(rng: np.random.Generator, B: int, size: int) -> Tensor:
    """A rectangle of ones in a fifth of `B` masks `[B,1,size,size]`."""
    places = np.arange(size)[None]
    first, length = rng.uniform(0, 0.8, (2, B, 1)) * size, rng.uniform(0.15, 0.4, (2, B, 1)) * size
    inside = (places >= first) & (places < first + length)  # [2,B,size]
    boxes = (inside[0][:, :, None] & inside[1][:, None, :]).astype(np.float32)
    return torch.from_numpy(boxes)[:, None] * _some(rng, B, 0.2)


def grounds(black: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Colours `[B,3,1,1]` to draw on: most of them white, a few dark."""
    B = len(black)
    kind = rng.random((B, 1))
    light = rng.uniform(0.6, 1, (B, 3))
    any_colour = np.where(black[:, None], light, rng.uniform(0, 1, (B, 3)))
    chosen = np.where(kind < 0.75, 1.0, np.where(kind < 0.9, light, any_colour))
    return torch.from_numpy(chosen.astype(np.float32))[:, :, None, None]
