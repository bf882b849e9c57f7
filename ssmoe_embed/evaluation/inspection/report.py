"""Inspections as one self-contained page, and the same numbers as JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path

from ssmoe_embed.common.files import atomic_file
from ssmoe_embed.common.version import __version__
from ssmoe_embed.evaluation.inspection.clusters import Projection
from ssmoe_embed.evaluation.inspection.figures import (
    collapse_figure,
    lemma_figure,
    load_figure,
    map_figure,
    overlap_figure,
)
from ssmoe_embed.evaluation.inspection.inspection import Inspection

_TEMPLATE = "report.html.jinja"


def write_report(
    models: Sequence[Inspection], output: Path, *, projection: Projection = Projection.TSNE
) -> tuple[Path, Path]:
    """Write the page, and beside it the numbers under the same name ending in `.json`.

    Args:
        models: The inspections, side by side in the page.
        output: The page's path, ending in `.html`.
        projection: How the map was made.

    Returns:
        The paths of the page and of the numbers.

    Raises:
        ValueError: `output` does not end in `.html`.
        ImportError: jinja2 or matplotlib is not installed.
    """
    check_output(output)
    page = html(models, projection=projection)
    numbers = output.with_suffix(".json")
    content = json.dumps({"version": __version__, "models": [one.as_dict() for one in models]}, allow_nan=False)
    for path, text in ((numbers, content + "\n"), (output, page)):
        with atomic_file(path) as file:
            file.write(text.encode())
    return output, numbers


def check_output(output: Path) -> None:
    """Refuse, before anything is measured, a page that would not be one."""
    if output.suffix != ".html":
        raise ValueError(f"output={str(output)!r} is not the name of a page; let it end in .html.")


def html(models: Sequence[Inspection], *, projection: Projection = Projection.TSNE) -> str:
    """The page; pictures are part of it, and it asks for nothing from elsewhere."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ModuleNotFoundError as error:
        raise ImportError(f"The page needs jinja2 ({error}): pip install 'ssmoe-embed[plots]'.") from None
    environment = Environment(
        loader=PackageLoader("ssmoe_embed.evaluation", "inspection"), autoescape=True, undefined=StrictUndefined
    )
    figures = {
        "collapse": collapse_figure(models),
        "lemma": lemma_figure(models),
        "load": load_figure(models),
        "overlap": overlap_figure(models),
        "map": map_figure(models),
    }
    return environment.get_template(_TEMPLATE).render(
        title=f"Routers and experts of {', '.join(one.model for one in models)}",
        models=models,
        figures={name: f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}" for name, svg in figures.items()},
        version=__version__,
        projection={"tsne": "t-SNE", "umap": "UMAP"}[str(projection)],
        n=_number,
        p=lambda share: f"{100 * share:.0f} %",
    )


def _number(value: float) -> str:
    """Three significant digits, zeros at the end included."""
    return f"{value:#.3g}".rstrip(".") if abs(value) < 1000 else f"{value:.0f}"
