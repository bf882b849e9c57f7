"""An ablation as Markdown, CSV and a picture."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

from ssmoe_embed.common.files import atomic_file
from ssmoe_embed.evaluation.ablation.likelihood import Difference, Likelihood, difference
from ssmoe_embed.evaluation.ablation.running import Ablation
from ssmoe_embed.evaluation.ablation.tasks import FORWARD, LOGITS
from ssmoe_embed.evaluation.ablation.variants import ORIGINAL, SPECTRAL, Variant

_HEADS = {
    FORWARD: "hidden state under the re-routed forward pass, joined with the mixed weights (`ssmoe`)",
    LOGITS: "the variant's logits alone, under the model's own routing (`ev`; for `original` the learned router's)",
}
_CHOICES = {
    "with_router": "as own router",
    "corrupted": "clean and AAA",
    "same_token": "same token",
    "any_tokens": "different tokens",
    "load_shift": "load shift",
}


@dataclass(frozen=True)
class Cell:
    """One number of an ablation.

    Attributes:
        measure: `perplexity`, `task` or `choices`.
        name: Kind of text, task and column, or what about the choices.
        variant: The variant's name.
        alpha: The spectral router's share.
        value: The number; of several seeds the mean, of perplexities the geometric one.
        seeds: Seeds it is of.
        against_own: How much higher than the model's own router's: nats a token.
        against_ev: How much higher than the spectral router's: nats a token, or points of 100.
    """

    measure: str
    name: str
    variant: str
    alpha: float
    value: float
    seeds: int
    against_own: Difference | None = None
    against_ev: Difference | None = None


def write_report(ablation: Ablation, output: Path) -> tuple[Path, ...]:
    """Write `ablation.md`, `ablation.csv` and `ablation.png` into a folder.

    Raises:
        ImportError: matplotlib is not installed.
    """
    found = list(cells(ablation))
    content = {
        "ablation.md": markdown(ablation, found).encode(),
        "ablation.csv": csv_text(found).encode(),
        "ablation.png": picture(ablation, found),
    }
    for name, data in content.items():
        with atomic_file(output / name) as file:
            file.write(data)
    return tuple(output / name for name in content)


def cells(ablation: Ablation) -> Iterator[Cell]:
    """Every number, with its intervals."""
    for alpha in ablation.options.alphas:
        for variant in ablation.variants:
            measured = ablation.at(variant.name, alpha)
            for kind, likelihoods in measured.likelihoods.items():
                value = math.exp(fmean(one.nll for one in likelihoods))
                own, ev = (_against(ablation, name, variant, alpha, kind) for name in (ORIGINAL, SPECTRAL))
                yield Cell("perplexity", kind, variant.name, alpha, value, len(likelihoods), own, ev)
            for name in _CHOICES:
                values = [float(getattr(one, name)) for one in measured.agreements]
                yield Cell("choices", name, variant.name, alpha, fmean(values), len(values))
    if ablation.tasks is not None:
        yield from _task_cells(ablation)


def _task_cells(ablation: Ablation) -> Iterator[Cell]:
    """The tasks' numbers, in points of 100."""
    runs = ablation.tasks
    if runs is None:
        return
    for column in (FORWARD, LOGITS):
        for task in runs.tasks:
            for variant in ablation.variants:
                seeds = ablation.options.seeds_of_tasks if variant.is_random else 1
                name = task.metadata.name
                scores = runs.scores(column, name, variant, seeds)
                if not scores:
                    continue
                against = None
                if variant.name != SPECTRAL and len(scores) == seeds:
                    found = runs.difference(column, name, variant, seeds)
                    against = found and Difference(100 * found.value, 100 * found.low, 100 * found.high)
                value = 100 * fmean(scores)
                yield Cell("task", f"{column}/{name}", variant.name, runs.alpha, value, len(scores), None, against)


def _against(ablation: Ablation, name: str, variant: Variant, alpha: float, kind: str) -> Difference | None:
    """A variant's likelihood against that of `name`."""
    if variant.name == name:
        return None
    first: Sequence[Likelihood] = ablation.at(name, alpha).likelihoods[kind]
    return difference(first[0], ablation.at(variant.name, alpha).likelihoods[kind])


def markdown(ablation: Ablation, found: Sequence[Cell]) -> str:
    """The tables."""
    options = ablation.options
    spectral = ", ".join(f"{name}={value}" for name, value in ablation.spectral.items())
    kinds = " and ".join(f"{len(texts)} of {kind}" for kind, texts in (ablation.corpora.first, ablation.corpora.second))
    lines = [
        f"Model `{ablation.model}`, spectral routers {spectral}; seeds of what is random: {options.seeds} "
        f"({options.seeds_of_tasks} on tasks); texts: {kinds}; "
        f"corruption {options.corruption.name}.",
        "",
        "Brackets are 95 % intervals of the paired difference, by a bootstrap over documents (or a task's examples) and, "
        f"where a variant is random, seeds; {_CLEAR} marks those that leave zero out. They are not corrected for how many "
        "there are.",
        "",
        *_table(["variant", "what it is"], [[f"`{one.name}`", one.tells] for one in ablation.variants], numbers=False),
    ]
    for alpha in options.alphas:
        for kind in (ablation.corpora.first[0], ablation.corpora.second[0]):
            rows = [one for one in found if (one.measure, one.name, one.alpha) == ("perplexity", kind, alpha)]
            if rows:
                lines += ["", f"### Perplexity of {kind}, α = {alpha:g}", "", *_perplexities(rows)]
    for column, head in _HEADS.items():
        rows = [one for one in found if one.measure == "task" and one.name.startswith(f"{column}/")]
        if rows:
            lines += ["", f"### Tasks, α = {options.alphas[0]:g}: {head}", "", *_tasks(rows)]
    for alpha in options.alphas:
        rows = [one for one in found if one.measure == "choices" and one.alpha == alpha]
        chance = ablation.at(SPECTRAL, alpha).agreements[0].chance
        lines += ["", f"### Choices, α = {alpha:g}", "", *_choices(rows, chance)]
    if ablation.notes:
        lines += ["", "Not measured: " + "; ".join(ablation.notes)]
    return "\n".join(lines) + "\n"


_CLEAR = "✱"


def _perplexities(rows: Sequence[Cell]) -> list[str]:
    head = ["variant", "perplexity", "nats a token above own router", "nats a token above EV"]
    return _table(
        head,
        [[_name(one), f"{one.value:.1f}", _interval(one.against_own, 3), _interval(one.against_ev, 3)] for one in rows],
    )


def _tasks(rows: Sequence[Cell]) -> list[str]:
    names = list(dict.fromkeys(one.name for one in rows))
    by_variant: dict[str, dict[str, Cell]] = {}
    for one in rows:
        by_variant.setdefault(_name(one), {})[one.name] = one
    head = ["variant", *(cell for name in names for cell in (name.partition("/")[2], "above EV"))]
    body = [
        [variant, *(cell for name in names for cell in _score(cells_.get(name)))]
        for variant, cells_ in by_variant.items()
    ]
    return _table(head, body)


def _score(cell: Cell | None) -> tuple[str, str]:
    return ("–", "–") if cell is None else (f"{cell.value:.1f}", _interval(cell.against_ev, 1))


def _choices(rows: Sequence[Cell], chance: float) -> list[str]:
    by_variant: dict[str, list[str]] = {}
    for one in rows:
        by_variant.setdefault(_name(one), []).append(f"{one.value:.3f}")
    text = (
        "Share of the chosen experts that two routings, or two tokens, have in common: with the model's own router; at the "
        "last token of a text and of its corrupted copy; at two occurrences of one token; at two different tokens. Then the "
        "distance of the loads on the two kinds of text. By chance two choices have "
        f"{chance:.3f} in common."
    )
    return [
        text,
        "",
        *_table(["variant", *_CHOICES.values()], [[name, *values] for name, values in by_variant.items()]),
    ]


def _name(cell: Cell) -> str:
    return f"`{cell.variant}`" + (f" ({cell.seeds} seeds)" if cell.seeds > 1 else "")


def _interval(found: Difference | None, digits: int) -> str:
    if found is None:
        return "–"
    mark = f" {_CLEAR}" if found.is_clear else ""
    return f"{found.value:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]{mark}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True) -> list[str]:
    rule = ["---", *(["---:" if numbers else "---"] * (len(head) - 1))]
    return [f"| {' | '.join(line)} |" for line in (head, rule, *rows)]


def csv_text(found: Sequence[Cell]) -> str:
    """One number a line."""
    names = [one.name for one in fields(Cell) if not one.name.startswith("against")]
    ends = [f"{which}_{end}" for which in ("own", "ev") for end in ("difference", "low", "high")]
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow([*names, *ends])
    for cell in found:
        row: list[Any] = [getattr(cell, name) for name in names]
        for against in (cell.against_own, cell.against_ev):
            row += ["", "", ""] if against is None else list(asdict(against).values())
        writer.writerow(row)
    return output.getvalue()


def picture(ablation: Ablation, found: Sequence[Cell]) -> bytes:
    """A PNG: for each measure, every variant's difference from the spectral router with its interval."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ImportError(f"Plots need matplotlib ({error}): pip install 'ssmoe-embed[plots]'.") from None
    groups: dict[tuple[str, str, float], list[Cell]] = {}
    for cell in found:
        if cell.measure != "choices" and (cell.against_ev is not None or cell.variant == SPECTRAL):
            groups.setdefault((cell.measure, cell.name, cell.alpha), []).append(cell)
    names = [one.name for one in ablation.variants]
    columns = min(4, max(1, len(groups)))
    lines = max(1, math.ceil(len(groups) / columns))
    figure = Figure(figsize=(3.1 * columns + 1.2, (0.23 * len(names) + 1.1) * lines), layout="constrained", dpi=110)
    grid = list(figure.subplots(lines, columns, squeeze=False, sharey=True).flat)
    for axes in grid[len(groups) :]:
        axes.set_visible(False)
    for axes, ((measure, name, alpha), group) in zip(grid, groups.items(), strict=False):
        _forest(axes, names, group)
        lower = measure == "perplexity"
        column, _, task = name.rpartition("/")
        axes.set_title(f"{measure}: {name}" if lower else f"{column}: {task}", fontsize=8)
        axes.set_xlabel(f"{'nats a token' if lower else 'points'} above EV, α = {alpha:g}", fontsize=7)
    output = io.BytesIO()
    figure.savefig(output, format="png")
    return output.getvalue()


def _forest(axes: Any, names: Sequence[str], group: Sequence[Cell]) -> None:
    """One measure: a point and an interval for each variant, one below the other."""
    for cell in group:
        y = names.index(cell.variant)
        if cell.against_ev is None:
            axes.plot([0], [y], "D", color="black", markersize=4)
            continue
        found = cell.against_ev
        colour = "#d55e00" if found.is_clear else "#777777"
        axes.plot([found.low, found.high], [y, y], "-", color=colour, linewidth=1.5)
        axes.plot([found.value], [y], "o", color=colour, markersize=4)
    axes.axvline(0, color="black", linewidth=0.6)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(labelsize=7)
    axes.grid(axis="y", linewidth=0.3)
    axes.spines[["top", "right"]].set_visible(False)
