"""`ssmoe drop` and `ssmoe steer`: which experts of a language model are left, and which are favoured."""

from __future__ import annotations

from pathlib import Path
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


def steer(
    base: Annotated[str, typer.Argument(help="Folder, hub id or recipe name of the language model.")],
    texts: Annotated[Path, typer.Option(help="Text file of the domain, one text per line.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", callback=opts.in_existing_folder, help="Table to write, a .safetensors file."),
    ] = Path("steering.safetensors"),
    by: Annotated[
        str,
        typer.Option(
            help="What tells the domain's experts: saliency (gradients, as published), or frequency (compared with a "
            "background corpus)."
        ),
    ] = "saliency",
    background: Annotated[
        Path | None, typer.Option(help="Background texts for frequency; by default a sample in the package.")
    ] = None,
    max_texts: Annotated[int, typer.Option(min=16, help="Texts to read, spread evenly over the file.")] = 100,
    dtype: opts.Dtype = None,
    device_map: opts.DeviceMap = None,
    revision: opts.Revision = None,
    trust_remote_code: opts.TrustRemoteCode = False,
    quiet: opts.Quiet = False,
) -> None:
    """Score a language model's experts on a domain's texts, to favour those that are the domain's.

    The table is used by name, wherever a routing is named: steer:table=FILE,pairs=20,strength=5

    Example: ssmoe steer allenai/OLMoE-1B-7B-0924 --texts chemistry.txt --output chemistry.safetensors
    """
    from ssmoe_embed.common.hub import HubOptions
    from ssmoe_embed.evaluation.texts import file_sample, shipped_sample
    from ssmoe_embed.language_model import load, load_tokenizer
    from ssmoe_embed.language_model.steering import SteerBy, steering_table

    chosen = SteerBy.parse(by, "by")
    domain = file_sample(texts, max_texts).texts
    other = shipped_sample(max_texts) if background is None else file_sample(background, max_texts)
    loading: dict[str, Any] = opts.given(
        device_map=device_map, revision=revision, trust_remote_code=trust_remote_code or None
    )
    model = load(base, dtype=dtype, progress=not quiet, **loading)
    tokenizer = load_tokenizer(base, HubOptions.among(loading))
    table = steering_table(model, tokenizer, domain, chosen, background=other.texts, progress=not quiet)
    table.save(output)
    best = sorted(
        (
            (float(value), layer, expert)
            for layer, values in table.scores.items()
            for expert, value in enumerate(values)
        ),
        reverse=True,
    )
    shown = ", ".join(f"layer {layer} expert {expert} ({value:.3g})" for value, layer, expert in best[:5])
    typer.echo(f"{output}: {shown}, …")
