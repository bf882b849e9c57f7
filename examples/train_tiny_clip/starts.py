"""Where the towers start: values that are not random, so that they learn from the first steps on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from batches import Material, plain
from model import IMAGE, PATCH, SEED, WIDTH
from torch import Tensor
from torch.nn import functional


def start_from_bag(model: Any, material: Material, steps: int = 800) -> None:
    """Let token vectors start where their mean points towards the teacher's vector of a text."""
    table = torch.nn.EmbeddingBag(model.config.text_config.vocab_size, WIDTH, mode="mean")
    torch.nn.init.normal_(table.weight, std=0.02)
    optimizer = torch.optim.Adam(table.parameters(), lr=0.01)
    rng = np.random.default_rng(SEED)
    for step in range(steps):
        rows = rng.integers(0, len(material.broad), 1024)
        pieces = [material.broad[row][1:-1] or [0] for row in rows]
        offsets = torch.tensor(np.cumsum([0, *map(len, pieces[:-1])]))
        sums = table(torch.tensor([token for piece in pieces for token in piece]), offsets)  # [B,192]
        wanted = torch.from_numpy(material.targets[rows].astype(np.float32))
        loss = (1 - functional.cosine_similarity(sums, wanted)).mean()
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / steps)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    print(f"bag of words: cosine with the teacher {1 - loss.item():.3f}", flush=True)
    with torch.no_grad():
        vectors = table.weight
        model.text_model.embeddings.token_embedding.weight.copy_(vectors / vectors.norm(dim=1).mean() * 0.5)


@torch.no_grad()
def start_from_patches(model: Any, material: Material, rows: list[int]) -> Tensor:
    """Let patches enter the image tower by their principal directions, all about equally strong; a random turn after it.

    Args:
        model: The model.
        material: The pictures.
        rows: Which of them tell what patches are like.

    Returns:
        What the mean patch enters as, `[H]`.
    """
    rng = np.random.default_rng(SEED)
    weight = model.vision_model.embeddings.patch_embedding.weight  # [H,3,p,p]
    side = weight.shape[-1]
    pixels = plain(material.pixels[rows])
    patches = functional.unfold(pixels, side, stride=side).transpose(1, 2).flatten(0, 1)  # [n,3·p·p]
    patches = patches[torch.from_numpy(rng.permutation(len(patches))[:8000])]
    _, strengths, directions = torch.linalg.svd(patches - patches.mean(dim=0), full_matrices=False)
    evened = directions / (strengths[:, None] / len(patches) ** 0.5 + 0.3)
    turn = torch.linalg.qr(torch.from_numpy(rng.standard_normal((len(weight), len(evened))).astype(np.float32)))[0]
    evened = turn @ evened
    weight.copy_(evened.reshape(weight.shape))
    return evened @ patches.mean(dim=0)


@torch.no_grad()
def start_from_regions(model: Any, mean: Tensor, focus: float = 3.6) -> None:
    """Let the heads of the image tower start by looking at a row, a column or a quarter of the picture each.

    A tower that starts at random looks everywhere at once, so all pictures come out nearly alike, and for hundreds of steps
    nothing is learned. Here the places' codes are orthogonal, the first components of a head's keys read them, and its
    query's bias asks for those of its region; values and outputs are random turns.

    Args:
        model: The model.
        mean: What the mean patch enters as, `[H]`, which is taken off every place.
        focus: How much larger the logits of a head's region are.
    """
    generator = torch.Generator().manual_seed(SEED)
    tower = model.vision_model
    side = IMAGE // PATCH
    count, width = side * side, tower.config.hidden_size  # P, H
    turns = [torch.linalg.qr(torch.randn(width, width, generator=generator))[0] for _ in range(9)]
    codes = turns[0][: count + 1]  # [P+1,H], of the class token and of each place
    tower.embeddings.position_embedding.weight.copy_(codes * width**0.5 * 0.5)
    tower.embeddings.position_embedding.weight[1:] -= mean
    rows, columns = (torch.arange(count) // side), (torch.arange(count) % side)
    quarters = 2 * (rows // (side // 2)) + columns // (side // 2)
    regions = [kind == number for number in range(side) for kind in (rows, columns, quarters)]
    heads = tower.config.num_attention_heads
    for place, layer in enumerate(tower.encoder.layers):
        attention = layer.self_attn
        attention.v_proj.weight.copy_(turns[1 + 2 * place % 8])
        attention.out_proj.weight.copy_(1.5 * turns[2 + 2 * place % 8])
        for head in range(heads):
            first = head * (width // heads)
            region = regions[(place * heads + head) % len(regions)]
            attention.k_proj.weight[first : first + count] = codes[1:]
            strength = focus * (width // heads) ** 0.5 / (0.4 * width**0.5)
            attention.q_proj.bias[first : first + count] = strength * region.float()
