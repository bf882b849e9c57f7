"""`ssmoe compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from ssmoe_embed.cli.compare_language_models import LM_EVAL, compare_language_models
from ssmoe_embed.cli.options import in_existing_folder
from ssmoe_embed.common.choices import unknown
from ssmoe_embed.common.files import atomic_file

if TYPE_CHECKING:
    from ssmoe_embed.evaluation.results.folder import ResultFolder

PAPER = "paper"
_WRITERS = {".md": "markdown", ".csv": "csv_text"}


def compare(
    results: Annotated[
        Path, typer.Argument(metavar="DIR", help="Result folder of `ssmoe evaluate` or `ssmoe lm-eval`.")
    ],
    with_: Annotated[
        str | None, typer.Option("--with", help="paper: put the scores that the SSMoE paper printed beside them.")
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            help="Two methods (or baselines) to compare by bootstrap; with --with paper, the methods to show."
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None, typer.Option(help="Only these tasks, for a comparison of two methods.  [default: all]")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Only this one of the measured models.")] = None,
    stands_for: Annotated[
        str | None, typer.Option("--as", help="Which of the paper's models it is, if its name does not tell.")
    ] = None,
    corrupt: Annotated[
        str | None,
        typer.Option(
            help="The one corruption to show, such as replace@0.015; for two methods also clean.  [default: all]"
        ),
    ] = None,
    resamples: Annotated[int, typer.Option(min=100, help="Resamples of the bootstrap.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", callback=in_existing_folder, help="Also write the tables: .md or .csv."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output file.")] = False,
) -> None:
    """Put measured scores beside the paper's, or two methods beside one another with intervals and p-values.

    Example: ssmoe compare results --methods ssmoe smoe
    """
    from ssmoe_embed.evaluation.results.folder import ResultFolder

    if with_ not in (None, PAPER):
        raise ValueError(unknown("with", with_, [PAPER]))
    if not results.is_dir():
        raise FileNotFoundError(
            f"There is no result folder {results}; make it with `ssmoe evaluate … --output {results}`."
        )
    _check_output(output, overwrite)
    if (results / LM_EVAL).is_file():
        compare_language_models(results, output, with_paper=with_ == PAPER, stands_for=stands_for)
        return
    folder = ResultFolder(results)
    if with_ == PAPER:
        if tasks:
            raise ValueError("--tasks is for comparing two methods; the comparison with the paper shows all its tasks.")
        _with_paper(folder, output, {"model": model, "stands_for": stands_for, "methods": methods, "corrupt": corrupt})
        return
    if stands_for is not None:
        raise ValueError("--as is for the comparison with the paper; add --with paper.")
    if not methods or len(methods) != 2:
        raise ValueError("Name what to compare: --with paper, or two methods such as --methods ssmoe smoe.")
    options = {"model": model, "corruption": corrupt, "resamples": resamples, "seed": seed}
    _two_methods(folder, methods, tasks, output, options)


def _with_paper(folder: ResultFolder, output: Path | None, options: dict[str, Any]) -> None:
    from ssmoe_embed.evaluation.paper import table as comparison_table
    from ssmoe_embed.evaluation.paper.comparison import compare_with_paper

    comparisons = compare_with_paper(folder.scores(), **options)
    console = Console()
    for one in comparisons:
        console.print(comparison_table.rich_tables(one))
    if output is not None:
        _write(output, getattr(comparison_table, _WRITERS[output.suffix])(comparisons))


def _two_methods(
    folder: ResultFolder, methods: Sequence[str], tasks: list[str] | None, output: Path | None, options: dict[str, Any]
) -> None:
    from ssmoe_embed.common.extras import require_mteb

    require_mteb()
    from ssmoe_embed.evaluation.significance import table as method_table
    from ssmoe_embed.evaluation.significance.comparison import CORRECTION, compare_methods
    from ssmoe_embed.evaluation.tasks.finding import find_tasks

    first, second = methods
    lines = compare_methods(folder, first, second, tasks=find_tasks(tasks) if tasks else None, **options)
    console = Console()
    for table in method_table.rich_tables(lines, first, second):
        console.print(table)
    console.print(Text(f"Points of 100. {CORRECTION}", style="dim"))
    if output is not None:
        _write(output, getattr(method_table, _WRITERS[output.suffix])(lines, first, second))
    if all(line.bootstrap is None for line in lines):
        raise typer.Exit(1)


def _check_output(output: Path | None, overwrite: bool) -> None:
    """Refuse an output that cannot be written before anything is computed."""
    if output is None:
        return
    if output.suffix not in _WRITERS:
        raise ValueError(f"The output {str(output)!r} is neither a .md nor a .csv file.")
    if output.exists() and not overwrite:
        raise FileExistsError(f"{output} exists already; choose another output or pass --overwrite.")


def _write(output: Path, text: str) -> None:
    with atomic_file(output) as file:
        file.write(text.encode())
