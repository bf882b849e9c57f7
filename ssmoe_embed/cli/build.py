"""`ssmoe build`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from ssmoe_embed.cli import options as opts


def build(
    base: Annotated[str, Argument(help="Folder or hub id of the Mixture-of-Experts language model.")],
    output: opts.NewFolder,
    method: Annotated[str | None, Option(help=f"{opts.METHODS}.  [default: ssmoe]")] = None,
    alpha: opts.Share = None,
    prompt: Annotated[
        str | None, Option(help="Template by name or one of your own with {text}.  [default: none]")
    ] = None,
    also_prompt: Annotated[
        list[str] | None, Option(help="Fit the calibration for this prompt too; may be repeated.")
    ] = None,
    calibration: Annotated[
        str | None, Option(help="none, standardize, whiten or batch.  [default: standardize]")
    ] = None,
    calibration_texts: Annotated[
        Path | None,
        Option(help="Text file to fit the calibration on, one text per line; by default the sample in the package."),
    ] = None,
    combination: Annotated[str | None, Option(help="concat or sum.  [default: concat]")] = None,
    routing_weight: Annotated[float | None, Option(help="Weight of the routing block in a sum.")] = None,
    hidden_layer: Annotated[int | None, Option(help="Layer whose hidden state is read.  [default: -1]")] = None,
    max_seq_length: Annotated[int | None, Option(help="Maximum number of tokens per text.  [default: 512]")] = None,
    top_c: opts.TopC = None,
    select: Annotated[str | None, Option(help="router or average.  [default: router]")] = None,
    sign: Annotated[str | None, Option(help="aligned, canonical or raw.  [default: aligned]")] = None,
    scale: Annotated[str | None, Option(help="none or router.  [default: none]")] = None,
    exclude_common: Annotated[
        int | None, Option(min=0, help="Rank of what experts share that is left out first.  [default: 0]")
    ] = None,
    revision: opts.Revision = None,
    dtype: Annotated[str | None, Option(help="float32, bfloat16 or float16; by default the checkpoint's own.")] = None,
    quantize: Annotated[
        str | None,
        Option(help="Keep the base model, experts included, in 4 bits: nf4, nf4-experts or paper-nf4."),
    ] = None,
    device_map: opts.DeviceMap = None,
    license_: Annotated[str | None, Option("--license", help="The base model's licence, for the card.")] = None,
    include_base: Annotated[bool, Option("--include-base", help="Copy the base model into the folder.")] = False,
    trust_remote_code: opts.TrustRemoteCode = False,
    batch_size: Annotated[int | None, Option(min=1, help="Batch size: texts per forward pass.  [default: 32]")] = None,
    overwrite: opts.Replace = False,
    quiet: opts.Quiet = False,
) -> None:
    """Build an embedding model from a language model.

    Writes a small repository (spectral routers, calibration, configuration, model card) that points to the base model.

    Example: ssmoe build allenai/OLMoE-1B-7B-0924 --output ssmoe/olmoe-7b
    """
    from ssmoe_embed.hub import models
    from ssmoe_embed.search.reading.records import ReadOptions
    from ssmoe_embed.search.reading.tables import read_texts

    settings = opts.given(
        method=method,
        alpha=alpha,
        prompt=prompt,
        calibration=calibration,
        combination=combination,
        routing_weight=routing_weight,
        hidden_layer=hidden_layer,
        max_seq_length=max_seq_length,
        top_c=top_c,
        select=select,
        sign=sign,
        scale=scale,
        exclude_common=exclude_common,
    )
    sample: list[str] | None = None
    if calibration_texts is not None:
        sample = [text for text in read_texts(calibration_texts, ReadOptions()) if text.strip()]
    folder = models.build(
        base,
        output,
        prompts=also_prompt or (),
        calibration_texts=sample,
        revision=revision,
        dtype=dtype,
        quantize=quantize,
        license=license_,
        include_base=include_base,
        trust_remote_code=trust_remote_code,
        model_kwargs=opts.given(device_map=device_map) or None,
        batch_size=batch_size,
        overwrite=overwrite,
        progress=not quiet,
        inspect=None
        if quiet
        else lambda module: typer.echo(f"Base model in memory:\n{opts.memory_lines(module)}", err=True),
        **settings,
    )
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    typer.echo(f"{folder}  ({size / 1e6:.1f} MB)", err=True)
