"""The house style of plots: size, colours, type sizes; and pictures whose bytes depend on what they show alone."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from ssmoe_embed.common.lazy import require_package

P = ParamSpec("P")
T = TypeVar("T")

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999")
"""Told apart by the colour-blind too (Okabe and Ito)."""
GREY = "#777777"
STYLES = ("-", "--", ":", "-.")
_DPI = 110
_MOST_INCHES = 80.0
_SETTINGS = {
    "axes.grid.axis": "y",
    "axes.labelsize": 8,
    "axes.titlesize": 9,
    "figure.titlesize": 10,
    "grid.linewidth": 0.3,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.markersize": 4,
    "svg.hashsalt": "ssmoe",
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
}


def house_style(draw: Callable[P, T]) -> Callable[P, T]:
    """Let a function draw in the house style; what matplotlib draws for others stays as it was.

    Raises:
        ImportError: matplotlib is not installed (when the function is called).
    """

    @functools.wraps(draw)
    def drawing(*args: P.args, **kwargs: P.kwargs) -> T:
        require_package("matplotlib", "ssmoe-embed[plots]")
        import matplotlib
        from cycler import cycler

        with matplotlib.rc_context({**_SETTINGS, "axes.prop_cycle": cycler(color=COLOURS)}):
            return draw(*args, **kwargs)

    return drawing


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **layout: Any) -> tuple[Any, Any]:
    """A figure that belongs to no window, and its panels.

    Args:
        width: Inches.
        height: Inches.
        rows: Rows of panels.
        columns: Columns of panels.
        **layout: For matplotlib's `Figure.subplots`.

    Returns:
        The figure and an array `[rows,columns]` of its axes.
    """
    from matplotlib.figure import Figure

    size = (min(width, _MOST_INCHES), min(height, _MOST_INCHES))
    figure = Figure(figsize=size, layout="constrained", dpi=_DPI)
    return figure, figure.subplots(rows, columns, squeeze=False, **layout)


def line_style(place: int) -> dict[str, Any]:
    """Colour and dashes of the line at a place, all different for the first 32."""
    return {"color": COLOURS[place % len(COLOURS)], "linestyle": STYLES[place // len(COLOURS) % len(STYLES)]}


def label_axes(axes: Any, title: str, x: str = "", y: str = "") -> None:
    """A title and labels, horizontal lines, and a frame that is open at the top and right."""
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(visible=True, axis="y")
    axes.spines[["top", "right"]].set_visible(False)


def draw_interval(axes: Any, x: float, middle: float, ends: tuple[float, float] | None) -> None:
    """A thin vertical bar around a point of the line that was drawn last; nothing where there is no interval."""
    if ends is not None:
        around = [[middle - ends[0]], [ends[1] - middle]]
        axes.errorbar([x], [middle], around, fmt="none", ecolor=axes.lines[-1].get_color(), elinewidth=0.9, capsize=2)


def legend_below(figure: Any, columns: int = 4) -> None:
    """One legend below all panels, of everything that any of them names; none where that is a single line."""
    named = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if len(named) > 1:
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=min(len(named), columns))


def png(figure: Any) -> bytes:
    """The figure as PNG."""
    return _saved(figure, "png", {"Software": None})


def svg(figure: Any) -> bytes:
    """The figure as SVG; the same picture gives the same bytes."""
    return _saved(figure, "svg", {"Date": None})


def _saved(figure: Any, kind: str, metadata: dict[str, None]) -> bytes:
    output = io.BytesIO()
    figure.savefig(output, format=kind, metadata=metadata)
    return output.getvalue()
