"""`ssmoe compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer import Argument, Option

from ssmoe_embed.cli import options as opts
from ssmoe_embed.common.files import write_files

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

    from ssmoe_embed.common.tables import Report
    from ssmoe_embed.evaluation.results.folder import ResultFolder

_LM_EVAL = "lm_eval.json"
"""The file that tells a result folder of `ssmoe lm-eval`."""


def compare(
    results: Annotated[Path, Argument(metavar="DIR", help="Result folder of `ssmoe evaluate` or `ssmoe lm-eval`.")],
    with_: Annotated[
        str | None,
        Option(
            "--with",
            callback=opts.one_of("with", ["paper"]),
            help="paper: compare with the scores printed in the SSMoE paper.",
        ),
    ] = None,
    methods: Annotated[
        list[str] | None,
        Option(help="Two methods (or baselines) to compare by bootstrap; with --with paper, the methods to show."),
    ] = None,
    tasks: Annotated[
        list[str] | None, Option(help="Only these tasks, for a comparison of two methods.  [default: all]")
    ] = None,
    dataset_dir: Annotated[
        Path | None,
        Option(help="Folder with the tasks' data that two methods were measured on: see docs/offline.md."),
    ] = None,
    model: Annotated[str | None, Option("--model", "-m", help="Only this one of the measured models.")] = None,
    stands_for: Annotated[
        str | None, Option("--as", help="Which of the paper's models this is, if its name does not tell.")
    ] = None,
    corrupt: Annotated[
        str | None,
        Option(help="The one corruption to show, such as replace@0.015; for two methods also clean.  [default: all]"),
    ] = None,
    resamples: Annotated[int, Option(min=100, help="Resamples of the bootstrap.")] = 10_000,
    seed: Annotated[int, Option(help="Seed of the bootstrap.")] = 0,
    output: Annotated[
        Path | None,
        Option("--output", "-o", callback=opts.in_existing_folder, help="Also write the tables: .md or .csv."),
    ] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace the output file.")] = False,
) -> None:
    """Compare two methods, or measured scores with the paper's.

    Two methods are compared by bootstrap, with intervals and p-values.

    Example: ssmoe compare results --methods ssmoe smoe
    """
    opts.check_results(results)
    if output is not None and output.suffix not in (".md", ".csv"):
        raise ValueError(f"The output {str(output)!r} is neither a .md nor a .csv file.")
    if output is not None and output.exists() and not overwrite:
        raise FileExistsError(f"{output} exists already; choose another output or pass --overwrite.")
    if (results / _LM_EVAL).is_file():
        _language_models(results, output, with_paper=with_ is not None, stands_for=stands_for)
        return
    from ssmoe_embed.common.lazy import require_mteb

    require_mteb()
    from ssmoe_embed.evaluation.results.folder import ResultFolder

    folder = ResultFolder(results)
    drawing = {"resamples": resamples, "seed": seed}
    if with_ is not None:
        if tasks:
            raise ValueError("--tasks is for comparing two methods; the comparison with the paper shows all its tasks.")
        options: dict[str, Any] = {"model": model, "corrupt": corrupt}
        if not _images(folder, output, options | drawing, stands_for, dataset_dir):
            _with_paper(folder, output, options | {"stands_for": stands_for, "methods": methods})
        return
    if stands_for is not None:
        raise ValueError("--as is for the comparison with the paper; add --with paper.")
    if not methods or len(methods) != 2:
        raise ValueError("Name what to compare: --with paper, or two methods such as --methods ssmoe smoe.")
    _two_methods(folder, methods, tasks, dataset_dir, output, {"model": model, "corruption": corrupt} | drawing)


def _local_tasks(folder: ResultFolder, names: list[str] | None, dataset_dir: Path) -> list[AbsTask]:
    """The tasks with their local data, which must be those that were measured on."""
    from ssmoe_embed.evaluation.tasks.finding import find_tasks
    from ssmoe_embed.evaluation.tasks.local_data import LocalData, use_local

    measured = {score.task: score.local_data for score in folder.scores() if score.local_data}
    if not measured:
        raise ValueError(f"{folder.path} holds no result on local data; leave --dataset-dir out.")
    found = [use_local(task, LocalData(dataset_dir)) for task in find_tasks(names or sorted(measured))]
    for task in found:
        if measured.get(task.metadata.name, task.metadata.revision) != task.metadata.revision:
            raise ValueError(
                f"{task.metadata.name} was measured on other data ({measured[task.metadata.name]}) than {dataset_dir} holds "
                f"({task.metadata.revision}); name the folder that was measured on."
            )
    return found


def _language_models(results: Path, output: Path | None, *, with_paper: bool, stands_for: str | None) -> None:
    from ssmoe_embed.evaluation.harness.results import GridFolder
    from ssmoe_embed.evaluation.paper import language_models as comparison

    if not with_paper:
        raise ValueError(
            f"{results} holds results of `ssmoe lm-eval`; add --with paper. Its report.md compares the routings themselves."
        )
    folder = GridFolder(results)
    numbers = comparison.compare_with_paper(folder, stands_for)
    _show([comparison.report(folder, numbers)], comparison.numbers_csv(numbers), output)


def _images(
    folder: ResultFolder,
    output: Path | None,
    options: dict[str, Any],
    stands_for: str | None,
    dataset_dir: Path | None,
) -> bool:
    """Compare with the paper's tables of images, if any of their tasks was measured."""
    from ssmoe_embed.evaluation.paper import images

    if stands_for not in (None, images.MODEL):
        return False
    scores = [one for one in folder.scores() if one.task in images.IMAGE_TASKS]
    if not scores:
        return False
    from ssmoe_embed.evaluation.tasks.finding import find_tasks

    names = sorted({one.task for one in scores})
    found = _local_tasks(folder, names, dataset_dir) if dataset_dir is not None else find_tasks(names)
    tasks = {task.metadata.name: task for task in found}
    lines = images.compare_images(folder, tasks, **options)
    model = options["model"] or scores[0].model
    _show([images.report(lines, model)], images.pairs_csv(lines, model), output)
    return True


def _with_paper(folder: ResultFolder, output: Path | None, options: dict[str, Any]) -> None:
    from ssmoe_embed.evaluation.paper.comparison import compare_with_paper, comparisons_csv, report

    comparisons = compare_with_paper(folder.scores(), **options)
    _show([report(one) for one in comparisons], comparisons_csv(comparisons), output)


def _two_methods(
    folder: ResultFolder,
    methods: Sequence[str],
    tasks: list[str] | None,
    dataset_dir: Path | None,
    output: Path | None,
    options: dict[str, Any],
) -> None:
    local = None if dataset_dir is None else _local_tasks(folder, tasks, dataset_dir)
    from ssmoe_embed.evaluation.significance.comparison import compare_methods, differences_csv, report
    from ssmoe_embed.evaluation.tasks.finding import find_tasks

    found = local or (find_tasks(tasks) if tasks else None)
    lines = compare_methods(folder, *methods, tasks=found, **options)
    _show([report(lines, *methods)], differences_csv(lines, *methods), output)
    if all(line.bootstrap is None for line in lines):
        raise typer.Exit(1)


def _show(reports: Sequence[Report], csv: str, output: Path | None) -> None:
    """Print reports, and write them or the CSV where an output is named."""
    for one in reports:
        Console().print(one.rich())
    if output is not None:
        shown = csv if output.suffix == ".csv" else "\n".join(one.markdown() for one in reports)
        write_files(output.parent, {output.name: shown})
