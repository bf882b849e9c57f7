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
LONGEST = 40
"""Tokens of a text in training."""


@dataclass
class Material:
    """Everything that is trained on.

    Attributes:
        pixels: `[n,48,48,4]` bytes.
        black: `[n]`: whether a picture is black on nothing, so needs a light ground.
        pictures: Row numbers in `pixels` by concept that is trained on.
        said: Token ids of a concept's texts, as `texts`.
        texts: The texts themselves, by concept.
        anchors: `[C,192]`: the teacher's vector of each concept's name and tags.
        broad: Token ids of the broad texts, shortest first.
        targets: `[n,192]`: the teacher's vectors of the broad texts.
    """

    pixels: np.ndarray
    black: np.ndarray
    pictures: dict[int, list[int]]
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
    ids = tokenizer([text for said in texts["said"] for text in said], truncation=True, max_length=LONGEST)["input_ids"]
    rest = iter(ids)
    said = [[next(rest) for _ in one] for one in texts["said"]]
    broad = tokenizer(texts["broad"], truncation=True, max_length=LONGEST)["input_ids"]
    order = sorted(range(len(broad)), key=lambda row: len(broad[row]))
    return Material(
        pixels=np.load(work / "pixels.npy"),
        black=np.array([one["style"] == "fluent-emoji-high-contrast" for one in drawn["pictures"]]),
        pictures=pictures,
        said=said,
        texts=texts["said"],
        anchors=torch.from_numpy(np.load(work / "meant.npy").astype(np.float32)),
        broad=[broad[row] for row in order],
        targets=np.load(work / "broad.npy")[order],
    )


def padded(rows: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask `[B,T]`."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, mask


def seen(pixels: np.ndarray, black: np.ndarray, rng: np.random.Generator, size: int = IMAGE) -> Tensor:
    """Pictures on grounds of some colour, a little turned, moved, larger or smaller: `[B,48,48,4] → [B,3,size,size]`."""
    B = len(pixels)
    picture = torch.from_numpy(pixels.astype(np.float32) / 255).permute(0, 3, 1, 2)
    alpha = picture[:, 3:]
    picture = torch.cat([picture[:, :3] * alpha, alpha], dim=1)  # premultiplied, so that edges stay clean
    angle, scale = rng.normal(0, math.radians(7), B), np.exp(rng.normal(0.05, 0.14, B))
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=1).reshape(B, 2, 2)
    moves = rng.normal(0, 0.08, (B, 2, 1))
    theta = torch.from_numpy(np.concatenate([turn * scale[:, None, None], moves], axis=2).astype(np.float32))
    grid = functional.affine_grid(theta, [B, 4, size, size], align_corners=False)
    picture = functional.grid_sample(picture, grid, align_corners=False)
    colour, alpha = picture[:, :3], picture[:, 3:]
    tint = torch.from_numpy(rng.normal(1, 0.05, (B, 3, 1, 1)).astype(np.float32))
    grey = torch.from_numpy((rng.random((B, 1, 1, 1)) < 0.05).astype(np.float32))
    colour = torch.lerp(colour * tint, colour.mean(dim=1, keepdim=True).expand_as(colour), grey)
    ground = grounds(black, rng)
    shown = (colour + (1 - alpha) * ground).clamp(0, 1)
    return (shown - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def grounds(black: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Colours `[B,3,1,1]` to draw on: most of them white, a few dark."""
    B = len(black)
    kind = rng.random((B, 1))
    light = rng.uniform(0.6, 1, (B, 3))
    any_colour = np.where(black[:, None], light, rng.uniform(0, 1, (B, 3)))
    chosen = np.where(kind < 0.75, 1.0, np.where(kind < 0.9, light, any_colour))
    return torch.from_numpy(chosen.astype(np.float32))[:, :, None, None]
