"""Measures of a language model on texts: perplexity by a sliding window, experts that two routings have in common.

Source of the overlap: SSMoE, section D.6 and table 15, https://arxiv.org/abs/2605.30992, which does not say which of two
usual measures its "mean overlap" is; both are given, each with what chance alone would give.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from scipy.stats import hypergeom
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ssmoe_embed.families import MoELayer, family_of
from ssmoe_embed.routing import RoutingPolicy
from ssmoe_embed.routing.policies import check_at_routers
from ssmoe_embed.routing.sites import is_rerouted, site_of
from ssmoe_embed.routing.tokens import install_token_hooks, needs_tokens

SHORTEST_CALIBRATION = 512
"""Tokens: fewer say little about any expert."""
_LONGEST_TOKEN = 64
"""Characters of text per token that are kept before it is tokenized: much more than any text has on average."""


def read_text(path: str | Path) -> str:
    """The content of a text file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no text file {path}.")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); convert it first.") from None


def text_digest(path: str | Path) -> str:
    """A short name of a text file's content, 16 hexadecimal digits; raises as `read_text` does."""
    return sha256(read_text(path).encode()).hexdigest()[:16]


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> torch.Tensor:
    """All tokens of a text `[T]`, with those that the tokenizer puts before and after a text."""
    ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.long)


def calibration_ids(tokenizer: PreTrainedTokenizerBase, text: str, limit: int) -> torch.Tensor:
    """The first tokens `[T]` of a calibration text, `limit` at most.

    Raises:
        ValueError: They are too few.
    """
    if limit < SHORTEST_CALIBRATION:
        raise ValueError(
            f"calibration_tokens={limit} are too few to tell used experts from unused ones; at least "
            f"{SHORTEST_CALIBRATION} are needed, and tens of thousands are better."
        )
    ids = token_ids(tokenizer, text[: limit * _LONGEST_TOKEN])[:limit]
    if len(ids) < SHORTEST_CALIBRATION:
        raise ValueError(
            f"The calibration text has {len(ids)} tokens and is too short; at least {SHORTEST_CALIBRATION} are needed to "
            "tell used experts from unused ones, and tens of thousands are better."
        )
    return ids


def windows(ids: torch.Tensor, length: int, batch_size: int) -> Iterator[torch.Tensor]:
    """The tokens `[T]` cut into batches `[B,length]` without padding; the rest comes last, on its own."""
    whole = len(ids) // length * length
    rows = ids[:whole].reshape(-1, length)  # [T] → [windows,length]
    yield from torch.split(rows, batch_size)
    if whole < len(ids):
        yield ids[whole:][None]


_WINDOW = 1024


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts a text.

    Attributes:
        value: `exp` of the mean negative log-likelihood of a token.
        nll: That mean, in nats.
        stderr: Standard error of the mean, as if tokens were independent.
        tokens: Tokens that were predicted: all but the first.
        window: Tokens that the model sees at once.
        stride: How far the window moves.
    """

    value: float
    nll: float
    stderr: float
    tokens: int
    window: int
    stride: int

    def __str__(self) -> str:
        return f"perplexity {self.value:.2f} over {self.tokens:,} tokens (window {self.window}, stride {self.stride})"


@torch.no_grad()
def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    window: int | None = None,
    stride: int | None = None,
    progress: bool = True,
) -> Perplexity:
    """The perplexity of a text; every token but the first is predicted once, after at least `window - stride` others.

    Args:
        model: A causal language model, re-routed or not.
        tokenizer: Its tokenizer.
        text: The text.
        window: Tokens that the model sees at once; by default 1,024, or all of the model's positions if they are fewer.
        stride: How far the window moves; by default half of it.
        progress: Show a progress bar.

    Raises:
        ValueError: The text has fewer than two tokens, or window and stride do not fit one another or the model.
    """
    longest = getattr(family_of(model).text_config(model.config), "max_position_embeddings", None)
    if window is None:
        window = _WINDOW if longest is None else min(_WINDOW, longest)
    stride = window // 2 if stride is None else stride
    if window < 2 or not 1 <= stride < window:
        raise ValueError(f"window={window}, stride={stride} do not fit: choose window ≥ 2 and 1 ≤ stride < window.")
    if longest is not None and window > longest:
        raise ValueError(f"window={window} is more than the model's {longest} positions; choose at most as many.")
    ids = predicted_ids(tokenizer, text).to(model.device)
    losses = []
    predicted = 1  # the first token follows nothing
    starts = range(0, max(1, len(ids) - window + stride), stride)
    for start in tqdm(starts, desc="Perplexity", unit="window", disable=not progress):
        end = min(start + window, len(ids))
        logits = model(input_ids=ids[None, start:end], use_cache=False).logits[0].float()  # [T,V]
        new = slice(predicted - start - 1, end - start - 1)  # logits at t predict token t+1
        losses.append(F.cross_entropy(logits[new], ids[predicted:end], reduction="none").double().cpu())
        predicted = end
    each = torch.cat(losses)
    mean = float(each.mean())
    stderr = float(each.std() / math.sqrt(len(each))) if len(each) > 1 else math.nan
    return Perplexity(math.exp(mean), mean, stderr, len(each), window, stride)


def predicted_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> torch.Tensor:
    """The tokens `[T]` of a text whose perplexity is asked for.

    Raises:
        ValueError: They are fewer than two.
    """
    ids = token_ids(tokenizer, text)
    if len(ids) < 2:
        raise ValueError(f"The text has {len(ids)} tokens, so there is nothing to predict; pass a longer one.")
    return ids


@dataclass(frozen=True)
class Overlap:
    """The experts that a routing and the model's own router have in common, mean over tokens and layers.

    Attributes:
        share: `|A∩B| / k`.
        jaccard: `|A∩B| / |A∪B|`.
        chance_share: `share` of two independent random choices.
        chance_jaccard: `jaccard` of them.
        by_layer: `share` of each layer.
        tokens: Tokens that were read.
    """

    share: float
    jaccard: float
    chance_share: float
    chance_jaccard: float
    by_layer: dict[int, float]
    tokens: int


@torch.no_grad()
def expert_overlap(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], policy: RoutingPolicy
) -> Overlap:
    """Compare the experts that a routing would choose with those that the model's own routers choose.

    The model runs as it is, and at every router the policy is asked about the same hidden states.

    Raises:
        ValueError: There is no text, or the model is re-routed, or the policy does not fit it.
    """
    if is_rerouted(model):
        raise ValueError("This model is re-routed; remove that routing before it is compared with the model's own.")
    check_at_routers(policy)
    policy.check(model)
    family = family_of(model)
    layers = family.layers(model)
    experts = {layer.index: family.expert_count(layer) for layer in layers}
    shares, jaccards = dict.fromkeys(experts, 0.0), dict.fromkeys(experts, 0.0)
    counts, top_k = dict.fromkeys(experts, 0), dict.fromkeys(experts, 0)
    tokens = 0

    def compare(layer: MoELayer, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        index = layer.index
        own = chosen_experts(output, experts[index])
        answer = site_of(layer, family).answer(policy, None, *args, **kwargs)  # asked without running any hook
        other = chosen_experts(answer, experts[index])
        common = (own & other).sum(dim=-1).double()  # [N,E] → [N]
        shares[index] += float((common / own.sum(dim=-1)).sum())
        jaccards[index] += float((common / (own | other).sum(dim=-1)).sum())
        counts[index] += len(common)
        top_k[index] = int(own[0].sum())

    with ExitStack() as hooks:
        for handle in install_token_hooks([model]) if needs_tokens(policy) else []:
            hooks.enter_context(handle)
        for layer in layers:
            hooks.enter_context(layer.router.register_forward_hook(partial(compare, layer), with_kwargs=True))
        for ids in (token_ids(tokenizer, text) for text in texts):
            if len(ids):
                model(input_ids=ids[None].to(model.device), use_cache=False)
                tokens += len(ids)
    if not tokens:
        raise ValueError("There is no text to compare the routings on.")
    by_layer = {index: share / counts[index] for index, share in shares.items()}
    chances = [_chance(experts[index], top_k[index]) for index in experts]
    return Overlap(
        share=_mean(list(by_layer.values())),
        jaccard=_mean([jaccard / counts[index] for index, jaccard in jaccards.items()]),
        chance_share=_mean([share for share, _ in chances]),
        chance_jaccard=_mean([jaccard for _, jaccard in chances]),
        by_layer=by_layer,
        tokens=tokens,
    )


def chosen_experts(output: Any, experts: int) -> torch.Tensor:
    """Which of `E` experts a router's output sends each token to, as a mask `[N,E]`.

    The router returned a tuple with indices `[N,k]`, or scores `[N,E]` that are zero elsewhere.
    """
    parts = output if isinstance(output, tuple | list) else (output,)
    for part in parts:
        if not part.is_floating_point():
            index = part.reshape(-1, part.shape[-1])
            mask = torch.zeros(len(index), experts, dtype=torch.bool, device=index.device)
            return mask.scatter_(1, index.long(), value=True)
    return parts[0].reshape(-1, experts) != 0


def _chance(experts: int, top_k: int) -> tuple[float, float]:
    """Expected share and Jaccard index of two independent random sets of `top_k` experts."""
    common = range(top_k + 1)
    probabilities = hypergeom(experts, top_k, top_k).pmf(list(common))
    jaccard = sum(p * n / (2 * top_k - n) for p, n in zip(probabilities, common, strict=True))
    return top_k / experts, float(jaccard)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
