"""Measures cheap, training-free additions to the methods on the offline tasks: each alone, beside the model as it is.

    python benchmarks/additions.py --output benchmarks/results/additions.md

An earlier layer's hidden state, other prompts (`echo` gives the text twice, `metaeol` averages nine one-word templates) and
calibrations. What the result folder holds already is not measured again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ssmoe_embed.common.files import atomic_file
from ssmoe_embed.embedding.prompts import templates
from ssmoe_embed.embedding.settings import EmbeddingSettings
from ssmoe_embed.evaluation.mteb.models import EvaluatedModel
from ssmoe_embed.evaluation.mteb.runner import evaluate
from ssmoe_embed.evaluation.mteb.runs import Run
from ssmoe_embed.evaluation.results.folder import ResultFolder
from ssmoe_embed.evaluation.tasks.finding import find_tasks

METHODS = ("smoe", "moee")
ADDITIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "layer before the last": {"hidden_layer": -2},
    "two layers before the last": {"hidden_layer": -3},
    "standardized": {"calibration": "standardize"},
    "whitened": {"calibration": "whiten"},
    "prompt none": {"prompt": "none"},
    "prompt echo": {"prompt": "echo"},
    "prompt prompteol": {"prompt": "prompteol"},
    "prompt metaeol": {"prompt": "metaeol"},
}
"""Settings that each addition changes; the hidden layers are for models of four layers or more."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ssmoe/tiny", help="default: ssmoe/tiny")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help=f"default: {' '.join(METHODS)}")
    parser.add_argument("--additions", nargs="+", default=list(ADDITIONS), choices=list(ADDITIONS), metavar="NAME")
    parser.add_argument("--tasks", nargs="+", default=["offline"], metavar="TASK", help="default: offline")
    parser.add_argument("--results", type=Path, default=Path("build/additions"), help="result folder")
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    options = parser.parse_args(arguments)
    chosen = {name: ADDITIONS[name] for name in dict.fromkeys(["as it is", *options.additions])}
    runs = {(name, method): _run(method, chosen[name]) for name in chosen for method in options.methods}
    report = evaluate([options.model], options.tasks, list(runs.values()), options.results)
    if report.failures:
        raise SystemExit("\n".join(map(str, report.failures)))
    text = _markdown(options.model, options.tasks, list(chosen), options.methods, report.folder)
    print(text, end="")
    if options.output:
        with atomic_file(options.output) as file:
            file.write(text.encode())


def _run(method: str, settings: dict[str, Any]) -> Run:
    others = {name: value for name, value in settings.items() if name != "prompt"}
    return Run(method, settings.get("prompt"), None, others)


def _markdown(
    model: str, tasks: Sequence[str], additions: Sequence[str], methods: Sequence[str], folder: ResultFolder
) -> str:
    """A row an addition: its price, and each method's mean score with what it gains or loses."""
    loaded = {
        layer: EvaluatedModel.load(model, hidden_layer=layer, progress=False)
        for layer in {ADDITIONS[name].get("hidden_layer") for name in additions}
    }
    names = [task.metadata.name for task in find_tasks(tasks)]
    found = {score.path: score.score for score in folder.scores()}
    columns = " | ".join(f"{method} | ± | better on" for method in methods)
    lines = [
        f"`{model}`, mean of {len(names)} tasks in points of 100. ±: against the model as it is. Better on: tasks of "
        f"{len(names)}. Forward passes: how often the model reads a text. These are scores on test data: choosing by them "
        "would be tuning on the test set.",
        "",
        f"| addition | forward passes | {columns} |",
        f"|---|---:|{'---:|' * 3 * len(methods)}",
    ]
    scores = {
        (name, method): _scores(
            loaded[ADDITIONS[name].get("hidden_layer")], _run(method, ADDITIONS[name]), names, folder, found
        )
        for name in additions
        for method in methods
    }
    for name in additions:
        settings: EmbeddingSettings = _run(methods[0], ADDITIONS[name]).settings(loaded[None].own)
        cells = [name, str(len(templates(settings.prompt)))]
        for method in methods:
            here, base = scores[name, method], scores["as it is", method]
            change = fmean(here) - fmean(base)
            better = sum(one > other for one, other in zip(here, base, strict=True))
            cells += [f"{fmean(here):.1f}", *(["–", "–"] if name == "as it is" else [f"{change:+.1f}", str(better)])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _scores(
    own: EvaluatedModel, run: Run, names: Sequence[str], folder: ResultFolder, found: dict[Path, float]
) -> list[float]:
    """The run's score on each task, in points of 100."""
    meta, cache = own.meta(run), folder.cache(run.corruption_name)
    return [100 * found[cache.get_task_result_path(name, meta)] for name in names]


if __name__ == "__main__":
    main()
