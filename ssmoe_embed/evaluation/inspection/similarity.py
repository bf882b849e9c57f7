"""How alike experts answer the tokens that they share: SimSMoE's sign of collapsed experts.

Source: https://arxiv.org/abs/2406.15883, which trains against pairs whose centred kernel alignment (CKA) exceeds 0.5, by a
Gaussian kernel of projected answers. Here the kernel is linear and the estimate unbiased (https://arxiv.org/abs/2010.15327),
since the usual one is near 1 for any two experts where tokens are fewer than dimensions. It is 1 for answers that differ by
a rotation and a factor, and about 0 for unrelated ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import nn

from ssmoe_embed.embedding.module import SSMoE
from ssmoe_embed.families import MoELayer, family_of

COLLAPSED = 0.5
"""The authors' threshold."""
LEAST = 16
"""Shared tokens below which a pair is not measured."""
MOST = 128
"""Shared tokens that are measured at most."""


@dataclass(frozen=True)
class PairSimilarity:
    """Two experts of one layer.

    Attributes:
        first: An expert.
        second: Another one.
        cka: How alike their answers are.
        tokens: Shared tokens that were measured.
    """

    first: int
    second: int
    cka: float
    tokens: int


@dataclass(frozen=True)
class ExpertSimilarity:
    """The pairs of one layer.

    Attributes:
        mean: Mean over the measured pairs.
        largest: The largest.
        pairs: How many were measured.
        collapsed: Those above 0.5, the most alike first.
    """

    mean: float
    largest: float
    pairs: int
    collapsed: tuple[PairSimilarity, ...]


@dataclass(frozen=True)
class SharedInput:
    """What one layer's experts are given in one forward pass.

    Attributes:
        experts: The experts.
        hidden: Tokens, `[N,H]`.
        index: The experts that each goes to, `[N,k]`.
        dtype: Of the weights that experts are given.
    """

    experts: nn.Module
    hidden: torch.Tensor
    index: torch.Tensor
    dtype: torch.dtype

    def of(self, rows: torch.Tensor) -> SharedInput:
        """The same of some tokens `[R]`."""
        return replace(self, hidden=self.hidden[rows], index=self.index[rows])

    def pairs(self, least: int = LEAST) -> list[tuple[int, int, torch.Tensor]]:
        """Every two experts that share at least so many tokens, with these tokens' rows; the pair that shares most first."""
        E = int(self.index.max()) + 1
        chosen = torch.zeros(len(self.index), E, device=self.index.device).scatter_(1, self.index, 1.0)  # [N,E]
        counts = (chosen.T @ chosen).triu(1)  # [E,E]
        found = [(i, j) for i, j in (counts >= least).nonzero().tolist()]
        found.sort(key=lambda pair: (-int(counts[pair]), pair))
        return [(i, j, (chosen[:, i] * chosen[:, j]).nonzero()[:, 0]) for i, j in found]

    def answers(self, expert: int, rows: torch.Tensor) -> torch.Tensor:
        """What one expert answers to tokens `[R]`, unweighted, float32 `[R,H]`."""
        index = torch.full((len(rows), 1), expert, dtype=self.index.dtype, device=rows.device)
        one = torch.ones(len(rows), 1, dtype=self.dtype, device=rows.device)
        answers: torch.Tensor = self.experts(self.hidden[rows], index, one)
        return answers.reshape(len(rows), -1).float()


def linear_cka(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The unbiased linear CKA, at most 1 and a scalar that can be trained, of answers `[n,H]` to the same `n ≥ 4` tokens."""
    K, L = (_centred(answers.double()) for answers in (first, second))  # [n,n]
    sizes = K.square().sum() * L.square().sum()
    return ((K * L).sum() / sizes.clamp_min(torch.finfo(sizes.dtype).tiny).sqrt()).float()


def _centred(answers: torch.Tensor) -> torch.Tensor:
    """The linear kernel `[n,n]` of answers `[n,H]`, U-centred: products of two such are n(n-3) times unbiased estimates."""
    n = len(answers)
    answers = answers - answers.mean(dim=0)  # changes nothing but what is lost by rounding
    kernel = answers @ answers.T
    kernel = kernel - torch.diag(kernel.diagonal())
    rows = kernel.sum(dim=1) / (n - 2)
    centred = kernel - rows[:, None] - rows[None, :] + rows.sum() / (n - 1)
    return centred - torch.diag(centred.diagonal())


@contextmanager
def shared_inputs(layers: Sequence[MoELayer]) -> Iterator[dict[int, SharedInput]]:
    """What the experts of some layers are given while the block runs the model once, by decoder layer index.

    A layer whose experts are not told tokens, experts and weights is left out.
    """
    found: dict[int, SharedInput] = {}

    def note(layer: int, experts: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden, index, weights = (*args, *kwargs.values())[:3]
        flat = hidden.detach().reshape(-1, hidden.shape[-1])  # [N,H]
        chosen = index.detach().reshape(-1, index.shape[-1]).long()  # [N,k]
        found[layer] = SharedInput(experts, flat, chosen, weights.dtype)

    with ExitStack() as hooks:
        for layer in layers:
            if len(signature(type(layer.experts).forward).parameters) >= 4:
                hook = partial(note, layer.index)
                hooks.enter_context(layer.experts.register_forward_pre_hook(hook, with_kwargs=True))
        yield found


@torch.no_grad()
def similarity(given: SharedInput) -> ExpertSimilarity:
    """Measure one layer on the tokens of one forward pass."""
    answers, places = {}, {}
    for expert in torch.unique(given.index).tolist():  # each answers all its tokens once
        own = (given.index == expert).any(dim=1)  # [N]
        places[expert] = own.cumsum(dim=0) - 1
        answers[expert] = given.answers(expert, own.nonzero()[:, 0])
    measured = []
    for first, second, shared in given.pairs():
        rows = shared[:: max(1, len(shared) // MOST)][:MOST]
        value = float(linear_cka(*(answers[one][places[one][rows]] for one in (first, second))))
        measured.append(PairSimilarity(first, second, value, len(rows)))
    values = [one.cka for one in measured]
    collapsed = sorted((one for one in measured if one.cka > COLLAPSED), key=lambda one: -one.cka)
    mean = sum(values) / len(values) if values else 0.0
    return ExpertSimilarity(mean, max(values, default=0.0), len(values), tuple(collapsed))


def similarity_loss(layers: Sequence[SharedInput], pairs: int = 8) -> torch.Tensor:
    """What training adds up against collapsed experts: the CKA of pairs above 0.5, of those that share most tokens.

    The authors count shared tokens over many steps and look at a pair when it has enough; here the batch at hand decides, so
    that nothing needs to be kept between steps. Its gradient reaches the experts of the layer, and nothing before it.

    Args:
        layers: What their experts were given.
        pairs: Pairs of a layer that are looked at.

    Returns:
        A scalar, the mean over layers and the pairs looked at.
    """
    found = []
    for given in layers:
        for first, second, shared in given.pairs()[:pairs]:
            cka = linear_cka(given.answers(first, shared[:MOST]), given.answers(second, shared[:MOST]))
            found.append(torch.where(cka > COLLAPSED, cka, 0.0 * cka))
    return torch.stack(found).mean() if found else torch.zeros(())


@torch.no_grad()
def expert_similarities(
    module: SSMoE, texts: Sequence[str], batch_size: int = 32, tokens: int = 4096
) -> dict[int, ExpertSimilarity]:
    """Measure every layer under the model's own routers, by decoder layer index, on the texts up to so many tokens."""
    view = module.using(module.settings.changed(method="smoe", routing_signal=None))
    layers, seen = family_of(module.model).layers(module.model), 0
    parts: dict[int, list[SharedInput]] = {layer.index: [] for layer in layers}
    for start in range(0, len(texts), batch_size):
        if seen >= tokens:
            break
        features = view.preprocess(texts[start : start + batch_size])
        read = {name: one.to(module.model.device) for name, one in features.items()}
        with shared_inputs(layers) as found:
            view.encoder.read(read, view.settings.forward)
        mask = (
            read["attention_mask"].sort(dim=1, descending=True).values
        )  # as the model is given it: padding on the right
        real = mask.flatten().nonzero()[:, 0]
        seen += len(real)
        for layer, given in found.items():
            parts[layer].append(given.of(real.to(given.hidden.device)))
    whole = {}
    for index, read_parts in parts.items():
        if read_parts:  # all forward passes as one
            hidden = torch.cat([one.hidden for one in read_parts])
            chosen = torch.cat([one.index for one in read_parts])
            whole[index] = similarity(replace(read_parts[0], hidden=hidden, index=chosen))
    return whole
