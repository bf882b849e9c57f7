"""Measures methods and baselines on the offline tasks, as `ssmoe evaluate --tasks offline` does, and writes one report.

    python benchmarks/offline.py --output benchmarks/results/offline.md

What the result folder holds already is not measured again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ssmoe_embed.common.files import atomic_file
from ssmoe_embed.embedding.methods import Method
from ssmoe_embed.evaluation.baselines import BASELINES
from ssmoe_embed.evaluation.mteb.runner import EvaluationReport, evaluate
from ssmoe_embed.evaluation.mteb.runs import grid
from ssmoe_embed.evaluation.results.summary import summary
from ssmoe_embed.evaluation.significance import comparison
from ssmoe_embed.evaluation.tasks.offline import add_task, retrieval_task

METHODS = [str(method) for method in Method]
COMPARED = ["ssmoe:smoe", "ssmoe:moee", "smoe:tfidf-words", "smoe:chance"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["ssmoe/tiny"], metavar="MODEL", help="default: ssmoe/tiny")
    parser.add_argument("--methods", nargs="+", default=METHODS, metavar="METHOD", help=f"default: {' '.join(METHODS)}")
    parser.add_argument(
        "--baselines", nargs="*", default=list(BASELINES), metavar="BASELINE", help=f"default: {' '.join(BASELINES)}"
    )
    parser.add_argument("--tasks", nargs="+", default=["offline"], metavar="TASK", help="default: offline")
    parser.add_argument("--extra", type=Path, nargs="+", default=[], metavar="FILE", help="retrieval tasks of your own")
    parser.add_argument("--corrupt", nargs="+", default=["none", "replace@0.015"], metavar="HOW")
    parser.add_argument(
        "--compare",
        nargs="*",
        default=COMPARED,
        metavar="ONE:OTHER",
        help="methods or baselines to compare by bootstrap",
    )
    parser.add_argument("--resamples", type=int, default=10_000)
    parser.add_argument("--results", type=Path, default=Path("build/offline"), help="result folder")
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    options = parser.parse_args(arguments)
    if options.output and options.output.suffix != ".md":
        parser.error(f"--output {options.output}: the name must end in .md")
    if wrong := [pair for pair in options.compare if pair.count(":") != 1]:
        parser.error(f"--compare {wrong[0]}: write two methods as ssmoe:smoe")
    tasks = list(options.tasks)
    for task in map(retrieval_task, options.extra):
        add_task(task)
        tasks.append(task.metadata.name)
    runs = grid(options.methods, corruptions=options.corrupt)
    report = evaluate(options.models, tasks, runs, options.results, baselines=options.baselines)
    if report.failures:
        raise SystemExit("\n".join(map(str, report.failures)))
    pairs = [(one, other) for one, _, other in (pair.partition(":") for pair in options.compare)]
    text = markdown(report, pairs, options.resamples)
    print(text, end="")
    if options.output:
        with atomic_file(options.output) as file:
            file.write(text.encode())


def markdown(report: EvaluationReport, pairs: Sequence[tuple[str, str]], resamples: int) -> str:
    """The summary of all results, then the comparisons."""
    parts = [summary(report.scores(), report.folder.rates()).markdown()]
    for one, other in pairs:
        lines = comparison.compare_methods(report.folder, one, other, resamples=resamples)
        parts.append(comparison.report(lines, one, other).markdown())
    return "\n".join(parts)


if __name__ == "__main__":
    main()
