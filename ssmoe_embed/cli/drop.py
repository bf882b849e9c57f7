"""`ssmoe drop`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ssmoe_embed.cli import options as opts


def drop(
    base: Annotated[str, typer.Argument(help="Folder, hub id or recipe name of the language model.")],
    output: opts.NewFolder,
    keep: Annotated[float, typer.Option(help="Fraction of each layer's experts to keep, rounded up.")] = 0.75,
    by: Annotated[
        str,
        typer.Option(
            help="Scores by which experts are kept: random, router, ssmoe; or a routing, such as steer:table=FILE."
        ),
    ] = "ssmoe",
    calibration: opts.ExpertCalibration = None,
    calibration_tokens: Annotated[int, typer.Option(help="How many tokens of that text are read at most.")] = 32_768,
    alpha: opts.Share = None,
    top_c: opts.TopC = None,
    seed: Annotated[int, typer.Option(help="Seed of --by random.")] = 0,
    dtype: opts.Dtype = None,
    device_map: opts.DeviceMap = None,
    revision: opts.Revision = None,
    trust_remote_code: opts.TrustRemoteCode = False,
    overwrite: opts.Replace = False,
    quiet: opts.Quiet = False,
) -> None:
    """Remove experts from a language model.

    The experts with the lowest scores are dropped; what is left is written as an ordinary transformers checkpoint.

    Example: ssmoe drop openai/gpt-oss-20b --keep 0.75 --by ssmoe --calibration notes.txt --output gpt-oss-15b
    """
    from ssmoe_embed import language_model

    loading: dict[str, Any] = opts.given(
        device_map=device_map, revision=revision, trust_remote_code=trust_remote_code or None
    )
    settings = opts.given(alpha=alpha, top_c=top_c)
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
