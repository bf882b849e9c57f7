"""`ssmoe inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ssmoe_embed.cli import options as opts


def inspect(
    models: Annotated[
        list[str], typer.Argument(help="Folders, hub ids or recipe names; several are shown side by side.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            callback=opts.in_existing_folder,
            help="HTML page to write, and its numbers as .json.",
        ),
    ] = Path("report.html"),
    text: Annotated[
        Path | None,
        typer.Option(help="Text file, one text per line; by default a sample in the package."),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of images for a CLIP-MoE; by default emoji, and their names as its texts."),
    ] = None,
    max_texts: Annotated[
        int, typer.Option(min=16, help="Texts, and images, to read, spread evenly over the file or folder.")
    ] = 400,
    alpha: Annotated[float, typer.Option(help="Share of the spectral router, 0 to 1.")] = 0.5,
    clusters: Annotated[int, typer.Option(min=2, help="Number of k-means clusters.")] = 8,
    directions: Annotated[int, typer.Option(min=1, help="Dominant directions compared per expert matrix.")] = 8,
    map_: Annotated[
        str, typer.Option("--map", help="Projection of the map: tsne, or umap (needs umap-learn).")
    ] = "tsne",
    gradients: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT|FILE",
            help="Measure how alike the experts' gradients are too: on this text, or on a file with one text per line.",
        ),
    ] = None,
    routing: Annotated[
        list[str] | None, typer.Option(help="Routings of docs/routers.md whose load is shown too, such as usmoe.")
    ] = None,
    batch_size: opts.BatchSize = 32,
    device: opts.Device = None,
    dtype: opts.Dtype = None,
    device_map: opts.DeviceMap = None,
    trust_remote_code: opts.TrustRemoteCode = False,
    quiet: opts.Quiet = False,
) -> None:
    """Diagnose the routers and experts of models, on one page.

    Shows collapse of routers, lemma 3.1 of the paper, load, overlap of experts, their alignment with routers, and clusters
    of texts. Name two models, such as before and after fine-tuning, to compare them. A CLIP-MoE is shown tower by tower.

    Example: ssmoe inspect ssmoe/tiny --output report.html
    """
    from ssmoe_embed.common.lazy import require_package
    from ssmoe_embed.evaluation.inspection.alignment import gradients_of, texts_for_gradients
    from ssmoe_embed.evaluation.inspection.inspection import InspectionOptions, Projection, check_count, inspect_model
    from ssmoe_embed.evaluation.inspection.report import check_output, write_report
    from ssmoe_embed.evaluation.texts import file_sample, shipped_sample
    from ssmoe_embed.evaluation.vision import inspection as vision
    from ssmoe_embed.evaluation.vision.encoder import is_vision_model
    from ssmoe_embed.hub.models import load
    from ssmoe_embed.routing.mixing import checked_alpha
    from ssmoe_embed.routing.named import canonical

    for package in ("jinja2", "matplotlib"):
        require_package(package, "ssmoe-embed[plots]")
    check_output(output)
    projection = Projection.parse(map_, "map")
    if projection is Projection.UMAP:
        require_package("umap", "umap-learn")
    options = InspectionOptions(
        alpha=checked_alpha(alpha),
        clusters=clusters,
        directions=directions,
        projection=projection,
        routings=tuple(dict.fromkeys(map(canonical, routing or ()))),
        batch_size=batch_size,
        progress=not quiet,
    )
    if images is not None and not any(map(is_vision_model, models)):
        raise ValueError("--images is for a CLIP-MoE, such as ssmoe/tiny-clip; none of the models reads images.")
    sample = shipped_sample(max_texts) if text is None else file_sample(text, max_texts)
    check_count(clusters, len(sample.texts))
    predicted = None if gradients is None else texts_for_gradients(gradients, max_texts)
    loading: dict[str, Any] = opts.given(
        device=device, model_kwargs=opts.given(dtype=dtype, device_map=device_map) or None
    )
    found = []
    for name in models:
        if is_vision_model(name):
            model = load(name, progress=not quiet, **loading)
            texts = vision.shipped_names(max_texts) if text is None else sample
            pictures = vision.folder_pictures(images, max_texts) if images else vision.shipped_pictures(max_texts)
            found += vision.inspect_towers(name, model, texts, pictures, options)
            continue
        aligned = None
        if predicted is not None:
            keywords = opts.given(
                device_map=device_map or device, dtype=dtype, trust_remote_code=trust_remote_code or None
            )
            aligned = gradients_of(name, predicted, directions, progress=not quiet, **keywords)
        model = load(name, calibration="none", trust_remote_code=trust_remote_code, progress=not quiet, **loading)
        found.append(inspect_model(name, model, sample, options, gradients=aligned))
        del model  # before the next one is loaded
    typer.echo(", ".join(map(str, write_report(found, output, projection=options.projection))), err=True)
