"""`ssmoe sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from ssmoe_embed.cli import options as opts
from ssmoe_embed.common.choices import unknown

if TYPE_CHECKING:
    from ssmoe_embed.common.tables import Report
    from ssmoe_embed.evaluation.sweep.running import Axis, SweepResult


def sweep(
    model: Annotated[str, typer.Argument(help="Folder, hub id or recipe name.")],
    alpha: Annotated[
        list[float] | None, typer.Option(help="Shares of the spectral router, such as 0 0.5 0.9 1.")
    ] = None,
    top_c: Annotated[
        list[str] | None, typer.Option(help="Eigenvectors averaged per matrix: counts or fractions, such as 5 50 0.05.")
    ] = None,
    method: Annotated[list[str] | None, typer.Option(help="Methods, such as smoe moee ssmoe.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Templates, such as none prompteol echo metaeol.")] = None,
    hidden_layer: Annotated[list[int] | None, typer.Option(help="Layers that are read, such as -1 -2 -4.")] = None,
    calibration: Annotated[list[str] | None, typer.Option(help="Calibrations: none, standardize, whiten.")] = None,
    vary: Annotated[
        list[str] | None, typer.Option(help="Any other setting: name=value,value such as mix=probs,logits.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option(help="Settings that stay the same, such as combination=sum.")
    ] = None,
    tasks: Annotated[
        list[str] | None, typer.Option(help="paper, offline, a benchmark, or tasks of mteb.  [default: offline]")
    ] = None,
    corrupt: Annotated[str, typer.Option(help="none, replace@RATE or insert@RATE.")] = "none",
    with_: Annotated[str | None, typer.Option("--with", help="paper: compare with the paper's table 6.")] = None,
    output: opts.ResultFolderTo = Path("sweep"),
    overwrite: opts.MeasureAgain = False,
    batch_size: opts.BatchSize = 32,
    device: opts.Device = None,
    dtype: opts.Dtype = None,
    device_map: opts.DeviceMap = None,
    trust_remote_code: opts.TrustRemoteCode = False,
    quiet: opts.Quiet = False,
) -> None:
    """Measure a model at every combination of settings.

    Writes sweep.md, sweep.csv and sweep.png into the result folder. Run again, the same command resumes where it stopped.

    Example: ssmoe sweep ssmoe/olmoe-7b --alpha 0 0.5 0.9 1 --top-c 5 50 --tasks EmotionClassification --with paper
    """
    if with_ not in (None, "paper"):
        raise ValueError(unknown("with", with_, ["paper"]))
    values: dict[str, list[Any] | None] = {"top_c": top_c, "hidden_layer": hidden_layer, "method": method}
    values |= {"prompt": prompt, "calibration": calibration, "alpha": alpha}
    from ssmoe_embed.common.lazy import require_mteb

    require_mteb()
    axes = _axes(values, vary or [])
    from ssmoe_embed.evaluation.mteb.runner import EvaluationOptions
    from ssmoe_embed.evaluation.mteb.runs import grid, parse_settings
    from ssmoe_embed.evaluation.sweep.report import report, write_report
    from ssmoe_embed.evaluation.sweep.running import sweep as run

    runs = grid(corruptions=[corrupt])
    if len(runs) != 1:
        raise ValueError(f"corrupt={corrupt!r} is several corruptions; sweep over settings with one at a time.")
    loading: dict[str, Any] = opts.given(
        device=device, model_kwargs=opts.given(dtype=dtype, device_map=device_map) or None
    )
    result = run(
        model,
        axes,
        tasks or ["offline"],
        output,
        corruption=runs[0].on_texts,
        settings=parse_settings(settings or []),
        options=EvaluationOptions(batch_size=batch_size, overwrite=overwrite, progress=not quiet),
        trust_remote_code=trust_remote_code,
        **loading,
    )
    written = write_report(result, output, with_paper=with_ is not None)
    _show(result, report(result, with_paper=with_ is not None))
    typer.echo(", ".join(map(str, written)), err=True)
    if result.missing:
        raise typer.Exit(1)


def _axes(values: dict[str, list[Any] | None], vary: list[str]) -> list[Axis]:
    """The axes in a fixed order: what needs the most work for another value first."""
    from ssmoe_embed.evaluation.sweep.running import Axis, points

    axes = [Axis.of_texts(name, given_values) for name, given_values in values.items() if given_values]
    axes += [Axis.parse(text) for text in vary]
    points(axes)  # refuses none at all, and one twice
    return axes


def _show(result: SweepResult, shown: Report) -> None:
    """Print the report, and what failed."""
    Console().print(shown.rich())
    for failure in result.failures:
        Console(stderr=True).print(Text(f"Failed: {failure}", style="red"))
