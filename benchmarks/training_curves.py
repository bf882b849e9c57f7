"""Trains small mixtures of experts with and without SSMoE's routing and SD-MoE's division, and compares what comes out.

    python benchmarks/training_curves.py --output benchmarks/results/training_curves.md

Every model is trained by `finetune` on the same texts of this package, in an order that depends on the seed alone, and
measured on texts that were held out. What the work folder holds already is not trained again, and a run that was interrupted
goes on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from measuring import machine
from scipy.stats import spearmanr
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

import ssmoe_embed
from ssmoe_embed.common.files import atomic_file
from ssmoe_embed.common.plots import COLOURS, house_style, label_axes, legend_below, new_figure, svg
from ssmoe_embed.common.tables import Report, Table
from ssmoe_embed.data import calibration_texts, read_records, search_corpus
from ssmoe_embed.evaluation.harness.grid import OFFLINE_TASKS, GridOptions, load_tasks, metric_of
from ssmoe_embed.evaluation.harness.running import harness_outcome
from ssmoe_embed.evaluation.inspection.activations import checked_module, collect
from ssmoe_embed.evaluation.inspection.alignment import gate_alignment, gradient_alignments
from ssmoe_embed.evaluation.inspection.measures import dominant_bases, load, subspace_overlap
from ssmoe_embed.evaluation.mteb.passes import SharedPass
from ssmoe_embed.evaluation.texts import spread
from ssmoe_embed.families import family_of
from ssmoe_embed.language_model import RoutingSettings, load_tokenizer, perplexity
from ssmoe_embed.language_model import load as load_language_model
from ssmoe_embed.language_model.loading import base_of, policy_of
from ssmoe_embed.routing import reroute
from ssmoe_embed.training import DecouplingSettings, FinetuneSettings, GaLoreSettings, InstructionTemplate, finetune

SEEDS = (0, 1, 2)
SCRATCH, CONTINUED = "from scratch", "continued"
STARTS: dict[str, dict[str, Any]] = {
    SCRATCH: {"steps": 80, "learning_rate": 3e-3, "warmup": 0.1},
    CONTINUED: {"steps": 12, "learning_rate": 3e-4, "warmup": 0.1},
}
HALF = {"hidden_size": 128, "intermediate_size": 56, "num_hidden_layers": 2, "vocab_size": 1024}
"""What is trained from scratch is the bundled model's architecture in half of its width and depth, on fewer tokens."""
BEFORE = "before"
TEXTS = "texts.jsonl"
_SPECTRAL = {"routing": "ssmoe", "refresh_routers": 10}
DIVIDED = 8
"""Rank of what experts share."""
_APART = {"decouple": DecouplingSettings(q=DIVIDED)}
WAYS: dict[str, dict[str, Any]] = {
    "original": {},
    "SSMoE": _SPECTRAL,
    "SD-MoE": _APART,
    "both": _SPECTRAL | _APART,
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    f"{name} at {rate:g}": {**chosen, "learning_rate": rate}
    for name, rates, chosen in (
        ("AdamW", (1e-3,), {}),
        ("GaLore, rank 32,", (1e-3, 4e-3), {"optimizer": "galore", "galore": GaLoreSettings(rank=32)}),
        ("LoRA, rank 16,", (1e-3, 4e-3), {"optimizer": "lora"}),
    )
    for rate in rates
}
"""How the bundled model is trained on with its own routing, for the first seed only."""
METHODS = ("router", "smoe", "moee", "ev", "ssmoe")
SIMILARITIES = ("similarity", "word_relatedness")
PROMPT = "{text}<|endoftext|>"
PIECE = 60
"""Tokens of an example, by the bundled tokenizer."""
EXAMPLES, HELD_OUT, PAIRS, QUESTIONS, BINS = 640, 48, 200, 40, 12


def texts(tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], list[str]]:
    """The package's search corpus and calibration texts in pieces, and those held out: every tenth page, and text, or so."""
    pages = [(one.id.rpartition("-")[0], f"{one.title}\n{one.text}") for one in search_corpus()]
    train: list[str] = []
    held: list[str] = []
    for name, text in [*pages, *((text, text) for text in calibration_texts())]:
        (held if sha256(name.encode()).digest()[0] % 10 == 0 else train).extend(pieces(text, tokenizer))
    return spread(train, EXAMPLES), spread(held, HELD_OUT)


def pieces(text: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """The whole pieces of a text, cut between tokens; the rest is left out, so that all examples are of one length."""
    places = tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    for start in range(0, len(places) - PIECE + 1, PIECE):
        yield text[places[start][0] : places[start + PIECE - 1][1]]


def start_of(start: str, seed: int, work: Path) -> str:
    """The model that training starts with."""
    if start == CONTINUED:
        return "ssmoe/tiny"
    folder = work / f"start-{seed}"
    if not (folder / "tokenizer_config.json").is_file():
        torch.manual_seed(seed)
        config = AutoConfig.from_pretrained(base_of("ssmoe/tiny"), **HALF, dtype="float32")
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        examples = (json.loads(line)["text"] for line in (work / TEXTS).read_text(encoding="utf-8").splitlines())
        tokenizer = load_tokenizer("ssmoe/tiny").train_new_from_iterator(examples, HALF["vocab_size"])
        tokenizer.save_pretrained(folder)
    return str(folder)


def run(start: str, way: str, seed: int, work: Path, measure: Callable[[str | Path, str], Any]) -> dict[str, Any]:
    """Train and measure one model; `before` is none that was trained."""
    base, changes = start_of(start, seed, work), (WAYS | OPTIMIZERS).get(way, {})
    if way == BEFORE:
        return measure(base, "original")
    fixed: dict[str, Any] = {
        "batch_size": 8,
        "max_length": 4 * PIECE,
        "balance": 0.01,
        "seed": seed,
        "template": InstructionTemplate.NONE,
    }
    settings = FinetuneSettings(**STARTS[start] | changes | fixed)
    output = work / f"{_name(start, way, seed)}.model"
    began = time.process_time()
    log = finetune(base, work / TEXTS, output, settings, overwrite=True, progress=False).log
    spent = time.process_time() - began
    curve = [(row["num_tokens"], row["loss"] - settings.balance * row["balance"]) for row in log if "loss" in row]
    found = {"seconds": spent, "curve": curve, **measure(output, str(settings.routing))}
    shutil.rmtree(output)
    return found


def measured(folder: str | Path, routing: str, held: Sequence[str], tasks: Any) -> dict[str, Any]:
    """Everything that is told of a model, under the routing that it was trained with."""
    tokenizer, low = load_tokenizer(folder), load_language_model(folder, dtype="float32", progress=False)
    found: dict[str, Any] = {"perplexity": {}}
    for name in ("ssmoe" if routing == "original" else "original", routing):  # its own is installed in the end
        policy = policy_of(name, low, RoutingSettings(), progress=False)
        handle = None if policy is None else reroute(low, policy)
        seen = perplexity(low, tokenizer, "\n\n".join(held), window=4 * PIECE, progress=False)
        found["perplexity"][name] = seen.value
        if name != routing and handle is not None:
            handle.remove()
    for name in OFFLINE_TASKS:
        options = GridOptions(limit=QUESTIONS, batch_size=16, progress=False)
        scores = harness_outcome(low, tokenizer, name, tasks, options)["results"][name]
        found[name] = float(scores[metric_of(name, list(scores))])
    gradients = gradient_alignments(low, tokenizer, held[:16])
    found["gradients"] = fmean(kind.overlap.mean for layer in gradients.values() for kind in layer)
    return found | inspected(folder, routing, held)


def inspected(folder: str | Path, routing: str, held: Sequence[str]) -> dict[str, Any]:
    """Load, experts and vectors of a model."""
    model = ssmoe_embed.load(folder, calibration="none", progress=False, model_kwargs={"dtype": "float32"})
    module = checked_module(model)
    settings = {name: module.settings.changed(method=name, routing_signal=None, prompt=PROMPT) for name in METHODS}
    seen = collect(module, held, settings["smoe" if routing == "original" else "ssmoe"])
    family = family_of(module.model)
    found: dict[str, Any] = {}
    layers = family.layers(module.model)
    loads = [load(one.chosen, family.expert_count(layer)) for one, layer in zip(seen.layers, layers, strict=True)]
    found["entropy"], found["dead"] = fmean(one.entropy for one in loads), sum(len(one.dead) for one in loads)
    overlaps, gates, own = [], [], []
    for layer in layers:
        experts = range(family.expert_count(layer))
        kinds = zip(*(family.expert_matrices(layer.block, expert) for expert in experts), strict=True)
        for left in map(without_common, kinds):
            [bases] = dominant_bases(lambda one, left=left: left[one, None], experts)  # type: ignore[misc]
            own.append(subspace_overlap(bases).mean)
        for bases in dominant_bases(lambda one, block=layer.block: family.expert_matrices(block, one), experts):  # type: ignore[misc]
            overlaps.append(subspace_overlap(bases).mean)
            gates.append(gate_alignment(family.router_weight(layer.router), bases).specificity)
    found |= {"overlap": fmean(overlaps), "own": fmean(own), "specificity": fmean(gates)}
    view = model.using(settings["smoe"], routers=module.routers)
    shared = SharedPass(view, [settings[name] for name in METHODS[:-1]])
    passes = dict.fromkeys(METHODS[:-1], shared) | {"ssmoe": SharedPass(view, [settings["ssmoe"]])}
    found["vectors"] = {name: similarity(passes[name], settings[name]) for name in METHODS}
    return found


def without_common(matrices: Sequence[torch.Tensor]) -> torch.Tensor:
    """What is left `[E,I,H]` of matrices `[I,H]` without the mean expert's part of rank 8, as SD-MoE divides them."""
    stacked = torch.stack(list(matrices))
    left, values, right = torch.linalg.svd(stacked.mean(dim=0), full_matrices=False)
    return stacked - left[:, :DIVIDED] * values[:DIVIDED] @ right[:DIVIDED]


def similarity(vectors: SharedPass, settings: Any) -> float:
    """Spearman's correlation of cosines with the similarities of two offline tasks, their mean, in points of 100."""
    scores = []
    for name in SIMILARITIES:
        rows = spread(list(read_records(f"offline/{name}.jsonl")), PAIRS)
        one, other = (
            torch.from_numpy(vectors.encode([row[side] for row in rows], settings)) for side in ("first", "second")
        )
        scores.append(100 * float(spearmanr(F.cosine_similarity(one, other), [row["score"] for row in rows]).statistic))
    return fmean(scores)


def _name(start: str, way: str, seed: int) -> str:
    return f"{start.replace(' ', '-')}_{way}_{seed}"


Runs = dict[tuple[str, str], list[dict[str, Any]]]


def cell(values: Sequence[float], form: str) -> str:
    """Mean over seeds, and the range."""
    shown = format(fmean(values), form)
    return shown if len(values) == 1 else f"{shown} ({min(values):{form}} to {max(values):{form}})"


def tables(runs: Runs) -> list[str | Table]:
    """What was measured, by start."""
    parts: list[str | Table] = []
    for start in STARTS:
        rows = {way: found for (one, way), found in runs.items() if one == start and found and way not in OPTIMIZERS}
        plain = rows.get("original", [])
        columns: dict[str, Callable[[str, dict[str, Any], dict[str, Any]], float]] = {
            "perplexity": lambda way, one, _: one["perplexity"][_routing(way)],
            "of original's, same seed": lambda way, one, base: (
                one["perplexity"][_routing(way)] / base["perplexity"]["original"]
            ),
            "with the learned routers alone": lambda way, one, base: (
                one["perplexity"]["original"] / base["perplexity"]["original"]
            ),
            "continuation": lambda way, one, _: 100 * one["ssmoe_continuation"],
            "dictionary": lambda way, one, _: 100 * one["ssmoe_dictionary"],
        }
        forms = (".1f", ".3f", ".3f", ".0f", ".0f")
        parts += [f"## Trained {start}", _table(rows, plain, columns, forms)]
        columns = {
            "load entropy": lambda way, one, _: one["entropy"],
            "dead experts": lambda way, one, _: one["dead"],
            "overlap of experts": lambda way, one, _: one["overlap"],
            "gate specificity": lambda way, one, _: one["specificity"],
            "CPU time, of original's": lambda way, one, base: one.get("seconds", 0.0) / base["seconds"],
        }
        parts.append(_table(rows, plain, columns, (".3f", ".1f", ".3f", ".2f", ".2f")))
        columns = {
            name: lambda way, one, _, name=name: one["vectors"][name]  # type: ignore[misc]
            for name in METHODS
        }
        parts.append(_table(rows, plain, columns, (".1f",) * len(METHODS)))
    rows = {way: runs[SCRATCH, way][:1] for way in (BEFORE, *WAYS) if runs[SCRATCH, way]}
    columns = {
        "overlap of experts": lambda way, one, _: one["overlap"],
        "without what is common": lambda way, one, _: one["own"],
        "overlap of their gradients": lambda way, one, _: one["gradients"],
    }
    parts += [
        "## Experts and their gradients: from scratch, first seed",
        _table(rows, [], columns, (".3f", ".3f", ".3f")),
    ]
    first = {f"AdamW at {STARTS[CONTINUED]['learning_rate']:g}": runs[CONTINUED, "original"]}
    first |= {way: runs[CONTINUED, way] for way in OPTIMIZERS}
    rows = {way: found[:1] for way, found in first.items() if found}
    columns = {
        "perplexity": lambda way, one, _: one["perplexity"]["original"],
        "loss of the last half": lambda way, one, _: fmean(loss for _, loss in one["curve"][len(one["curve"]) // 2 :]),
        "CPU time, of AdamW's": lambda way, one, base: one["seconds"] / base["seconds"],
    }
    parts += ["## Optimizers", _table(rows, runs[CONTINUED, "original"], columns, (".1f", ".3f", ".2f"))]
    return parts


def _routing(way: str) -> str:
    return str(WAYS.get(way, {}).get("routing", "original"))


def _table(rows: dict[str, Any], plain: Sequence[Any], columns: dict[str, Any], forms: Sequence[str]) -> Table:
    """One row a way; what is compared with `original` is compared seed by seed."""
    lines = []
    for way, found in rows.items():
        bases = (plain or found)[: len(found)]
        cells = [
            cell([read(way, one, base) for one, base in zip(found, bases, strict=False)], form)
            for read, form in zip(columns.values(), forms, strict=True)
        ]
        lines.append((way, *cells))
    return Table(("trained with", *columns), tuple(lines))


@house_style
def curves(runs: Runs) -> bytes:
    """Training loss by tokens, and its difference from the original's of the same seed; bands span the seeds."""
    figure, grid = new_figure(10, 6, 2, len(STARTS))
    for (above, below), start in zip(grid.T, STARTS, strict=True):
        plain = [_binned(one["curve"]) for one in runs[start, "original"]]
        for colour, way in zip(COLOURS, WAYS, strict=False):
            found = [_binned(one["curve"]) for one in runs[start, way]]
            tokens = [point[0] for point in found[0]] if found else []
            for axes, values in (
                (above, [[loss for _, loss in one] for one in found]),
                (
                    below,
                    [[a - b for (_, a), (_, b) in zip(*two, strict=True)] for two in zip(found, plain, strict=False)],
                ),
            ):
                by_place = list(zip(*values, strict=True))
                axes.plot(tokens, [fmean(one) for one in by_place], "-o", color=colour, label=way)
                axes.fill_between(tokens, [*map(min, by_place)], [*map(max, by_place)], color=colour, alpha=0.2, lw=0)
        label_axes(above, f"{start}: training loss", "", "nats per token")
        label_axes(below, f"{start}: difference from original, same seed", "tokens", "nats per token")
    legend_below(figure)
    return svg(figure)


def _binned(curve: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """A curve as means of neighbouring points."""
    size = max(1, len(curve) // BINS)
    parts = [curve[i : i + size] for i in range(0, len(curve) // size * size, size)]
    return [(part[-1][0], fmean(loss for _, loss in part)) for part in parts]


def main() -> None:
    """Train and measure what is missing, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/training"), help="what is finished is kept here")
    parser.add_argument("--output", type=Path, help="Markdown file to write, with the plot beside it as .svg")
    parser.add_argument("--report", action="store_true", help="report what is there, without training")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    cells = [(start, way, seed) for seed in SEEDS for start in STARTS for way in (BEFORE, *WAYS)]
    cells = [one for one in cells if one[1] != BEFORE or one[2] == SEEDS[0]]
    cells += [(CONTINUED, way, SEEDS[0]) for way in OPTIMIZERS]
    if not options.report:
        train(cells, options.work)
    runs: Runs = {(start, way): [] for start in STARTS for way in (BEFORE, *WAYS, *OPTIMIZERS)}
    for start, way, seed in cells:
        file = options.work / f"{_name(start, way, seed)}.json"
        if file.is_file():
            runs[start, way].append(json.loads(file.read_text(encoding="utf-8")))
    tokens = {start: int(runs[start, "original"][0]["curve"][-1][0]) for start in STARTS if runs[start, "original"]}
    amounts = [
        f"{start} on {n:,} tokens, at a rate of {STARTS[start]['learning_rate']:g}" for start, n in tokens.items()
    ]
    note = (
        f"Written by `python benchmarks/training_curves.py`. {machine('torch', 'transformers', 'trl')}; "
        f"one thread. Mean over {len(SEEDS)} seeds, and their range. "
        f"Trained {'; '.join(amounts)}. Perplexity is that of held-out texts; the tasks of the harness are the first "
        f"{QUESTIONS} questions of each; vectors are judged on {PAIRS} pairs of two offline similarity tasks. Points of 100."
    )
    text = Report("Training under four ways", (note, *tables(runs))).markdown()
    print(text)
    if options.output:
        for path, content in ((options.output, text.encode()), (options.output.with_suffix(".svg"), curves(runs))):
            with atomic_file(path) as file:
                file.write(content)


def train(cells: Sequence[tuple[str, str, int]], work: Path) -> None:
    """Train and measure what is missing."""
    tokenizer = load_tokenizer("ssmoe/tiny")
    examples, held = texts(tokenizer)
    tasks = load_tasks(OFFLINE_TASKS)
    with atomic_file(work / TEXTS) as file:
        file.write("".join(json.dumps({"text": text}) + "\n" for text in examples).encode())
    for number, (start, way, seed) in enumerate(cells, start=1):
        path = work / f"{_name(start, way, seed)}.json"
        if path.is_file():
            continue
        began = time.process_time()
        found = run(start, way, seed, work, lambda folder, routing: measured(folder, routing, held, tasks))
        with atomic_file(path) as file:
            file.write(json.dumps(found).encode())
        print(f"{number}/{len(cells)} {start}, {way}, seed {seed}: {time.process_time() - began:.0f} CPU s", flush=True)


if __name__ == "__main__":
    main()
