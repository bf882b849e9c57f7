"""What a long text costs, alone and for its neighbours in a server's queue.

    python benchmarks/long_texts.py [MODEL]

Prints the CPU seconds that `encode` takes on one thread for one text of 10,000 to 10,000,000 characters, and how long a
short request takes on a server that has just been sent a long one, each as the median of several rounds, in which the
lengths take turns.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter, process_time

import torch
from sentence_transformers import SentenceTransformer

import ssmoe_embed
from ssmoe_embed.serving.batching import Batcher
from ssmoe_embed.serving.refusals import ServerLimits

PROSE = "The mill stood by the river, and in 1874 nobody in the village could say who had built it, or why. "
TEXTS = {
    "prose": PROSE,
    "no spaces": "".join(PROSE.split()),
    "Chinese": "磨坊立在河边，村里没有人能说出是谁建造了它，也不知道为什么。",
    "one letter": "a",
    "newlines": "\n",
}


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="ssmoe/tiny")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000, 10_000_000])
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    model = ssmoe_embed.load(chosen.model, progress=False)
    model.encode(PROSE * 100)
    for title, measure in (("encode, CPU s", _encode), ("a short request behind it, s", _behind)):
        print("| " + title + "".join(f" | {size:,}" for size in chosen.sizes) + " |")
        print("|---" + "|---:" * len(chosen.sizes) + "|")
        for name, piece in TEXTS.items():
            seconds = _medians(partial(measure, model), piece, chosen.sizes, chosen.rounds)
            print(f"| {name}" + "".join(f" | {one:.3f}" for one in seconds) + " |", flush=True)


def _medians(measure: Callable[[str], float], piece: str, sizes: list[int], rounds: int) -> list[float]:
    """The median of what each length takes, in characters."""
    taken: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(rounds):
        for size in sizes:
            taken[size].append(measure((piece * (size // len(piece) + 1))[:size]))
    return [median(taken[size]) for size in sizes]


def _encode(model: SentenceTransformer, text: str) -> float:
    """CPU seconds that the vector of a text takes."""
    begin = process_time()
    model.encode(text, show_progress_bar=False)
    return process_time() - begin


def _behind(model: SentenceTransformer, text: str) -> float:
    """Seconds that a short text takes that comes right after a long one."""

    async def both() -> float:
        batcher = Batcher(model, ServerLimits())
        batcher.start()
        long = asyncio.ensure_future(batcher.encode([text]))
        await asyncio.sleep(0)
        begin = perf_counter()
        await batcher.encode(["a short text"])
        seconds = perf_counter() - begin
        await long
        await batcher.stop()
        return seconds

    return asyncio.run(both())


if __name__ == "__main__":
    main()
