"""What re-routing costs a language model, side by side in one run.

    python benchmarks/language_model.py --output benchmarks/results/language_model.md

CPU time of a token under each routing against the same model's own: in greedy `model.generate` with a key-value cache, in
the bare forward pass that it calls for one token, and in reading a prompt. The routings take turns within each round and
the ratios are medians over rounds. CPU time rather than time on the wall, on one thread, so that other programs on the
machine weigh little. `olmoe-7b` is two layers of that shape; the vocabulary is 50,304 where nothing else is said.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import Result, machine
from transformers import OlmoeConfig, OlmoeForCausalLM

from ssmoe_embed import SpectralRouters, SpectralRouting, reroute
from ssmoe_embed.families import Score, family_of
from ssmoe_embed.language_model import load
from ssmoe_embed.routing import HashRouting, RandomRouting, RoutingPolicy
from ssmoe_embed.spectral.routers import fingerprint
from ssmoe_embed.spectral.settings import SpectralSettings

SHAPES: dict[str, dict[str, int] | None] = {
    "tiny": None,
    "small": {"hidden_size": 512, "intermediate_size": 256, "num_hidden_layers": 8, "num_experts": 32},
    "olmoe-7b": {  # two of its sixteen layers, and as large a share of its vocabulary
        "hidden_size": 2048,
        "intermediate_size": 1024,
        "num_hidden_layers": 2,
        "num_experts": 64,
        "vocab_size": 6288,
    },
    "medium": {"hidden_size": 1024, "intermediate_size": 512, "num_hidden_layers": 6, "num_experts": 24},
}
PROMPT = 128


class FewestOperations(SpectralRouting):
    """The mix in the fewest operations of torch that make one, to see what is left of its cost; it underflows."""

    def logits(self, layer: int, hidden: torch.Tensor, logits: torch.Tensor, score: Score) -> torch.Tensor:
        """`log((1-α)·softmax(r) + α·softmax(e))`."""
        del score
        return torch.lerp(logits.softmax(-1), self.routers.logits(layer, hidden).softmax(-1), self.alpha).log()


def make_model(shape: str) -> Any:
    """The bundled model in float32, or one of random weights."""
    sizes = SHAPES[shape]
    if sizes is None:
        return load("ssmoe/tiny", dtype="float32")
    torch.manual_seed(0)
    heads = sizes["hidden_size"] // 64
    config = OlmoeConfig(**sizes, num_attention_heads=heads, num_key_value_heads=heads, num_experts_per_tok=8)
    return OlmoeForCausalLM(config).requires_grad_(False).eval()


def policies(model: Any) -> dict[str, RoutingPolicy | None]:
    """The routings to compare, the model's own first, and last once more, as a measure of the noise."""
    family = family_of(model)
    learned = {layer.index: family.router_weight(layer.router) for layer in family.layers(model)}
    routers = SpectralRouters(
        {index: torch.randn_like(router) / 32 for index, router in learned.items()},  # their values cost nothing
        {index: fingerprint(router) for index, router in learned.items()},
        SpectralSettings(),
    )
    return {
        "own": None,
        "intercepted only (α = 0)": SpectralRouting(routers, alpha=0),
        "ssmoe, α = 0.5": SpectralRouting(routers, alpha=0.5),
        "the same in four operations": FewestOperations(routers, alpha=0.5),
        "ev (α = 1)": SpectralRouting(routers, alpha=1.0),
        "hash": HashRouting(),
        "random": RandomRouting(),
        "own again": None,
    }


def generation(model: Any, tokens: int) -> Callable[[], float]:
    """CPU milliseconds a generated token, as `generate` makes it from a prompt."""
    prompt = torch.arange(10, 10 + PROMPT)[None]
    lengths = {"max_new_tokens": tokens, "min_new_tokens": tokens}

    def run() -> float:
        start = time.process_time()
        model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, pad_token_id=0, **lengths)
        return 1000 * (time.process_time() - start) / tokens

    return run


def stepping(model: Any, tokens: int) -> Callable[[], float]:
    """CPU milliseconds of the forward pass for one token more, with nothing of `generate` around it."""
    prompt = torch.arange(10, 10 + PROMPT)[None]

    def run() -> float:
        out = model(input_ids=prompt, use_cache=True)
        start = time.process_time()
        for _ in range(tokens):
            out = model(input_ids=out.logits[:, -1:].argmax(dim=-1), cache=out.cache, use_cache=True)
        return 1000 * (time.process_time() - start) / tokens

    return run


def reading(model: Any) -> Callable[[], float]:
    """CPU milliseconds a token of a prompt."""
    prompts = torch.arange(10, 10 + 4 * PROMPT).reshape(4, PROMPT)  # [B,T]

    def run() -> float:
        start = time.process_time()
        model(input_ids=prompts, use_cache=False)
        return 1000 * (time.process_time() - start) / prompts.numel()

    return run


@torch.inference_mode()
def measure(shape: str, rounds: int, tokens: int) -> Result:
    """All routings of one shape."""
    model = make_model(shape)
    kinds = {"generate": generation(model, tokens), "step": stepping(model, tokens), "read": reading(model)}
    routings = policies(model)
    times: dict[tuple[str, str], list[float]] = {(kind, name): [] for kind in kinds for name in routings}
    for turn in range(rounds + 1):
        for name, policy in routings.items():
            installed: AbstractContextManager[Any] = nullcontext() if policy is None else reroute(model, policy)
            with installed:
                for kind, run in kinds.items():
                    spent = run()
                    if turn:  # the first round warms up
                        times[kind, name].append(spent)
    rows, data = [], {}
    for name in routings:
        shown = []
        for kind in kinds:
            ratio = median(own / base for own, base in zip(times[kind, name], times[kind, "own"], strict=True))
            shown += [f"{median(times[kind, name]):.3f}", f"{ratio:.3f}"]
            data[f"{name}, {kind}"] = {"ms": times[kind, name], "ratio": ratio}
        rows.append([name, *shown])
    parameters = sum(weight.numel() for weight in model.parameters())
    note = (
        f"{machine('torch', 'transformers')}; one thread, float32, {parameters / 1e6:.0f} M parameters, {rounds} rounds; "
        f"CPU milliseconds a token and ratio to the model's own routing."
    )
    header = ["routing", *(column for kind in kinds for column in (kind, "ratio"))]
    return Result(f"Cost of routing: {shape}", note, header, rows, data)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for shape in options.shapes:
        measure(shape, options.rounds, options.tokens).show(options.output)


if __name__ == "__main__":
    main()
