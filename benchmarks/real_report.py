"""What benchmarks/real.py measured, as one report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from measuring import machine

from ssmoe_embed.common.tables import Report, Table
from ssmoe_embed.evaluation.results.folder import ResultFolder, read_json
from ssmoe_embed.evaluation.results.summary import summary
from ssmoe_embed.evaluation.significance import comparison

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

COMPARED = ("moee", "ssmoe", "ssmoe-hidden", "ev", "router", "paper")
"""Methods that are compared with the hidden state."""
EVERY = 5
"""Every so many-th development pair is used."""
EMBEDDING, INSPECTION = "embedding", "inspection.json"
VARIED = ("calibration", "combination", "routing_weight")
"""Settings that are chosen for each method on development data."""


def report(work: Path, tasks_of: Callable[[Iterable[str]], list[AbsTask]], split: Path | None = None) -> Report:
    """Everything that is measured so far.

    Args:
        work: Where it is.
        tasks_of: Gives tasks with the data that they were measured on, by name.
        split: What examples/split_dense wrote of its model.
    """
    parts: list[str | Table] = [f"{machine('torch', 'transformers', 'mteb')}. Points of 100."]
    if split is not None:
        parts += _divided(json.loads(split.read_text(encoding="utf-8")))
    dev = ResultFolder(work / "dev").scores()
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
    if (work / INSPECTION).is_file():
        parts += _inspected(read_json(work / INSPECTION))
    folder = ResultFolder(work / EMBEDDING)
    scores = folder.scores()
    if scores:
        parts += list(summary(scores, folder.rates()).parts)
        parts += _differences(folder, tasks_of)
    return Report("A real language model on real tasks", tuple(parts))


def _divided(rows: Sequence[dict[str, Any]]) -> list[str | Table]:
    """What was measured of the model when it was made."""
    dense = rows[0]["perplexity"]
    shown = [
        (
            row["name"],
            f"{row['perplexity']:.2f}",
            f"{row['perplexity'] / dense:.3f}",
            f"{row['similarity']:.1f}",
            f"{row['cosine']:.4f}",
            f"{min(row['entropy']):.3f}" if row["entropy"] else None,
            row["dead"],
        )
        for row in rows
    ]
    heads = (
        "active experts",
        "perplexity",
        "× dense",
        "STSBenchmark dev",
        "cosine to dense",
        "least load entropy",
        "dead experts",
    )
    return ["## The model: what leaving experts out costs", Table(heads, tuple(shown))]


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
        for line in lines:
            if line.bootstrap is None:
                continue
            one = line.bootstrap
            interval = f"[{100 * one.low:+.1f}, {100 * one.high:+.1f}]"
            rows.append(
                (
                    method,
                    line.setup,
                    line.task,
                    f"{100 * one.difference:+.1f}",
                    interval,
                    comparison.p_text(one.p_value),
                )
            )
    return [*found, Table(("method", "setup", "task", "difference", "95 % interval", "p"), tuple(rows), texts=3)]
