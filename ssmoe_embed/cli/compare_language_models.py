"""`ssmoe compare` for the result folders of `ssmoe lm-eval`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text

from ssmoe_embed.common.files import atomic_file

LM_EVAL = "lm_eval.json"
"""The file that tells such a folder."""


def compare_language_models(results: Path, output: Path | None, *, with_paper: bool, stands_for: str | None) -> None:
    """Put the results beside the paper's.

    Args:
        results: The folder.
        output: A .md or .csv file to write too.
        with_paper: Whether the paper was asked for, the only thing that these results are compared with.
        stands_for: Which of the paper's models was measured, if its name does not tell.

    Raises:
        ValueError: Something else was asked for, or the paper has no such model.
    """
    from ssmoe_embed.evaluation.harness.results import GridFolder
    from ssmoe_embed.evaluation.paper import language_model_comparison as comparison

    if not with_paper:
        raise ValueError(
            f"{results} holds results of `ssmoe lm-eval`; add --with paper. Its report.md compares the routings themselves."
        )
    folder = GridFolder(results)
    lines = comparison.compare_with_paper(folder, stands_for)
    table, notes = comparison.table(lines), comparison.notes(folder)
    console = Console()
    console.print(table.rich())
    for note in notes:
        console.print(Text(note, style="dim"))
    if output is not None:
        listed = "".join(f"- {note}\n" for note in notes)
        text = comparison.csv_text(lines) if output.suffix == ".csv" else f"{table.markdown()}\n{listed}"
        with atomic_file(output) as file:
            file.write(text.encode())
