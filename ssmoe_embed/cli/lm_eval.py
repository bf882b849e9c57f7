"""`ssmoe lm-eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ssmoe_embed.cli import options as opts
from ssmoe_embed.common.files import write_files


def lm_eval(
    base: Annotated[str, typer.Argument(help="Folder, hub id or recipe name of the language model.")],
    routing: Annotated[
        list[str] | None,
        typer.Option(
            help="original, ssmoe, ev, average-ev, random, hash; random-drop, router-drop, ssmoe-drop; or a routing with "
            "any dropping, such as ev+router-drop; others of docs/routers.md, such as usmoe:causal=true; or grid: all "
            "that the paper compares.  [default: grid]"
        ),
    ] = None,
    keep: Annotated[float, typer.Option(help="Fraction of the experts to keep where some are dropped.")] = 0.75,
    tasks: Annotated[
        list[str] | None,
        typer.Option(help="paper, mmlu, offline, or tasks of lm-evaluation-harness.  [default: offline]"),
    ] = None,
    dataset_dir: opts.DatasetDir = None,
    num_fewshot: Annotated[
        int | None,
        typer.Option(min=0, help="Examples in each prompt, 5 or 10 in the paper; by default the task's own."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first examples of each task.")] = None,
    perplexity: Annotated[Path | None, typer.Option(help="Text file to measure the perplexity of, too.")] = None,
    calibration: opts.ExpertCalibration = None,
    alpha: opts.Share = None,
    mix: Annotated[str | None, typer.Option(help="probs or logits.  [default: probs]")] = None,
    top_c: opts.TopC = None,
    scale: Annotated[str | None, typer.Option(help="none or router.  [default: none]")] = None,
    seed: Annotated[int, typer.Option(help="Seed of random routing, hash routing and random dropping.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Batch size: requests per forward pass.")] = 8,
    dtype: opts.Dtype = None,
    device_map: opts.DeviceMap = None,
    revision: opts.Revision = None,
    trust_remote_code: opts.TrustRemoteCode = False,
    output: opts.ResultFolderTo = Path("lm-eval"),
    quiet: opts.Quiet = False,
) -> None:
    """Measure a language model under several routings.

    With all of its experts and with fewer, on tasks of lm-evaluation-harness.

    Writes report.md and report.csv into the result folder. Run again, the same command resumes
    where it stopped; `ssmoe compare DIR --with paper` compares the results with the paper's.

    Example: ssmoe lm-eval openai/gpt-oss-20b --tasks paper --num-fewshot 10 --output results
    """
    from ssmoe_embed.evaluation.harness.grid import GRID, GridCell, GridOptions
    from ssmoe_embed.evaluation.harness.report import report, scores_csv
    from ssmoe_embed.evaluation.harness.running import run_grid
    from ssmoe_embed.evaluation.tasks.local_data import LocalData
    from ssmoe_embed.language_model import RoutingSettings

    cells: list[GridCell] = []
    for name in routing or ["grid"]:
        cells += GRID if name == "grid" else [GridCell.parse(name)]
    settings: dict[str, Any] = opts.given(alpha=alpha, mix=mix, top_c=top_c, scale=scale, seed=seed)
    loading = opts.given(device_map=device_map, revision=revision, trust_remote_code=trust_remote_code or None)
    options = GridOptions(
        keep=keep,
        num_fewshot=num_fewshot,
        limit=limit,
        settings=RoutingSettings(**settings),
        calibration=calibration,
        seed=seed,
        batch_size=batch_size,
        text=perplexity,
        dtype=dtype,
        loading=loading,
        data=None if dataset_dir is None else LocalData(dataset_dir),
        progress=not quiet,
    )
    folder = run_grid(
        base,
        list(dict.fromkeys(cells)),
        tasks or ["offline"],
        output,
        options,
        on_cell=None if quiet else lambda cell: typer.echo(f"Measuring {cell.name} …", err=True),
    )
    shown = report(folder)
    written = write_files(output, {"report.md": shown.markdown(), "report.csv": scores_csv(folder)})
    Console().print(shown.rich())
    typer.echo(", ".join(map(str, written)), err=True)
