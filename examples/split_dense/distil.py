"""Training of all routers at once, so that the divided model's last hidden states are the dense model's."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from split_dense.layers import Layer
from split_dense.masked import Masked, divided
from ssmoe_embed.common.files import load_tensors

_BATCH = 1024
"""Tokens per step, about."""


def distil(
    model: PreTrainedModel,
    layers: Sequence[Layer],
    files: Sequence[Path],
    k: int,
    *,
    steps: int,
    seed: int,
    rate: float,
) -> list[Layer]:
    """Train routers and the scales of experts; all other weights stay as they are.

    Args:
        model: The dense base model.
        layers: Its division.
        files: What `record` wrote, whose texts and hidden states are learned from; the last file is left out.
        k: Experts per token.
        steps: Steps of Adam.
        seed: Of the order of the texts.
        rate: Learning rate, as a share of the routers' mean weight.
    """
    rows = [row for file in files[:-1] for row in rows_of(file)]
    random.Random(seed).shuffle(rows)
    batches = _batches(rows)
    model.requires_grad_(False)
    with divided(model, layers, k) as parts:
        optimiser = torch.optim.Adam(
            [{"params": [part.weight], "lr": rate * float(part.weight.detach().abs().mean())} for part in parts]
            + [{"params": [part.log_scale], "lr": rate} for part in parts]
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        bar = tqdm(range(steps), desc="distilling")
        for step in bar:
            loss = distance(model, batches[step % len(batches)])
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
            bar.set_postfix(loss=f"{float(loss.detach()):.4f}")
        return _finished(parts, layers)


def _finished(parts: Sequence[Masked], layers: Sequence[Layer]) -> list[Layer]:
    return [part.layer(layer) for part, layer in zip(parts, layers, strict=True)]


def distance(model: PreTrainedModel, batch: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Mean squared distance of hidden states, relative to the dense model's; the first token of a text is left out."""
    longest = max(len(ids) for ids, _ in batch)
    ids = torch.stack([torch.nn.functional.pad(one, (0, longest - len(one))) for one, _ in batch])
    mask = torch.stack([(torch.arange(longest) < len(one)).long() for one, _ in batch])
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
    wanted = torch.cat([goal[1:].float() for _, goal in batch])
    found = torch.cat([hidden[at, 1 : len(one)] for at, (one, _) in enumerate(batch)])
    return ((found - wanted).pow(2).sum(1) / wanted.pow(2).sum(1)).mean()


def rows_of(file: Path) -> list[tuple[Tensor, Tensor]]:
    """Ids and hidden states of each text of a file."""
    tensors, _ = load_tensors(file)
    lengths = tensors["lengths"].tolist()
    return list(zip(torch.split(tensors["ids"], lengths), torch.split(tensors["hidden"], lengths), strict=True))


def _batches(rows: Sequence[tuple[Tensor, Tensor]]) -> list[list[tuple[Tensor, Tensor]]]:
    """Texts of similar length together, about `_BATCH` tokens in each."""
    found: list[list[tuple[Tensor, Tensor]]] = []
    for start in range(0, len(rows), 128):
        filled: list[list[tuple[Tensor, Tensor]]] = [[]]
        for row in sorted(rows[start : start + 128], key=lambda one: len(one[0])):
            if filled[-1] and (len(filled[-1]) + 1) * len(row[0]) > _BATCH:
                filled.append([])
            filled[-1].append(row)
        random.Random(start).shuffle(filled)
        found += filled
    return found
