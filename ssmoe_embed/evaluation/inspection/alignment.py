"""SD-MoE's diagnostics beside the overlap of experts: how router rows align with experts, and gradients with each other.

Source: SD-MoE, https://arxiv.org/abs/2602.12556.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ssmoe_embed.common.loading import HubOptions
from ssmoe_embed.evaluation.inspection.measures import (
    DIRECTIONS,
    SubspaceOverlap,
    cosines,
    dominant_bases,
    mean_size,
    off_diagonal,
    subspace_overlap,
)
from ssmoe_embed.evaluation.texts import spread
from ssmoe_embed.families import family_of
from ssmoe_embed.language_model.loading import load, load_tokenizer
from ssmoe_embed.language_model.measures import read_text, token_ids

_LONGEST = 512
_ROUNDING = 1e-5
_LONGEST_NAME = 256
_SUFFIXES = (".txt", ".md", ".jsonl", ".json", ".csv")


@dataclass(frozen=True)
class GateAlignment:
    """How a layer's router rows lie in the experts' dominant subspaces, for one kind of matrix.

    An alignment is the squared length of a row of length one within a subspace: 1 inside it, 0 at right angles.

    Attributes:
        own: Mean over experts of the row's alignment with its own expert.
        others: Mean of that with the other experts.
        specificity: Mean over experts of own divided by mean of others: 1 where rows know nothing of their own expert.
        chance: What a random row has on average: `k/H`.
        pairs: The alignment of every row with every expert, `[E,E]`; a row of the router a row.
    """

    own: float
    others: float
    specificity: float
    chance: float
    pairs: tuple[tuple[float, ...], ...]


def gate_alignment(rows: torch.Tensor, bases: torch.Tensor) -> GateAlignment:
    """Measure one layer: the router's weight `[E,H]` in the experts' orthonormal dominant directions `[E,k,H]`."""
    unit = F.normalize(rows.detach().double().cpu(), dim=1)
    pairs = torch.einsum("ih,jkh->ijk", unit, bases.double()).square().sum(dim=2)  # [E,E]
    E, k, H = bases.shape
    own, apart = pairs.diagonal(), off_diagonal(pairs)
    others = apart.reshape(E, max(E - 1, 1)).mean(dim=1) if E > 1 else torch.full_like(own, k / H)  # [E]
    return GateAlignment(
        own=float(own.mean()),
        others=float(others.mean()),
        specificity=float((own / others.clamp_min(torch.finfo(torch.float64).tiny)).mean()),
        chance=k / H,
        pairs=tuple(tuple(row) for row in pairs.tolist()),
    )


@dataclass(frozen=True)
class GradientAlignment:
    """How alike the experts' gradients are in one layer, for one kind of matrix.

    Attributes:
        overlap: Overlap of the gradients' dominant subspaces, as that of the weights'.
        cosine: Mean magnitude of the cosine of two experts' whole gradients.
        experts: The experts whose gradients have as many directions as are compared; those that fewer tokens reached are
            left out, here and in `overlap`.
    """

    overlap: SubspaceOverlap
    cosine: float
    experts: tuple[int, ...]


def gradient_alignments(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    count: int = DIRECTIONS,
    *,
    progress: bool = False,
) -> dict[int, list[GradientAlignment]]:
    """The alignment of the gradients of the mean loss per token, which need as much memory as the experts again.

    Args:
        model: A causal language model, re-routed or not.
        tokenizer: Its tokenizer.
        texts: What it is to predict; of each, at most the first 512 tokens.
        count: Dominant directions `k`.
        progress: Show a progress bar.

    Returns:
        By layer index, one for each kind of expert matrix; none where fewer than two experts were reached by enough tokens.

    Raises:
        ValueError: The texts have nothing to predict, or the weights have no gradient, such as those in 4 bits.
    """
    family = family_of(model)
    layers = family.layers(model)
    weights = [weight for layer in layers for weight in layer.experts.parameters()]
    if not weights or not all(weight.is_floating_point() and weight.element_size() > 1 for weight in weights):
        raise ValueError("The experts of this model are packed and have no gradients; load it without quantization.")
    ids = [found for text in texts if len(found := token_ids(tokenizer, text)[:_LONGEST]) > 1]
    if not ids:
        raise ValueError("The texts for the gradients have fewer than two tokens each; pass longer ones.")
    wanted = {id(weight): weight.requires_grad for weight in model.parameters()}
    try:
        model.requires_grad_(False)
        for weight in weights:
            weight.requires_grad_(True)
        predicted = sum(len(one) - 1 for one in ids)
        for one in tqdm(ids, desc="Gradients", unit="text", leave=False, disable=not progress):
            row = one.to(model.device)
            logits = model(input_ids=row[None], use_cache=False).logits[0, :-1].float()  # [T-1,V]
            loss = F.cross_entropy(logits, row[1:], reduction="sum") / predicted
            loss.backward()  # type: ignore[no-untyped-call]
        with _gradients_in_place(weights):
            return {
                layer.index: _alignments(
                    lambda expert, block=layer.block: family.expert_matrices(block, expert),  # type: ignore[misc]
                    family.expert_count(layer),
                    count,
                )
                for layer in layers
            }
    finally:
        for weight in model.parameters():
            weight.requires_grad_(wanted[id(weight)])
            weight.grad = None


def gradients_of(
    name: str, texts: Sequence[str], count: int = DIRECTIONS, *, progress: bool = False, **kwargs: Any
) -> dict[int, list[GradientAlignment]]:
    """`gradient_alignments` of a language model by name; `kwargs` are those of `ssmoe_embed.language_model.load`.

    Raises:
        ValueError: See these two.
    """
    hub = HubOptions.among(kwargs)
    model = load(name, progress=progress, **kwargs)
    return gradient_alignments(model, load_tokenizer(name, hub), texts, count, progress=progress)


def texts_for_gradients(text: str, count: int) -> tuple[str, ...]:
    """The lines of a file of that name, evenly spread over it and at most so many; else the text itself.

    Raises:
        ValueError: There is nothing in it, or it looks like the name of a file that is not there.
    """
    path = Path(text).expanduser() if len(text) < _LONGEST_NAME else None
    if path is not None and path.is_file():
        lines = [line for line in read_text(path).splitlines() if line.strip()]
    else:
        lines = [text] if text.strip() else []
        if path is not None and path.suffix in _SUFFIXES:
            raise ValueError(f"There is no file {path} to take gradients on; pass a text file, or the text itself.")
    if not lines:
        raise ValueError(f"gradients={text!r} holds no text; pass a text, or a file with one text per line.")
    return tuple(spread(lines, count))


def _alignments(
    gradients: Callable[[int], Sequence[torch.Tensor]], experts: int, count: int
) -> list[GradientAlignment]:
    """One layer."""
    reached = [
        expert for expert in range(experts) if all(_rank(one) >= min(count, *one.shape) for one in gradients(expert))
    ]
    if len(reached) < 2:
        return []
    kinds = zip(*map(gradients, reached), strict=True)
    whole = [torch.stack([one.flatten().float().cpu() for one in kind]) for kind in kinds]
    return [
        GradientAlignment(subspace_overlap(bases), mean_size(cosines(rows)), tuple(reached))
        for bases, rows in zip(dominant_bases(gradients, reached, count), whole, strict=True)
    ]


def _rank(gradient: torch.Tensor) -> int:
    """Directions of a gradient `[I,H]` that are no rounding."""
    one = gradient.double().cpu()
    squares = torch.linalg.eigvalsh(one @ one.T if one.shape[0] <= one.shape[1] else one.T @ one)  # rising
    return int((squares > _ROUNDING**2 * squares[-1]).sum())


@contextmanager
def _gradients_in_place(weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let weights hold their gradients, so that what reads an expert's matrices reads those of its gradient."""
    kept = [weight.data for weight in weights]
    try:
        for weight in weights:
            weight.data = torch.zeros_like(weight) if weight.grad is None else weight.grad
        with torch.no_grad():
            yield
    finally:
        for weight, data in zip(weights, kept, strict=True):
            weight.data = data
