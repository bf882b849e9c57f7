"""Inspections as one self-contained page, and the same numbers as JSON."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssmoe_embed.common.files import write_files
from ssmoe_embed.common.plots import COLOURS, GREY, house_style, label_axes, legend_below, new_figure, svg
from ssmoe_embed.common.version import __version__
from ssmoe_embed.evaluation.inspection.inspection import Inspection, Projection


@house_style
def collapse_figure(models: Sequence[Inspection]) -> bytes:
    """Rows' cosine and logits' correlation of both routers, and lemma B.1's line, layer by layer."""
    figure, [(rows, logits, lemma)] = new_figure(11.5, 3.5, 1, 3)
    for colour, one in zip(itertools.cycle(COLOURS), models, strict=False):
        x = [layer.layer for layer in one.layers]
        name = f"{one.model}: " if len(models) > 1 else ""
        for kind, style in (("learned", "-o"), ("spectral", "--s")):
            found = [getattr(layer, kind) for layer in one.layers]
            keywords: dict[str, Any] = {"color": colour, "label": f"{name}{kind} router"}
            rows.plot(x, [each.cosine for each in found], style, **keywords)
            logits.plot(x, [each.correlation for each in found], style, **keywords)
            lemma.plot(x, [each.rms_cosine for each in found], style, **keywords)
        label = f"{name}1/√H, H = {one.hidden_size}"
        lemma.plot(x, [layer.spectral.random_cosine for layer in one.layers], ":", color=colour, label=label)
    for axes, title in (
        (rows, "Rows: mean |cosine| of two experts"),
        (logits, "Logits: mean |correlation| of two experts"),
        (lemma, "Rows: rms cosine against lemma B.1"),
    ):
        _layer_axes(axes, models, title)
        axes.set_ylim(bottom=0)
    legend_below(figure, 3)
    return svg(figure)


@house_style
def lemma_figure(models: Sequence[Inspection]) -> bytes:
    """Both sides of lemma 3.1, and the correlations it is about; a row a model."""
    figure, grid = new_figure(11.5, 3.1 * len(models) + 0.3, len(models), 2)
    for (sides, scale_free), one in zip(grid, models, strict=True):
        x = [layer.layer for layer in one.layers]
        found = [layer.covariance for layer in one.layers]
        for axes, field, style, colour, label in (
            (sides, "mixed", "-o", COLOURS[0], "left: |Cov| of mixed logits"),
            (sides, "bound", "--s", COLOURS[1], "right: (1-α)²·|Cov| of learned"),
            (sides, "from_cross", ":^", COLOURS[3], "left out: cross terms"),
            (sides, "from_spectral", ":v", COLOURS[2], "left out: spectral terms"),
            (scale_free, "learned_correlation", "-o", COLOURS[1], "learned, two experts"),
            (scale_free, "spectral_correlation", "-o", COLOURS[2], "spectral, two experts"),
            (scale_free, "mixed_correlation", "-o", COLOURS[0], "mixed, two experts"),
            (scale_free, "cross_correlation", "-o", COLOURS[3], "spectral with learned, two experts"),
            (scale_free, "own_correlation", "-o", COLOURS[6], "spectral with learned, one expert"),
        ):
            axes.plot(x, [getattr(each, field) for each in found], style, color=colour, label=label)
        _layer_axes(sides, [one], f"{one.model}: both sides of lemma 3.1, α = {one.alpha:g}")
        _layer_axes(scale_free, [one], f"{one.model}: mean |correlation|, which no scale changes")
        sides.set_ylim(bottom=0)
        scale_free.set_ylim(min(0, *(each.own_correlation for each in found)), 1.02)
        for axes in (sides, scale_free):
            axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return svg(figure)


@house_style
def load_figure(models: Sequence[Inspection]) -> bytes:
    """Entropy of the load by routing, and every expert's share under the model's own; a row a model."""
    figure, grid = new_figure(11.5, 3.0 * len(models) + 0.3, len(models), 2, width_ratios=(2, 3))
    lines_of = (
        ("original", COLOURS[1], "own router"),
        ("ssmoe", COLOURS[0], "mix"),
        ("ev", COLOURS[2], "spectral alone"),
    )
    for (lines, shares), one in zip(grid, models, strict=True):
        x = [layer.layer for layer in one.layers]
        for routing, colour, label in lines_of:
            entropy = [layer.loads[routing].entropy for layer in one.layers]
            lines.plot(x, entropy, "-o", color=colour, label=label)
        _layer_axes(lines, [one], f"{one.model}: entropy of the load, 1 is even")
        lines.legend(fontsize=7)
        most = max(layer.experts for layer in one.layers)
        cells = [
            [*sorted(layer.loads["original"].shares, reverse=True), *[float("nan")] * (most - layer.experts)]
            for layer in one.layers
        ]
        image = shares.imshow(cells, aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
        shares.set_yticks(*_some(x))
        shares.set_ylabel("layer")
        shares.set_xlabel("experts, the busiest first")
        shares.set_title(f"{one.model}: share of the choices, own router (1 is even)")
        figure.colorbar(image, ax=shares, fraction=0.03, pad=0.02)
    return svg(figure)


@house_style
def overlap_figure(models: Sequence[Inspection]) -> bytes:
    """Overlap of the experts' dominant subspaces by layer, and every pair's in the layer that has most; a row a model."""
    figure, grid = new_figure(11.5, 3.6 * len(models) + 0.3, len(models), 2, width_ratios=(3, 2))
    for (lines, pairs), one in zip(grid, models, strict=True):
        x = [layer.layer for layer in one.layers]
        kinds = list(one.layers[0].overlaps)
        for colour, kind in zip(COLOURS, kinds, strict=False):
            means = [layer.overlaps[kind].mean for layer in one.layers]
            lines.plot(x, means, "-o", color=colour, label=kind)
        first = one.layers[0].overlaps[kinds[0]]
        lines.axhline(first.chance, color=GREY, linestyle=":", label=f"chance: {first.directions}/{one.hidden_size}")
        _layer_axes(lines, [one], f"{one.model}: overlap of the {first.directions} dominant directions")
        lines.set_ylim(bottom=0)
        lines.legend(fontsize=7)
        by_place = {(each.layer, kind): each.overlaps[kind] for each in one.layers for kind in kinds}
        layer, kind = max(by_place, key=lambda place: (by_place[place].mean, *place))
        chosen = by_place[layer, kind]
        E = len(chosen.pairs)
        cells = [[float("nan") if i == j else chosen.pairs[i][j] for j in range(E)] for i in range(E)]
        image = pairs.imshow(cells, cmap="magma", vmin=0, interpolation="nearest")
        pairs.set_title(f"layer {layer}, {kind}: every two experts (mean {chosen.mean:.2f})")
        pairs.set_xlabel("expert")
        pairs.set_ylabel("expert")
        figure.colorbar(image, ax=pairs, fraction=0.046, pad=0.03)
    return svg(figure)


@house_style
def alignment_figure(models: Sequence[Inspection]) -> bytes:
    """How router rows lie in the experts' dominant subspaces, and how gradients overlap, by layer; a row a model."""
    figure, grid = new_figure(11.5, 3.1 * len(models) + 0.3, len(models), 3)
    for (gates, specific, gradients), one in zip(grid, models, strict=True):
        x = [layer.layer for layer in one.layers]
        for colour, kind in zip(COLOURS, one.layers[0].gates, strict=False):
            found = [layer.gates[kind] for layer in one.layers]
            gates.plot(x, [each.own for each in found], "-o", color=colour, label=f"{kind}: own expert")
            gates.plot(x, [each.others for each in found], "--s", color=colour, label=f"{kind}: others")
            specific.plot(x, [each.specificity for each in found], "-o", color=colour, label=kind)
            reached = [layer for layer in one.layers if kind in layer.gradients]
            means = [layer.gradients[kind].overlap.mean for layer in reached]
            gradients.plot([layer.layer for layer in reached], means, "-o", color=colour, label=kind)
        chance = one.layers[0].gates[next(iter(one.layers[0].gates))].chance
        for axes in (gates, gradients):
            axes.axhline(chance, color=GREY, linestyle=":", label="chance")
        specific.axhline(1, color=GREY, linestyle=":", label="rows that know no expert")
        _layer_axes(gates, [one], f"{one.model}: rows in experts' subspaces")
        _layer_axes(specific, [one], f"{one.model}: specificity, own by others")
        _layer_axes(gradients, [one], f"{one.model}: overlap of gradients")
        for axes in (gates, specific, gradients):
            axes.set_ylim(bottom=0)
            axes.legend(fontsize=7)
    return svg(figure)


@house_style
def map_figure(models: Sequence[Inspection]) -> bytes:
    """A map of the texts for every representation, coloured by k-means cluster; a row a model."""
    most = max(len(one.clusters) for one in models)
    figure, grid = new_figure(2.4 * most, 2.75 * len(models) + 0.2, len(models), most)
    for line, one in zip(grid, models, strict=True):
        for axes in line[len(one.clusters) :]:
            axes.set_axis_off()
        for axes, (method, found) in zip(line, one.clusters.items(), strict=False):
            x, y = zip(*found.places, strict=True)
            axes.scatter(x, y, c=found.labels, s=5, cmap="tab10" if max(found.labels) < 10 else "tab20", linewidths=0)
            axes.set_title(
                f"{method}\nsilhouette {found.silhouette:.3f}, Davies–Bouldin {found.davies_bouldin:.2f}", fontsize=7.5
            )
            axes.set_xticks([])
            axes.set_yticks([])
        if len(models) > 1:
            line[0].set_ylabel(one.model)
    return svg(figure)


def _layer_axes(axes: Any, models: Sequence[Inspection], title: str) -> None:
    """Whole layers along the bottom."""
    ticks = sorted({layer.layer for one in models for layer in one.layers})
    places, labels = _some(ticks)
    axes.set_xticks([ticks[place] for place in places], labels)
    label_axes(axes, title, "layer")


def _some(ticks: Sequence[int]) -> tuple[list[int], list[str]]:
    """Places and labels of about a dozen ticks."""
    step = max(1, len(ticks) // 12)
    places = list(range(0, len(ticks), step))
    return places, [str(ticks[place]) for place in places]


def write_report(
    models: Sequence[Inspection], output: Path, *, projection: Projection = Projection.TSNE
) -> tuple[Path, Path]:
    """Write the page at `output`, a path ending in `.html`, and beside it the numbers, whose name ends in `.json`.

    Returns:
        The paths of both.

    Raises:
        ValueError: `output` does not end in `.html`.
        ImportError: jinja2 or matplotlib is not installed.
    """
    check_output(output)
    content = json.dumps({"version": __version__, "models": [one.as_dict() for one in models]}, allow_nan=False)
    page = html(models, projection=projection)
    numbers = output.with_suffix(".json")
    write_files(output.parent, {numbers.name: content + "\n", output.name: page})
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
        "alignment": alignment_figure(models),
        "map": map_figure(models),
    }
    return environment.get_template("report.html.jinja").render(
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
