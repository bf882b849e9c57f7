"""Start the network where a weighted bag of words already is.

First one vector per token is fitted so that their sum over a text points where the teacher does. Then the weights are
set so that the untrained network computes that bag: RMSNorm erases a token vector's length, so one dimension carries
its logarithm, the first attention layer reads it as its score, and another dimension is constant, for the queries.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from packing import TokenStore
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

BAG_DIMENSIONS = 254
"""The hidden size less the constant and the score."""
CONSTANT, SCORE = 254, 255
_CONSTANT_VALUE = 0.5
_SHARPNESS = 8.0
"""The largest attention score that `q_norm` and `k_norm` of weight one allow (heads of 64 among 256 dimensions)."""


def fit_bag(store: TokenStore, targets: np.ndarray, vocabulary: int, steps: int, seed: int) -> Tensor:
    """Fit one vector per token whose sum has the direction of the target: `[V,254]`."""
    generator = torch.Generator().manual_seed(seed)
    table = nn.EmbeddingBag(vocabulary, BAG_DIMENSIONS, mode="sum")
    with torch.no_grad():
        table.weight.normal_(std=0.05, generator=generator)
    optimizer = torch.optim.Adam(table.parameters(), lr=0.02, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.01, 1 - step / steps))
    rng = np.random.default_rng(seed)
    for _ in tqdm(range(steps), desc="bag", mininterval=5):
        rows = rng.integers(0, len(targets), 2048)
        pieces = [store.text(int(i)) for i in rows]
        offsets = torch.tensor(np.cumsum([0, *map(len, pieces[:-1])]))
        sums = table(torch.from_numpy(np.concatenate(pieces).astype(np.int64)), offsets)  # [B,254]
        wanted = torch.from_numpy(targets[rows, :BAG_DIMENSIONS].astype(np.float32))
        loss = (1 - functional.cosine_similarity(sums, wanted)).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return table.weight.detach()


@torch.no_grad()
def initialise(model: Any, bag: Tensor, frequencies: Tensor, seed: int) -> None:
    """Set all weights of the model so that its last hidden state is close to the weighted bag.

    Args:
        model: an `OlmoeForCausalLM`.
        bag: `[V,254]` fitted token vectors.
        frequencies: `[V]` how often each token occurs; tokens hardly seen get little weight.
        seed: for everything that starts random.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            quiet = name.endswith(("o_proj.weight", "down_proj"))
            parameter.normal_(std=0.008 if quiet else 0.04, generator=generator)
    lengths = bag.norm(dim=1)
    seen = frequencies > 20
    score = torch.log(lengths.clamp_min(1e-3))
    score = (score - score[seen].mean()).clamp(-5, 3)
    score[~seen] = -5
    embedding = model.model.embed_tokens.weight
    noise = 0.02 * embedding[:, :BAG_DIMENSIONS]
    embedding[:, :BAG_DIMENSIONS] = functional.normalize(bag, dim=1) * seen[:, None] + noise
    embedding[:, CONSTANT] = _CONSTANT_VALUE
    embedding[:, SCORE] = _CONSTANT_VALUE * torch.tan(torch.asin(score / _SHARPNESS))
    _read_scores(model.model.layers[0].self_attn, model.config)


def _read_scores(attention: Any, config: Any) -> None:
    """Make the first attention layer average the token vectors by their score."""
    width = config.hidden_size // config.num_attention_heads
    slow = width // 2 - 1  # the rotary pair that turns least, so that distance hardly matters
    for weight in (attention.q_proj.weight, attention.k_proj.weight):
        weight.mul_(0.02)
    for head in range(config.num_attention_heads):
        attention.q_proj.weight[head * width + slow, CONSTANT] = 1.0
        attention.k_proj.weight[head * width + slow, SCORE] = 1.0
        attention.k_proj.weight[head * width + slow - 1, CONSTANT] = 1.0
    identity = torch.eye(config.hidden_size)
    identity[CONSTANT, CONSTANT] = identity[SCORE, SCORE] = 0
    attention.v_proj.weight.mul_(0.1).add_(identity)
    attention.o_proj.weight.add_(0.3 * identity)
