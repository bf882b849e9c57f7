"""What benchmarks/real.py measured, as one report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import mteb
from measuring import machine

from ssmoe_embed.common.tables import Report, Table
from ssmoe_embed.evaluation.harness.results import GridFolder
from ssmoe_embed.evaluation.harness.results import tables as grid_tables
from ssmoe_embed.evaluation.results.folder import ResultFolder, TaskScore, read_json
from ssmoe_embed.evaluation.results.summary import summary
from ssmoe_embed.evaluation.significance import comparison
from ssmoe_embed.evaluation.tasks.corruption import CLEAN
from ssmoe_embed.evaluation.tasks.local_data import LocalData, use_local

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

COMPARED = ("moee", "ssmoe", "ssmoe-hidden", "ev", "router", "paper")
"""Methods that are compared with the hidden state."""
EVERY = 5
"""Every so many-th development pair is used."""
EMBEDDING, INSPECTION, REASONED = "embedding", "inspection.json", "grid"
THINNED = {"validation": "development", "test": "thinned"}
"""A folder for each split, or its data would be other data as soon as the second is there."""
ABLATIONS = {"moe": "ablation", "dense": "ablation-dense"}
_PAIRS = (("ev", "router"), ("moee", "smoe"), ("ssmoe-hidden", "smoe"), ("ssmoe", "smoe"), ("ssmoe", "moee"))
_RESAMPLES = 2000
VARIED = ("calibration", "combination", "routing_weight", "alpha", "hidden_layer")
"""Settings that are chosen for each method on development data."""


def report(work: Path, tasks_of: Callable[[Iterable[str]], list[AbsTask]], split: Sequence[Path] = ()) -> Report:
    """Everything that is measured so far.

    Args:
        work: Where it is.
        tasks_of: Gives tasks with the data that they were measured on, by name.
        split: What examples/split_dense wrote of its model, and of others that were tried.
    """
    parts: list[str | Table] = [
        f"{machine('torch', 'transformers', 'mteb')}. Points of 100. mteb's tasks took {_hours(work):.1f} hours in all."
    ]
    if split:
        parts += _divided(split)
    scored = ResultFolder(work / "dev").scores()
    dev = [one for one in scored if one.corruption == CLEAN]
    if dev:
        parts += [
            f"## Development: every {EVERY}th pair of STSBenchmark's development set, PromptEOL",
            Table(
                ("method", "settings", "score"),
                tuple(
                    (one.method, one.settings_text, f"{100 * one.score:.1f}")
                    for one in sorted(dev, key=lambda one: -one.score)
                ),
                texts=2,
            ),
        ]
        parts += _developed(work)
        parts += _rates([one for one in scored if one.corruption != CLEAN])
    if (work / INSPECTION).is_file():
        parts += _inspected(read_json(work / INSPECTION))
    if (work / REASONED).is_dir():
        parts += ["## Reasoning", *grid_tables(GridFolder(work / REASONED))]
    folder = ResultFolder(work / EMBEDDING)
    scores = folder.scores()
    if scores:
        parts += list(summary(scores, folder.rates()).parts)
        parts += _differences(folder, tasks_of)
    return Report("A real language model on real tasks", tuple(parts))


def _hours(work: Path) -> float:
    """What mteb says its tasks took, of all that is kept."""
    scored = [one for name in ("dev", EMBEDDING) for one in ResultFolder(work / name).scores()]
    return sum(read_json(one.path).get("evaluation_time") or 0.0 for one in scored) / 3600


def development_task(work: Path, split: str = "validation") -> AbsTask:
    """STSBenchmark on the development pairs that are used, or on as large a part of another split."""
    return use_local(mteb.get_task("STSBenchmark", eval_splits=[split]), LocalData(work / THINNED[split]))


def _developed(work: Path) -> list[str | Table]:
    """Differences on development pairs, under the same settings on both sides."""
    folder, task = ResultFolder(work / "dev"), development_task(work)
    there = {score.method for score in folder.scores()}
    rows = []
    for one, other in _PAIRS:
        if {one, other} <= there:
            lines = comparison.compare_methods(folder, one, other, tasks=[task], resamples=_RESAMPLES)
            rows += [
                (f"{one} − {other}", line.first.settings_text or "standardize", *_difference(line)) for line in lines
            ]
    return [Table(("", "settings", "difference", "95 % interval", "p"), tuple(rows), texts=2)] if rows else []


def _rates(scored: Sequence[TaskScore]) -> list[str | Table]:
    """What rates of AAA leave of the hidden state's score."""
    rows = tuple((one.corruption, f"{100 * one.score:.1f}") for one in sorted(scored, key=lambda one: one.corruption))
    return [Table(("AAA", "smoe"), rows)] if rows else []


def _difference(line: comparison.MethodDifference) -> tuple[str | None, ...]:
    """Difference, interval and p-value."""
    found = line.bootstrap
    if found is None:
        return None, line.reason, None
    interval = f"[{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    return f"{100 * found.difference:+.1f}", interval, comparison.p_text(found.p_value)


def _divided(files: Sequence[Path]) -> list[str | Table]:
    """What was measured of the model when it was made; of further files, other divisions, what they would have shipped."""
    made = [(_sharpness(file), json.loads(file.read_text(encoding="utf-8"))) for file in files]
    shown = []
    for number, (sharpness, rows) in enumerate(made):
        dense = rows[0]["perplexity"]
        for at, row in enumerate(rows if number == 0 else rows[-1:]):
            shown.append(
                (
                    row["name"],
                    None if number == 0 and at < 2 else sharpness,  # neither has a router
                    f"{row['perplexity']:.2f}",
                    f"{row['perplexity'] / dense:.3f}",
                    f"{row['similarity']:.1f}",
                    f"{row['cosine']:.4f}",
                    f"{min(row['entropy']):.3f}" if row["entropy"] else None,
                    row["dead"],
                )
            )
    heads = (
        "active experts",
        "deviation of router logits",
        "perplexity",
        "× dense",
        "STSBenchmark dev",
        "cosine to dense",
        "least load entropy",
        "dead experts",
    )
    return ["## The model: what leaving experts out costs", Table(heads, tuple(shown))]


def _sharpness(file: Path) -> str:
    """The router's, which examples/split_dense puts into the name of its file."""
    return file.name.partition("sharpness=")[2].partition("-")[0]


def _inspected(found: dict[str, Any]) -> list[str | Table]:
    """Collapse, load and what mixing does, as means over the layers."""

    def mean(*path: str) -> str:
        values = []
        for layer in found["layers"]:
            for step in path:
                layer = layer[step]
            values.append(layer)
        return f"{fmean(values):.3f}"

    rows = [
        ("mean magnitude of the cosine of two rows", mean("learned", "cosine"), mean("spectral", "cosine")),
        ("the same, mean row taken off", mean("learned", "centred_cosine"), mean("spectral", "centred_cosine")),
        ("… of the correlation of two logits", mean("learned", "correlation"), mean("spectral", "correlation")),
        ("length of a row", mean("learned", "row_norm"), mean("spectral", "row_norm")),
        (
            "entropy of the load, share of its maximum",
            mean("loads", "original", "entropy"),
            mean("loads", "ev", "entropy"),
        ),
    ]
    dead = {
        routing: sum(len(layer["loads"][routing]["dead"]) for layer in found["layers"])
        for routing in ("original", "ev")
    }
    rows.append(("experts that no token chose", str(dead["original"]), str(dead["ev"])))
    mix = [
        ("correlation of an expert's spectral and learned logit", mean("covariance", "own_correlation")),
        ("… of those of different experts, magnitude", mean("covariance", "cross_correlation")),
        ("magnitude of two experts' covariance in the mix", mean("covariance", "mixed")),
        ("lemma 3.1 bounds it by", mean("covariance", "bound")),
        ("share of the pairs for which that holds", mean("covariance", "holds")),
        ("magnitude of two experts' correlation, learned", mean("covariance", "learned_correlation")),
        ("… in the mix", mean("covariance", "mixed_correlation")),
        ("entropy of the load under SSMoE", mean("loads", "ssmoe", "entropy")),
    ]
    tokens, layers = f"{found['tokens']:,} tokens of {found['texts']} texts", len(found["layers"])
    return [
        f"## Routers and experts: {tokens}, means over {layers} layers",
        Table(("", "learned router", "spectral router"), tuple(rows)),
        Table((f"mix at α = {found['alpha']}", ""), tuple(mix)),
    ]


def _differences(folder: ResultFolder, tasks_of: Callable[[Iterable[str]], list[AbsTask]]) -> list[str | Table]:
    """Every method compared with the hidden state, by bootstrap."""
    found: list[str | Table] = ["## Compared with the hidden state (`smoe`), paired bootstrap"]
    names = {score.task for score in folder.scores() if score.local_data}
    rows = []
    for method in [one for one in COMPARED if any(score.method == one for score in folder.scores())]:
        lines = comparison.compare_methods(folder, method, "smoe", tasks=tasks_of(sorted(names)), may_differ=VARIED)
        rows += [(method, line.setup, line.task, *_difference(line)) for line in lines]
    return [*found, Table(("method", "setup", "task", "difference", "95 % interval", "p"), tuple(rows), texts=3)]
