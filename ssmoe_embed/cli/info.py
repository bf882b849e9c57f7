"""`ssmoe info`, `inspect` and `families`: what a model is, what its routers and experts do, and which models there are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from typer import Argument, Option

from ssmoe_embed.cli import options as opts
from ssmoe_embed.common.tables import Table
from ssmoe_embed.data import BUNDLED


def info(
    model: Annotated[str, Argument(help="Folder, hub id or recipe name of the embedding model.")] = BUNDLED,
) -> None:
    """Show a model's settings, size and memory."""
    from ssmoe_embed.embedding.module import SSMoE
    from ssmoe_embed.hub.models import load
    from ssmoe_embed.quantization.loading import weight_count

    encoder = load(model, progress=False)
    module = encoder[0]
    if not isinstance(module, SSMoE):
        raise ValueError(f"{model} is not a model of this package: its first module is {type(module).__name__}.")
    spectral = module.routers.settings.as_dict() if module.routers else {}
    rows = module.get_config_dict() | spectral
    rows |= {
        "dimension": encoder.get_embedding_dimension(),
        "parameters": f"{weight_count(module.model):,}",
        "memory": opts.memory_lines(module),
        "device": str(encoder.device),
        "calibrations": "\n".join(module.calibrations.factors) or "none",
    }
    lines = {name: str(value).split("\n") for name, value in rows.items()}
    shown = [(name if place == 0 else "", line) for name, found in lines.items() for place, line in enumerate(found)]
    Console().print(Table(("setting", "value"), tuple(shown), title=model, texts=2).rich())


def inspect(
    models: Annotated[list[str], Argument(help="Folders, hub ids or recipe names; several are shown side by side.")],
    output: Annotated[
        Path,
        Option(
            "--output",
            "-o",
            callback=opts.in_existing_folder,
            help="HTML page to write, and its numbers as .json.",
        ),
    ] = Path("report.html"),
    text: Annotated[
        Path | None,
        Option(help="Text file, one text per line; by default a sample in the package."),
    ] = None,
    images: Annotated[
        Path | None,
        Option(help="Folder of images for a CLIP-MoE; by default emoji, and their names as its texts."),
    ] = None,
    max_texts: Annotated[
        int, Option(min=16, help="Texts, and images, to read, spread evenly over the file or folder.")
    ] = 400,
    alpha: Annotated[float, Option(help="Share of the spectral router, 0 to 1.")] = 0.5,
    clusters: Annotated[int, Option(min=2, help="Number of k-means clusters.")] = 8,
    directions: Annotated[int, Option(min=1, help="Dominant directions compared per expert matrix.")] = 8,
    map_: Annotated[str, Option("--map", help="Projection of the map: tsne, or umap (needs umap-learn).")] = "tsne",
    gradients: Annotated[
        str | None,
        Option(
            metavar="TEXT|FILE",
            help="Measure how alike the experts' gradients are too: on this text, or on a file with one text per line.",
        ),
    ] = None,
    routing: Annotated[
        list[str] | None, Option(help="Routings of docs/routers.md whose load is shown too, such as usmoe.")
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
    from ssmoe_embed.hub.models import load
    from ssmoe_embed.routing.mixing import checked_alpha
    from ssmoe_embed.routing.named import canonical
    from ssmoe_embed.vision.module import is_vision_model

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
    loading = opts.embedding_loading(device, dtype, device_map)
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
            keywords = opts.hub_loading(device_map or device, None, trust_remote_code) | opts.given(dtype=dtype)
            aligned = gradients_of(name, predicted, directions, progress=not quiet, **keywords)
        model = load(name, calibration="none", trust_remote_code=trust_remote_code, progress=not quiet, **loading)
        found.append(inspect_model(name, model, sample, options, gradients=aligned))
        del model  # before the next one is loaded
    typer.echo(", ".join(map(str, write_report(found, output, projection=options.projection))), err=True)


_HEAD = """# Families of MoE models

Written by `ssmoe families --markdown > docs/families.md`; change the adapters in `ssmoe_embed/families/`, not this file.

All of these can be embedded, re-routed and read from disk. "From disk" names the number formats from which spectral routers
are made without loading the model. What "refused" names is refused with a message that says why.

A family is named by the `model_type` in a model's config.json. A model that also sees or hears goes by its own `model_type`
where it has a row, else by that of its text part (`text_config`): Kimi-K2.5 by `deepseek_v3`, InternVL 3.5 by `qwen3_moe`.
Only its text part is loaded into an embedding model.
"""
_REFUSED = """
## Known and not supported

"""


def families(
    as_markdown: Annotated[bool, Option("--markdown", help="Print the text of docs/families.md.")] = False,
) -> None:
    """List the supported model families, and what is refused.

    --markdown prints the full table of docs/families.md.
    """
    if as_markdown:
        typer.echo(family_page(), nl=False)
        return
    shown = (0, 1, -1)  # what fits a terminal
    full = family_table()
    rows = [tuple(row[place].replace("`", "") for place in shown) for row in full.rows]
    Console().print(Table(tuple(full.columns[place] for place in shown), tuple(rows), texts=len(shown)).rich())


def family_table() -> Table:
    """One row for each adapter of a family; its models are one line each."""
    from ssmoe_embed.families import families as adapters

    found: list[tuple[str, ...]] = []
    for family in adapters():
        notes = family.notes
        models = "\n".join(f"`{name}`: {models}" for name, models in family.models.items())
        score = str(family.score) if notes.score == "–" else notes.score
        how = (score, notes.weights, notes.beside, notes.layout)
        found.append((models, *how, notes.four_bit, notes.from_disk, notes.unsupported))
    heads: tuple[str, ...] = (
        "model_type: models",
        "score",
        "scores → weights",
        "beside the routed experts",
        "layout on disk",
    )
    heads += ("4-bit", "from disk", "refused")
    return Table(heads, tuple(found), texts=len(heads))


def family_page() -> str:
    """The text of `docs/families.md`."""
    from ssmoe_embed.families.refused import REFUSED

    reasons: dict[str, list[str]] = {}
    for name, reason in sorted(REFUSED.items()):
        reasons.setdefault(reason, []).append(f"`{name}`")
    refused = "\n".join(f"- {', '.join(names)}: {reason}." for reason, names in reasons.items())
    return f"{_HEAD}\n{family_table().markdown()}\n{_REFUSED}{refused}\n"
