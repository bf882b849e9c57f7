"""`ssmoe drop`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ssmoe_embed.cli.build import _number
from ssmoe_embed.cli.options import Quiet, given


def drop(
    base: Annotated[str, typer.Argument(help="Folder, hub id or recipe name of the language model.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to make.")],
    keep: Annotated[float, typer.Option(help="Fraction of each layer's experts that stays, rounded up.")] = 0.75,
    by: Annotated[str, typer.Option(help="random, router or ssmoe: what decides.")] = "ssmoe",
    calibration: Annotated[
        Path | None, typer.Option(help="Text that the experts are scored on; by default the sample in the package.")
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Share of the spectral router.  [default: 0.5]")] = None,
    top_c: Annotated[
        str | None, typer.Option(help="Eigenvectors kept of a matrix: 50, or a fraction such as 0.05.  [default: 50]")
    ] = None,
    seed: Annotated[int, typer.Option(help="For --by random.")] = 0,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; by default the checkpoint's own.")
    ] = None,
    device_map: Annotated[str | None, typer.Option(help="Where to put the model, such as cuda.")] = None,
    revision: Annotated[str | None, typer.Option(help="Hub revision of the model.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Allow code that comes with the model.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output folder.")] = False,
    quiet: Quiet = False,
) -> None:
    """Remove the least wanted experts of a language model and write what is left as a normal transformers checkpoint.

    Example: ssmoe drop openai/gpt-oss-20b --keep 0.75 --by ssmoe --calibration notes.txt --output gpt-oss-15b
    """
    from ssmoe_embed import language_model

    kwargs: dict[str, Any] = given(device_map=device_map, revision=revision) | (
        {"trust_remote_code": True} if trust_remote_code else {}
    )
    settings = given(alpha=alpha, top_c=None if top_c is None else _number(top_c))
    dropped = language_model.drop(
        base,
        output,
        keep,
        by,
        calibration=calibration,
        settings=language_model.RoutingSettings(**settings),
        seed=seed,
        dtype=dtype,
        overwrite=overwrite,
        progress=not quiet,
        **kwargs,
    )
    typer.echo(f"{output}: {dropped}")
