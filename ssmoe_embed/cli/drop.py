"""`ssmoe drop`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ssmoe_embed.cli.options import DeviceMap, Dtype, Quiet, Revision, TopC, TrustRemoteCode, given


def drop(
    base: Annotated[str, typer.Argument(help="Folder, hub id or recipe name of the language model.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to create.")],
    keep: Annotated[float, typer.Option(help="Fraction of each layer's experts to keep, rounded up.")] = 0.75,
    by: Annotated[str, typer.Option(help="Scores by which experts are kept: random, router or ssmoe.")] = "ssmoe",
    calibration: Annotated[
        Path | None, typer.Option(help="Text file that experts are scored on; by default the sample in the package.")
    ] = None,
    calibration_tokens: Annotated[int, typer.Option(help="How many tokens of that text are read at most.")] = 32_768,
    alpha: Annotated[float | None, typer.Option(help="Share of the spectral router, 0 to 1.  [default: 0.5]")] = None,
    top_c: TopC = None,
    seed: Annotated[int, typer.Option(help="Seed of --by random.")] = 0,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output folder.")] = False,
    quiet: Quiet = False,
) -> None:
    """Remove experts from a language model.

    The experts with the lowest scores are dropped; what is left is written as an ordinary transformers checkpoint.

    Example: ssmoe drop openai/gpt-oss-20b --keep 0.75 --by ssmoe --calibration notes.txt --output gpt-oss-15b
    """
    from ssmoe_embed import language_model

    loading: dict[str, Any] = given(
        device_map=device_map, revision=revision, trust_remote_code=trust_remote_code or None
    )
    settings = given(alpha=alpha, top_c=top_c)
    dropped = language_model.drop(
        base,
        output,
        keep,
        by,
        calibration=calibration,
        calibration_tokens=calibration_tokens,
        settings=language_model.RoutingSettings(**settings),
        seed=seed,
        dtype=dtype,
        overwrite=overwrite,
        progress=not quiet,
        **loading,
    )
    typer.echo(f"{output}: {dropped}")
