"""Measure an exported model on held-out material and write the table.

python examples/train_tiny/evaluate.py --work build/tiny --model ssmoe_embed/data/tiny/base \
        --output examples/train_tiny/RESULTS.md
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import metrics
import numpy as np
import torch
from baselines import count_perplexities, random_model, tfidf_vectors
from data import Data
from fast_model import FastOlmoe
from leakage import held_out_definitions, read_rows, unseen_passages
from packing import TEMPLATES, TokenStore
from targets import fit_basis, project
from teacher import load_vectors
from train import Settings

CORRELATION_TEXTS = 2000


def both_ways(left: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """Return the mean of retrieving right by left and left by right."""
    there, back = metrics.retrieval(left, right), metrics.retrieval(right, left)
    return {key: (there[key] + back[key]) / 2 for key in there}


def embedder_rows(name: str, fast: FastOlmoe, data: Data, rows: np.ndarray) -> list[list[str]]:
    """Return one table row per read-out template."""
    table = []
    for number, template in enumerate(TEMPLATES):
        vectors = metrics.encode(fast, data.templates, data.held(rows, number), number)
        correlation = metrics.similarity_correlation(vectors, data.held_vectors[rows])
        found = both_ways(*(metrics.encode(fast, data.templates, side, number) for side in data.sides(number)))
        table.append([name, template, f"{correlation:.3f}", f"{found['R@1']:.3f}", f"{found['R@10']:.3f}"])
    return table


def reference_rows(work: Path, data: Data) -> list[list[str]]:
    """Return the table rows of TF-IDF, and of the teacher cut to the student's dimensions."""
    with (work / "heldout_pairs.jsonl").open(encoding="utf-8") as stream:
        pairs = [json.loads(line) for line in stream]
    left, right = ([pair[source] for pair in pairs] for source in ("wordnet", "webster1913"))
    found = both_ways(*tfidf_vectors(left, right))
    table = [["TF-IDF", "-", "-", f"{found['R@1']:.3f}", f"{found['R@10']:.3f}"]]
    folder = work / "teacher" / "heldout_pairs"
    if folder.exists():
        basis = fit_basis(load_vectors(work / "teacher" / "texts"), 256)
        sides = project(load_vectors(folder), basis).astype(np.float32).reshape(2, len(pairs), -1)
        found = both_ways(sides[0], sides[1])
        table.append(["teacher, 256 dimensions", "-", "-", f"{found['R@1']:.3f}", f"{found['R@10']:.3f}"])
    return table


def bits_per_byte(folder: Path, passages: list[str]) -> str:
    """Measure a model folder on texts; comparable between vocabularies, but for the first token of every 256."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    pieces = [np.array(ids) for ids in tokenizer(passages, add_special_tokens=False)["input_ids"]]
    fast = FastOlmoe(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), torch.float32)
    loss, _ = metrics.language_model_loss(fast, TokenStore.of(pieces), 10**9)
    asked = sum(len(piece) + 1 - -(-(len(piece) + 1) // metrics.LENGTH) for piece in pieces)
    return f"{loss * asked / np.log(2) / sum(len(text.encode()) for text in passages):.3f}"


def training_curve(work: Path, every: int = 1_000) -> list[list[str]]:
    """Return what the training measured on the way, on 1,000 held-out texts and 25,000 tokens."""
    with (work / "log.jsonl").open(encoding="utf-8") as stream:
        rows = {row["step"]: row for row in map(json.loads, stream) if "rho_eos" in row}
    last = max(rows)
    return [
        [
            f"{step:,}",
            f"{row.get('tokens', 0):,}",
            f"{row['rho_eos']:.3f}",
            f"{row['retrieval_eos']['R@1']:.3f}",
            f"{row['perplexity']:.1f}",
        ]
        for step, row in sorted(rows.items())
        if step % every == 0 or step == last
    ]


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def training_facts(work: Path) -> dict[str, Any]:
    """Return the counters of the last checkpoint."""
    from safetensors import safe_open

    with safe_open(work / "last.safetensors", framework="pt") as file:
        state: dict[str, Any] = json.loads(file.metadata()["state"])
    return state


def report(work: Path, model: Path, earlier: Path | None) -> str:
    """Measure everything and return the text of RESULTS.md; of an earlier model only its language modelling."""
    from transformers import AutoModelForCausalLM

    data = Data(work)
    rows = np.random.default_rng(1).permutation(held_out_definitions(work))[:CORRELATION_TEXTS]
    trained = FastOlmoe(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), torch.float32)
    untrained = FastOlmoe(random_model(0), torch.float32)
    table = embedder_rows("ssmoe/tiny", trained, data, rows) + embedder_rows("random weights", untrained, data, rows)
    table += reference_rows(work, data)
    numbers = unseen_passages(work, len(data.targets))
    unseen = {kind: data.held_prose.select(n) for kind, n in numbers.items()}
    held = [row["text"] for row in read_rows(work / "heldout_passages.jsonl")]
    perplexities, loads = [], metrics.no_choices(trained)
    for kind, store in unseen.items():
        loss, chosen = metrics.language_model_loss(trained, store, 10**9)
        counted = count_perplexities(data.prose, store, trained.config.vocab_size)
        values = [np.exp(loss), counted["bigram"], counted["unigram"]]
        bits = [bits_per_byte(one, [held[n] for n in numbers[kind]]) for one in (model, earlier) if one]
        perplexities.append([kind, f"{len(store.ids):,}", *(f"{value:.1f}" for value in values), *bits])
        loads = [a + b for a, b in zip(loads, chosen, strict=True)]
    short = data.held(rows, 0)
    shares = {"prose": loads, "texts": metrics.text_loads(trained, data.templates, short, 0)}
    shares["both"] = [a + b for a, b in zip(shares["prose"], shares["texts"], strict=True)]
    state = training_facts(work)
    loads_table = [
        [kind, str(layer), *(f"{value:.3f}" for value in metrics.describe_load(load).values())]
        for kind, layers in shares.items()
        for layer, load in enumerate(layers)
    ]
    bits_of = ["bits per byte", "the earlier model's"][: 1 + bool(earlier)]
    epochs = state["sampler"]["epoch"] + state["sampler"]["cursor"] / len(data.targets)
    hours = state["elapsed"] / 3600
    settings = {**asdict(Settings()), **state.get("settings", {})}
    return f"""# ssmoe/tiny: held-out results

Written by `evaluate.py`, with the exported bfloat16 weights run in float32. No definition of a held-out
word was in any text that the tokenizer, the language model or the distillation saw, and none of its examples was one of
those texts (`holdout.py`); a short example may occur inside another text.

## Sentence vectors

Last hidden state at the last token of each read-out template. *Teacher correlation*: Spearman correlation of the
cosines of all pairs among {CORRELATION_TEXTS} glosses and examples of held-out words with the teacher's.
*Definitions*: finding the Webster (1913) definition of a held-out word by its WordNet gloss among
{len(data.pairs[0])}, and the reverse (mean of both). One sense of each dictionary is taken, so a perfect score is
impossible where they differ. Definitions of other words were trained on in pairs.

{markdown(["vectors", "read-out", "teacher correlation", "definitions R@1", "R@10"], table)}

## Language model

Perplexity per token on held-out passages of which no sentence occurs in the texts that were read or distilled
(`leakage.py` compares them; the tokenizer may have met them); at most 256 tokens of context. The count models were
fitted on the same training prose. Bits per byte do not depend on the vocabulary.

{markdown(["held-out", "tokens", "ssmoe/tiny", "bigram counts", "unigram counts", *bits_of], perplexities)}

## Routers

Expert choices on the same passages, on {CORRELATION_TEXTS} held-out short texts, and on both together (about the mixture
of the training, over which the balance was asked): entropy relative to even use, and the least and most loaded of the
24 experts relative to the mean.

{markdown(["tokens of", "layer", "entropy", "min", "max"], loads_table)}

## Training

{state["step"]:,} steps, {state["tokens"]:,} tokens, {hours:.2f} hours on CPU cores shared with other work
({state["tokens"] / state["elapsed"]:,.0f} tokens/s); {len(data.targets):,} distilled texts, {epochs:.2f} epochs.
What it measured on the way:

{markdown(["step", "tokens", "teacher correlation", "definitions R@1", "perplexity"], training_curve(work))}

Settings (`CARD.md` tells what came before and what was changed on the way):

```json
{json.dumps(settings, indent=2)}
```
"""


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Evaluate an exported model on held-out material.")
    parser.add_argument("--work", type=Path, required=True, help="folder of the training")
    parser.add_argument("--model", type=Path, required=True, help="exported model folder")
    parser.add_argument("--earlier", type=Path, help="folder of the model that the training began from")
    parser.add_argument("--output", type=Path, required=True, help="Markdown file to write")
    options = parser.parse_args()
    options.output.write_text(report(options.work, options.model, options.earlier), encoding="utf-8")


if __name__ == "__main__":
    main()
