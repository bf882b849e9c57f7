"""`ssmoe submit`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from ssmoe_embed.cli.options import Device, Dtype, NewFolder, Replace, check_results, given

if TYPE_CHECKING:
    from ssmoe_embed.evaluation.leaderboard.submission import Submission


def submit(
    results: Annotated[Path, typer.Argument(metavar="DIR", help="Result folder of `ssmoe evaluate`.")],
    output: NewFolder,
    tasks: Annotated[
        list[str] | None,
        typer.Option(help="The benchmark, or tasks: all must have been measured.  [default: 'MTEB(eng, v2)']"),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Which of the measured models.")] = None,
    revision: Annotated[str | None, typer.Option(help="Which of its revisions.")] = None,
    mock_run: Annotated[
        bool, typer.Option("--mock-run/--no-mock-run", help="Load the model and run mteb's mock tasks.")
    ] = True,
    device: Device = None,
    dtype: Dtype = None,
    overwrite: Replace = False,
) -> None:
    """Prepare a submission to mteb's leaderboard.

    It creates a folder; nothing is uploaded.

    Only a hub model's own settings on clean texts are taken, and only a complete benchmark. See docs/leaderboard.md.

    Example: ssmoe submit results --tasks 'MTEB(eng, v2)' --model ORG/NAME --output submission
    """
    from ssmoe_embed.common.lazy import require_mteb

    check_results(results)
    require_mteb()
    from ssmoe_embed.evaluation.leaderboard.submission import prepare_submission
    from ssmoe_embed.evaluation.mteb.models import load_encoder
    from ssmoe_embed.evaluation.results.folder import ResultFolder
    from ssmoe_embed.evaluation.tasks.finding import find_tasks

    def encoder(name: str, commit: str) -> Any:
        return load_encoder(name, revision=commit, **given(device=device, dtype=dtype))

    submission = prepare_submission(
        ResultFolder(results),
        output,
        find_tasks(tasks or ["MTEB(eng, v2)"]),
        model=model,
        revision=revision,
        load=encoder if mock_run else None,
        overwrite=overwrite,
    )
    _show(submission)


def _show(submission: Submission) -> None:
    """Print what was made and what comes next."""
    lines = [
        f"{submission.folder}: {submission.model} at {submission.revision}, {len(submission.tasks)} tasks, measured with "
        f"mteb {submission.version}."
    ]
    if submission.unknown:
        lines.append(f"Fill in by hand in ssmoe_models.py: {', '.join(submission.unknown)}.")
    if not submission.mock_run:
        lines.append("The mock run was left out; a pull request to mteb needs it.")
    lines += ["Next: docs/leaderboard.md, and when the model is in mteb:", f"  {submission.command}"]
    console = Console()
    for line in lines:
        console.print(Text(line), soft_wrap=True)
