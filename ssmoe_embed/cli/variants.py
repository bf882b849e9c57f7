"""`ssmoe sweep` and `ssmoe ablate`: one model under many settings, and with its parts replaced."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer import Option

from ssmoe_embed.cli import options as opts


def sweep(
    model: opts.MeasuredModel,
    alpha: Annotated[list[float] | None, Option(help="Shares of the spectral router, such as 0 0.5 0.9 1.")] = None,
    top_c: Annotated[
        list[str] | None, Option(help="Eigenvectors averaged per matrix: counts or fractions, such as 5 50 0.05.")
    ] = None,
    method: Annotated[list[str] | None, Option(help="Methods, such as smoe moee ssmoe.")] = None,
    prompt: Annotated[list[str] | None, Option(help="Templates, such as none prompteol echo metaeol.")] = None,
    hidden_layer: Annotated[list[int] | None, Option(help="Layers that are read, such as -1 -2 -4.")] = None,
    calibration: Annotated[list[str] | None, Option(help="Calibrations: none, standardize, whiten.")] = None,
    vary: Annotated[
        list[str] | None, Option(help="Any other setting: name=value,value such as mix=probs,logits.")
    ] = None,
    settings: Annotated[list[str] | None, Option(help="Settings that stay the same, such as combination=sum.")] = None,
    tasks: Annotated[
        list[str] | None, Option(help="paper, offline, a benchmark, or tasks of mteb.  [default: offline]")
    ] = None,
    corrupt: Annotated[str, Option(help="none, replace@RATE or insert@RATE.")] = "none",
    with_: Annotated[
        str | None,
        Option("--with", callback=opts.one_of("with", ["paper"]), help="paper: compare with the paper's table 6."),
    ] = None,
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
    from ssmoe_embed.common.lazy import require_mteb

    require_mteb()
    from ssmoe_embed.evaluation.mteb.runner import EvaluationOptions
    from ssmoe_embed.evaluation.mteb.runs import grid, parse_settings
    from ssmoe_embed.evaluation.sweep.report import report, write_report
    from ssmoe_embed.evaluation.sweep.running import Axis, points
    from ssmoe_embed.evaluation.sweep.running import sweep as run

    # in a fixed order: what needs the most work for another value first
    varied: dict[str, list[Any] | None] = {"top_c": top_c, "hidden_layer": hidden_layer, "method": method}
    varied |= {"prompt": prompt, "calibration": calibration, "alpha": alpha}
    axes = [Axis.of_texts(name, values) for name, values in varied.items() if values]
    axes += map(Axis.parse, vary or [])
    points(axes)  # refuses none at all, and one twice
    runs = grid(corruptions=[corrupt])
    if len(runs) != 1:
        raise ValueError(f"corrupt={corrupt!r} is several corruptions; sweep over settings with one at a time.")
    result = run(
        model,
        axes,
        tasks or ["offline"],
        output,
        corruption=runs[0].on_texts,
        settings=parse_settings(settings or []),
        options=EvaluationOptions(batch_size=batch_size, overwrite=overwrite, progress=not quiet),
        trust_remote_code=trust_remote_code,
        **opts.embedding_loading(device, dtype, device_map),
    )
    written = write_report(result, output, with_paper=with_ is not None)
    Console().print(report(result, with_paper=with_ is not None).rich())
    for failure in result.failures:
        Console(stderr=True).print(Text(f"Failed: {failure}", style="red"))
    typer.echo(", ".join(map(str, written)), err=True)
    if result.missing:
        raise typer.Exit(1)


_CORRUPT = "replace@0.2"
_TASKS = ["WordNetParaphrasePairClassification", "WordRelatednessSTS", "ReviewSnippetSentimentClassification"]


def ablate(
    model: opts.MeasuredModel,
    variant: Annotated[
        list[str] | None,
        Option(
            help="Variants beyond original and ev, or routings by name, such as competition; by default all variants.",
            show_default=False,
        ),
    ] = None,
    alpha: Annotated[
        list[float] | None,
        Option(help="Shares of the spectral router; tasks use the first.  [default: 0.5 1]"),
    ] = None,
    tasks: Annotated[
        list[str] | None, Option(help="Tasks of mteb, or none.  [default: three small offline tasks]")
    ] = None,
    text: Annotated[
        Path | None,
        Option(help="Text file, one document per line; by default definitions of words."),
    ] = None,
    other_text: Annotated[Path | None, Option(help="Text file of another kind; by default verses.")] = None,
    documents: Annotated[int, Option(min=16, help="Documents of each kind that are read.")] = 200,
    corrupt: Annotated[
        str,
        Option(help="Corruption under which the choice of experts is compared; of a CLIP-MoE noise, if any."),
    ] = _CORRUPT,
    seeds: Annotated[int, Option(min=1, help="Random draws per random variant.")] = 5,
    task_seeds: Annotated[int, Option(min=1, help="How many of these draws are measured on tasks.")] = 3,
    calibration_texts: Annotated[int, Option(min=16, help="Texts that each variant is calibrated on.")] = 512,
    output: opts.ResultFolderTo = Path("ablation"),
    batch_size: opts.BatchSize = 32,
    device: opts.Device = None,
    dtype: opts.Dtype = None,
    trust_remote_code: opts.TrustRemoteCode = False,
    quiet: opts.Quiet = False,
) -> None:
    """Take SSMoE apart: which of its parts has which effect.

    Compares the spectral router with random, permuted and other rows, and the choice of experts with their weights.

    Writes ablation.md, ablation.csv and ablation.png. Run again, the same command resumes where it stopped. A CLIP-MoE is
    measured on emoji, both towers at once, without a picture.

    Example: ssmoe ablate ssmoe/tiny --seeds 5 --output ablation
    """
    from ssmoe_embed.common.lazy import require_mteb, require_package

    require_mteb()
    from ssmoe_embed.evaluation.ablation.variants import find_variants
    from ssmoe_embed.vision.module import is_vision_model

    loading = opts.embedding_loading(device, dtype)
    if is_vision_model(model):
        if tasks or text or other_text or (alpha is not None and len(alpha) != 1):
            raise ValueError(
                f"{model} is a model of images and texts, measured on the package's emoji at one --alpha; leave out "
                "--tasks, --text and --other-text."
            )
        sizes = {"seeds": seeds, "count": documents, "batch_size": batch_size, "progress": not quiet}
        _towers(model, variant, output, corrupt, sizes | {"alpha": (alpha or [0.5])[0]}, loading)
        return
    variants = find_variants(variant)
    require_package("matplotlib", "ssmoe-embed[plots]")
    from ssmoe_embed.evaluation.ablation.report import write_report
    from ssmoe_embed.evaluation.ablation.running import AblationOptions
    from ssmoe_embed.evaluation.ablation.running import ablate as run
    from ssmoe_embed.evaluation.mteb.models import EvaluatedModel
    from ssmoe_embed.evaluation.tasks.corruption import Corruption
    from ssmoe_embed.evaluation.tasks.finding import find_tasks
    from ssmoe_embed.evaluation.texts import corpora
    from ssmoe_embed.routing.mixing import checked_alpha

    corruption = Corruption.parse(corrupt)
    if corruption is None:
        raise ValueError(f"corrupt={corrupt!r} changes no text; choose one such as replace@0.2.")
    options = AblationOptions(
        alphas=tuple(dict.fromkeys(map(checked_alpha, alpha or (0.5, 1.0)))),
        seeds=seeds,
        task_seeds=task_seeds,
        tasks=() if tasks == ["none"] else tuple(tasks or _TASKS),
        calibration_texts=calibration_texts,
        corruption=corruption,
        batch_size=batch_size,
        progress=not quiet,
    )
    texts = corpora(text, other_text, documents)
    if options.tasks:
        find_tasks(options.tasks)  # so that an unknown one is told before a model is loaded
    loaded = EvaluatedModel.load(model, trust_remote_code=trust_remote_code, progress=not quiet, **loading)
    result = run(model, loaded, variants, texts, output, options=options)
    written = write_report(result, output)
    typer.echo(written[0].read_text(encoding="utf-8"))
    typer.echo(", ".join(map(str, written)), err=True)
    if result.notes:
        raise typer.Exit(1)


def _towers(
    name: str, variant: list[str] | None, output: Path, corrupt: str, sizes: dict[str, Any], loading: dict[str, Any]
) -> None:
    """The same of a CLIP-MoE."""
    from ssmoe_embed.evaluation.vision.ablation import ablate_towers, find_vision_variants, write_vision_report
    from ssmoe_embed.evaluation.vision.encoder import ImageCorruption
    from ssmoe_embed.hub.models import load
    from ssmoe_embed.routing.mixing import checked_alpha

    variants, alpha = find_vision_variants(variant), checked_alpha(sizes["alpha"])
    noise = None if corrupt == _CORRUPT else ImageCorruption.parse(corrupt)
    model = load(name, progress=sizes["progress"], **loading)
    found = ablate_towers(model, variants, corruption=noise, **sizes)
    images = "clean images" if noise is None else f"images with {noise.name}"
    written = write_vision_report(found, output, f"{name} taken apart, α = {alpha:g}, {images}")
    typer.echo(written[0].read_text(encoding="utf-8"))
    typer.echo(", ".join(map(str, written)), err=True)
