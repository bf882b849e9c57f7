"""`ssmoe lm-eval`, `drop` and `steer`: causal language models under a routing, with fewer experts, or favouring some."""

from __future__ import annotations

from heapq import nlargest
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer import Option

from ssmoe_embed.cli import options as opts
from ssmoe_embed.common.files import write_files


def drop(
    base: opts.LanguageModel,
    output: opts.NewFolder,
    keep: Annotated[float, Option(help="Fraction of each layer's experts to keep, rounded up.")] = 0.75,
    by: Annotated[
        str,
        Option(help="Scores by which experts are kept: random, router, ssmoe; or a routing, such as steer:table=FILE."),
    ] = "ssmoe",
    calibration: opts.ExpertCalibration = None,
    calibration_tokens: Annotated[int, Option(help="How many tokens of that text are read at most.")] = 32_768,
    alpha: opts.Share = None,
    top_c: opts.TopC = None,
    seed: Annotated[int, Option(help="Seed of --by random.")] = 0,
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
        **opts.hub_loading(device_map, revision, trust_remote_code),
    )
    typer.echo(f"{output}: {dropped}")


def steer(
    base: opts.LanguageModel,
    texts: Annotated[Path, Option(help="Text file of the domain, one text per line.")],
    output: Annotated[
        Path,
        Option("--output", "-o", callback=opts.in_existing_folder, help="Table to write, a .safetensors file."),
    ] = Path("steering.safetensors"),
    by: Annotated[
        str,
        Option(
            help="What tells the domain's experts: saliency (gradients, as published), or frequency (compared with a "
            "background corpus)."
        ),
    ] = "saliency",
    background: Annotated[
        Path | None, Option(help="Background texts for frequency; by default a sample in the package.")
    ] = None,
    max_texts: Annotated[int, Option(min=16, help="Texts to read, spread evenly over the file.")] = 100,
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
    from ssmoe_embed.common.loading import HubOptions
    from ssmoe_embed.evaluation.texts import file_sample, shipped_sample
    from ssmoe_embed.language_model import load, load_tokenizer
    from ssmoe_embed.language_model.steering import SteerBy, steering_table

    chosen = SteerBy.parse(by, "by")
    domain = file_sample(texts, max_texts).texts
    other = shipped_sample(max_texts) if background is None else file_sample(background, max_texts)
    loading = opts.hub_loading(device_map, revision, trust_remote_code)
    model = load(base, dtype=dtype, progress=not quiet, **loading)
    tokenizer = load_tokenizer(base, HubOptions.among(loading))
    table = steering_table(model, tokenizer, domain, chosen, background=other.texts, progress=not quiet)
    table.save(output)
    scores = (
        (float(value), layer, expert) for layer, values in table.scores.items() for expert, value in enumerate(values)
    )
    best = nlargest(5, scores)
    shown = ", ".join(f"layer {layer} expert {expert} ({value:.3g})" for value, layer, expert in best)
    typer.echo(f"{output}: {shown}, …")


def lm_eval(
    base: opts.LanguageModel,
    routing: Annotated[
        list[str] | None,
        Option(
            help="original, ssmoe, ev, average-ev, random, hash; random-drop, router-drop, ssmoe-drop; or a routing with "
            "any dropping, such as ev+router-drop; others of docs/routers.md, such as usmoe:causal=true; or grid: all "
            "that the paper compares.  [default: grid]"
        ),
    ] = None,
    keep: Annotated[float, Option(help="Fraction of the experts to keep where some are dropped.")] = 0.75,
    tasks: Annotated[
        list[str] | None,
        Option(help="paper, mmlu, offline, or tasks of lm-evaluation-harness.  [default: offline]"),
    ] = None,
    dataset_dir: opts.DatasetDir = None,
    num_fewshot: Annotated[
        int | None,
        Option(min=0, help="Examples in each prompt, 5 or 10 in the paper; by default the task's own."),
    ] = None,
    limit: Annotated[int | None, Option(min=1, help="Only the first examples of each task.")] = None,
    perplexity: Annotated[Path | None, Option(help="Text file to measure the perplexity of, too.")] = None,
    calibration: opts.ExpertCalibration = None,
    alpha: opts.Share = None,
    mix: Annotated[str | None, Option(help="probs or logits.  [default: probs]")] = None,
    top_c: opts.TopC = None,
    scale: Annotated[str | None, Option(help="none or router.  [default: none]")] = None,
    seed: Annotated[int, Option(help="Seed of random routing, hash routing and random dropping.")] = 0,
    batch_size: Annotated[int, Option(min=1, help="Batch size: requests per forward pass.")] = 8,
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
    from ssmoe_embed.evaluation.harness.results import report, scores_csv
    from ssmoe_embed.evaluation.harness.running import run_grid
    from ssmoe_embed.evaluation.tasks.local_data import LocalData
    from ssmoe_embed.language_model import RoutingSettings

    cells: list[GridCell] = []
    for name in routing or ["grid"]:
        cells += GRID if name == "grid" else [GridCell.parse(name)]
    settings: dict[str, Any] = opts.given(alpha=alpha, mix=mix, top_c=top_c, scale=scale, seed=seed)
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
        loading=opts.hub_loading(device_map, revision, trust_remote_code),
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
