"""Encoding speed, side by side in one run.

    python benchmarks/encode.py --output benchmarks/results/encode.md

Texts a second of `ssmoe` and `moee` against
  (a) the bare base model's forward pass on the same sorted batches, and
  (b) the pipeline of the paper's release: causal LM with logits, all hidden states and router logits, texts in the order
      they come, left padding, batches of 128.
The systems take turns within each round, and the ratios are medians over rounds, so that a busy machine slows all alike.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from measuring import Result, machine
from sentence_transformers import SentenceTransformer
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, OlmoeConfig, OlmoeModel

import ssmoe_embed
from ssmoe_embed.data import calibration_texts, search_corpus, tiny_folder

SHAPES = {
    "tiny": None,
    "small": {"hidden_size": 512, "intermediate_size": 256, "num_hidden_layers": 8, "num_experts": 32, "top_k": 4},
    "medium": {"hidden_size": 1024, "intermediate_size": 512, "num_hidden_layers": 12, "num_experts": 64, "top_k": 8},
}
VOCABULARY = 50304
"""OLMoE's, since the cost of logits is part of what (b) pays."""
RELEASE_BATCH = 128
System = Callable[[Sequence[str]], object]


def mixed_texts(count: int) -> list[str]:
    """Real texts of mixed length, from the shipped calibration sample and search corpus, in a fixed shuffled order."""
    texts = calibration_texts() + [f"{document.title}. {document.text}" for document in search_corpus()]
    random.Random(0).shuffle(texts)
    return texts[:count]


def base_folder(shape: str, work: Path) -> Path:
    """A base model of that shape: the bundled one, or random weights with OLMoE's vocabulary size."""
    tiny = tiny_folder() / "base"
    sizes = SHAPES[shape]
    if sizes is None:
        return tiny
    torch.manual_seed(0)
    heads = sizes["hidden_size"] // 64
    config = OlmoeConfig(
        **{name: value for name, value in sizes.items() if name != "top_k"},
        num_experts_per_tok=sizes["top_k"],
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=VOCABULARY,
        pad_token_id=1,
        eos_token_id=0,
    )
    config.architectures = ["OlmoeForCausalLM"]
    AutoModelForCausalLM.from_config(config).save_pretrained(work)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(work)
    return work


def encoder(base: Path, method: str, batch_size: int) -> System:
    """This package, from text to vectors."""
    texts = calibration_texts()[:128]
    module = ssmoe_embed.SSMoE.from_base(
        base, method=method, calibration_texts=texts, model_kwargs={"dtype": torch.float32}, progress=False
    )
    model = SentenceTransformer(modules=[module], device="cpu")
    return lambda texts: model.encode(list(texts), batch_size=batch_size)


def bare_forward(base: Path, batch_size: int, *, tokenize: bool) -> System:
    """(a): the base model alone on batches sorted as sentence-transformers sorts them."""
    model = OlmoeModel.from_pretrained(base, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    prepared: dict[int, list[dict[str, torch.Tensor]]] = {}

    def batches(texts: Sequence[str]) -> list[dict[str, torch.Tensor]]:
        ordered = sorted(texts, key=len, reverse=True)
        starts = range(0, len(ordered), batch_size)
        options = {"padding": True, "truncation": True, "max_length": 512, "return_tensors": "pt"}
        return [dict(tokenizer(ordered[start : start + batch_size], **options)) for start in starts]

    @torch.inference_mode()
    def run(texts: Sequence[str]) -> None:
        if not tokenize and id(texts) not in prepared:
            prepared[id(texts)] = batches(texts)
        for batch in batches(texts) if tokenize else prepared[id(texts)]:
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)

    return run


def release_pipeline(base: Path) -> System:
    """(b): as the paper's release runs a model."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")

    @torch.inference_mode()
    def run(texts: Sequence[str]) -> None:
        for start in range(0, len(texts), RELEASE_BATCH):
            batch = tokenizer(
                list(texts[start : start + RELEASE_BATCH]),
                padding=True,
                truncation=True,
                max_length=512,
                return_tensors="pt",
            )
            output = model(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                output_hidden_states=True,
                output_router_logits=True,
            )
            hidden = output.hidden_states[-1][:, -1]  # [B,H]
            routing = torch.cat(
                [layer.view(*batch["input_ids"].shape, -1)[:, -1] for layer in output.router_logits], -1
            )
            joined = torch.cat([hidden, routing], -1)  # [B,H+ΣE]
            (joined - joined.mean(0)) / joined.std(0)

    return run


def measure(systems: dict[str, System], texts: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """Seconds of every system in every round; one unmeasured round first."""
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    with tqdm(total=(rounds + 1) * len(systems), desc="Encoding", unit="run") as bar:
        for turn in range(rounds + 1):
            for name, system in systems.items():
                start = time.perf_counter()
                system(texts)
                if turn:
                    seconds[name].append(time.perf_counter() - start)
                bar.update()
    return seconds


def result(shape: str, seconds: dict[str, list[float]], texts: Sequence[str], batch_size: int) -> Result:
    """The table of one shape."""
    bare, release = "(a) bare forward", "(b) release's pipeline"
    rows = []
    for name, runs in seconds.items():
        against_bare = median(run / other for run, other in zip(runs, seconds[bare], strict=True))
        against_release = median(other / run for run, other in zip(runs, seconds[release], strict=True))
        rows.append([name, f"{len(texts) / median(runs):.1f}", f"{against_bare:.2f}", f"{against_release:.2f}"])
    words = sorted(len(text.split()) for text in texts)
    note = (
        f"{machine('torch', 'transformers', 'sentence-transformers')}; {torch.get_num_threads()} threads, float32, "
        f"batches of {batch_size} (release: {RELEASE_BATCH}); {len(texts)} texts of {words[0]} to {words[-1]} words, median "
        f"{words[len(words) // 2]}; medians of {len(seconds[bare])} rounds."
    )
    header = ["system", "texts/s", "time, (a) = 1", "speed, (b) = 1"]
    return Result(f"Encoding, {shape} model", note, header, rows, {"seconds": seconds})


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), default=["tiny"], help="models to measure")
    parser.add_argument("--texts", type=int, default=512, help="how many texts")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds")
    parser.add_argument("--batch-size", type=int, default=32, help="of this package and of (a)")
    parser.add_argument("--output", type=Path, help="Markdown or JSON file to write")
    options = parser.parse_args()
    texts = mixed_texts(options.texts)
    for shape in options.shapes:
        with tempfile.TemporaryDirectory() as work:
            base = base_folder(shape, Path(work))
            systems = {
                "ssmoe": encoder(base, "ssmoe", options.batch_size),
                "moee": encoder(base, "moee", options.batch_size),
                "(a) bare forward": bare_forward(base, options.batch_size, tokenize=False),
                "(a) with tokenisation": bare_forward(base, options.batch_size, tokenize=True),
                "(b) release's pipeline": release_pipeline(base),
            }
            seconds = measure(systems, texts, options.rounds)
        result(shape, seconds, texts, options.batch_size).show(options.output)


if __name__ == "__main__":
    main()
