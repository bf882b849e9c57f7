"""What enters the feed-forward layers of a dense model when it reads texts, kept on disk in parts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ssmoe_embed.common.files import save_tensors

_LONGEST = 256
_PROMPTEOL = 'This sentence : "{text}" means in one word:"'
_SENTENCE = 40
"""Words up to which a text is read as a sentence to embed, every other time."""


def readings(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, tokens: int, *, seed: int) -> list[list[int]]:
    """Token ids of texts in a drawn order, so many tokens together; every second short one stands in PromptEOL.

    Raises:
        ValueError: The texts have fewer tokens.
    """
    draw = random.Random(seed)
    order = list(dict.fromkeys(texts))
    draw.shuffle(order)
    found: list[list[int]] = []
    left = tokens
    for text in order:
        if len(text.split()) <= _SENTENCE and draw.random() < 0.5:
            text = _PROMPTEOL.format(text=text)
        ids = tokenizer(text)["input_ids"][: min(_LONGEST, left)]
        if len(ids) > 3:
            found.append(ids)
            left -= len(ids)
        if left <= 3:
            return found
    raise ValueError(f"The texts have {tokens - left} tokens; give more texts, or --tokens {tokens - left - 4}.")


def record(model: PreTrainedModel, rows: Sequence[Sequence[int]], folder: Path, *, part: int = 8192) -> list[Path]:
    """Write the inputs of every feed-forward layer and the last hidden state; parts that are there are kept.

    Args:
        model: A base model whose `layers` have an `mlp`.
        rows: Token ids.
        folder: For files `part-000.safetensors` with `inputs [L, N, H]`, `hidden [N, H]` and `lengths [rows]`.
        part: Tokens in a file, about.
    """
    parts: list[list[Sequence[int]]] = [[]]
    for row in rows:
        if sum(map(len, parts[-1])) >= part:
            parts.append([])
        parts[-1].append(row)
    files = []
    for number, of_part in enumerate(tqdm(parts, desc="reading texts")):
        files.append(folder / f"part-{number:03d}.safetensors")
        if not files[-1].is_file():
            save_tensors(files[-1], _read(model, of_part), {})
    return files


def layer_inputs(files: Sequence[Path], layer: int) -> Tensor:
    """`[N, H]`: one layer's recorded inputs."""
    found = []
    for path in files:
        with safe_open(path, "pt") as file:
            found.append(file.get_slice("inputs")[layer])
    return torch.cat(found)


@torch.no_grad()
def _read(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Inputs and hidden states of some rows, padding left out, in the order of the rows."""
    entered: dict[int, Tensor] = {}
    handles = [
        layer.mlp.register_forward_pre_hook(lambda _module, given, at=at: entered.__setitem__(at, given[0]))
        for at, layer in enumerate(model.layers)
    ]
    by_row: dict[int, tuple[Tensor, Tensor]] = {}
    order = sorted(range(len(rows)), key=lambda at: len(rows[at]))
    try:
        for start in range(0, len(order), 16):
            of_batch = order[start : start + 16]
            longest = max(len(rows[at]) for at in of_batch)
            ids = torch.zeros(len(of_batch), longest, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for place, at in enumerate(of_batch):
                ids[place, : len(rows[at])] = torch.tensor(rows[at])
                mask[place, : len(rows[at])] = 1
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
            inputs = torch.stack([entered[at] for at in range(len(handles))], 1)
            for place, at in enumerate(of_batch):
                by_row[at] = inputs[place, :, : len(rows[at])].clone(), hidden[place, : len(rows[at])].clone()
    finally:
        for handle in handles:
            handle.remove()
    pairs = [by_row[at] for at in range(len(rows))]
    return {
        "inputs": torch.cat([inputs for inputs, _ in pairs], 1).contiguous(),
        "hidden": torch.cat([hidden for _, hidden in pairs]).contiguous(),
        "ids": torch.tensor([one for row in rows for one in row]),
        "lengths": torch.tensor([len(row) for row in rows]),
    }
