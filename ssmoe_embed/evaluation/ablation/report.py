"""An ablation as a report, as CSV and as a plot."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean

from ssmoe_embed.common.files import write_files
from ssmoe_embed.common.plots import COLOURS, GREY, house_style, label_axes, new_figure, png
from ssmoe_embed.common.tables import Report, Table, csv_text, points, signed
from ssmoe_embed.evaluation.ablation.measures import FORWARD, LOGITS, Difference, difference
from ssmoe_embed.evaluation.ablation.running import Ablation
from ssmoe_embed.evaluation.ablation.variants import ORIGINAL, SPECTRAL

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
class AblationNumber:
    """One number of an ablation.

    Attributes:
        measure: `perplexity`, `task` or `choices`.
        name: Kind of text, task and column, or what about the choices.
        variant: The variant's name.
        alpha: The spectral router's share.
        value: The number; of several seeds the mean, of perplexities the geometric one.
        seeds: Seeds it is of.
        against_own: How much higher than the model's own router's: nats per token.
        against_ev: How much higher than the spectral router's: nats per token, or points of 100.
    """

    measure: str
    name: str
    variant: str
    alpha: float
    value: float
    seeds: int
    against_own: Difference | None = None
    against_ev: Difference | None = None


def write_report(ablation: Ablation, output: Path) -> list[Path]:
    """Write `ablation.md`, `ablation.csv` and `ablation.png` into a folder.

    Raises:
        ImportError: matplotlib is not installed.
    """
    found = list(numbers(ablation))
    shown = report(ablation, found).markdown()
    picture = plot(ablation, found)
    return write_files(output, {"ablation.md": shown, "ablation.csv": numbers_csv(found), "ablation.png": picture})


def numbers(ablation: Ablation) -> Iterator[AblationNumber]:
    """Every number, with its intervals."""
    for alpha in ablation.options.alphas:
        for variant in ablation.variants:
            measured = ablation.at(variant.name, alpha)
            for kind, likelihoods in measured.likelihoods.items():
                value = math.exp(fmean(one.nll for one in likelihoods))
                own, ev = (
                    None
                    if name == variant.name
                    else difference(ablation.at(name, alpha).likelihoods[kind][0], likelihoods)
                    for name in (ORIGINAL, SPECTRAL)
                )
                yield AblationNumber("perplexity", kind, variant.name, alpha, value, len(likelihoods), own, ev)
            for name in _CHOICES if measured.agreements else ():
                values = [float(getattr(one, name)) for one in measured.agreements]
                yield AblationNumber("choices", name, variant.name, alpha, fmean(values), len(values))
    yield from _task_numbers(ablation)


def _task_numbers(ablation: Ablation) -> Iterator[AblationNumber]:
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
                yield AblationNumber(
                    "task", f"{column}/{name}", variant.name, runs.alpha, value, len(scores), None, against
                )


def report(ablation: Ablation, found: Sequence[AblationNumber]) -> Report:
    """The numbers as tables."""
    options = ablation.options
    spectral = ", ".join(f"{name}={value}" for name, value in ablation.spectral.items())
    kinds = " and ".join(f"{len(texts)} of {kind}" for kind, texts in (ablation.corpora.first, ablation.corpora.second))
    parts: list[str | Table] = [
        f"Model `{ablation.model}`, spectral routers {spectral}; seeds of what is random: {options.seeds} "
        f"({options.seeds_of_tasks} on tasks); texts: {kinds}; corruption {options.corruption.name}.",
        "Brackets are 95 % intervals of the paired difference, by a bootstrap over documents (or a task's examples) and, "
        f"where a variant is random, seeds; {_CLEAR} marks those that leave zero out. They are not corrected for how many "
        "there are.",
        Table(("variant", "what it is"), tuple((f"`{one.name}`", one.tells) for one in ablation.variants), texts=2),
    ]
    for alpha in options.alphas:
        for kind in (ablation.corpora.first[0], ablation.corpora.second[0]):
            rows = [one for one in found if (one.measure, one.name, one.alpha) == ("perplexity", kind, alpha)]
            parts += [_perplexities(rows, f"Perplexity of {kind}, α = {alpha:g}")] if rows else []
    for column, head in _HEADS.items():
        rows = [one for one in found if one.measure == "task" and one.name.startswith(f"{column}/")]
        parts += [_tasks(rows, f"Tasks, α = {options.alphas[0]:g}: {head}")] if rows else []
    for alpha in options.alphas:
        rows = [one for one in found if one.measure == "choices" and one.alpha == alpha]
        chance = ablation.at(SPECTRAL, alpha).agreements[0].chance
        parts.append(_choices(rows, f"Choices, α = {alpha:g}", chance))
    parts += ["Not measured: " + "; ".join(ablation.notes)] if ablation.notes else []
    return Report(f"Ablation of {ablation.model}", tuple(parts))


_CLEAR = "✱"


def _perplexities(rows: Sequence[AblationNumber], title: str) -> Table:
    head = ("variant", "perplexity", "nats per token above own router", "nats per token above EV")
    shown = [
        (_name(one), points(one.value), _interval(one.against_own, 3), _interval(one.against_ev, 3)) for one in rows
    ]
    return Table(head, tuple(shown), title)


def _tasks(rows: Sequence[AblationNumber], title: str) -> Table:
    names = list(dict.fromkeys(one.name for one in rows))
    by_variant: dict[str, dict[str, AblationNumber]] = {}
    for one in rows:
        by_variant.setdefault(_name(one), {})[one.name] = one
    head = ("variant", *(head for name in names for head in (name.partition("/")[2], "above EV")))
    body = [
        (variant, *(cell for name in names for cell in _score(found.get(name))))
        for variant, found in by_variant.items()
    ]
    return Table(head, tuple(body), title)


def _score(number: AblationNumber | None) -> tuple[str | None, str | None]:
    return (None, None) if number is None else (points(number.value), _interval(number.against_ev, 1))


def _choices(rows: Sequence[AblationNumber], title: str, chance: float) -> Table:
    by_variant: dict[str, list[str]] = {}
    for one in rows:
        by_variant.setdefault(_name(one), []).append(points(one.value, 3))
    note = (
        "Share of the chosen experts that two routings, or two tokens, have in common: with the model's own router; at the "
        "last token of a text and of its corrupted copy; at two occurrences of one token; at two different tokens. Then the "
        f"distance of the loads on the two kinds of text. By chance two choices have {chance:.3f} in common."
    )
    body = tuple((name, *values) for name, values in by_variant.items())
    return Table(("variant", *_CHOICES.values()), body, title, notes=(note,))


def _name(number: AblationNumber) -> str:
    return f"`{number.variant}`" + (f" ({number.seeds} seeds)" if number.seeds > 1 else "")


def _interval(found: Difference | None, digits: int) -> str | None:
    if found is None:
        return None
    low, high = signed(found.low, digits), signed(found.high, digits)
    return f"{signed(found.value, digits)} [{low}, {high}]" + (f" {_CLEAR}" if found.is_clear else "")


def numbers_csv(found: Sequence[AblationNumber]) -> str:
    """One number a line."""
    names = [one.name for one in fields(AblationNumber) if not one.name.startswith("against")]
    ends = [f"{which}_{end}" for which in ("own", "ev") for end in ("difference", "low", "high")]
    rows = []
    for one in found:
        intervals = [(None,) * 3 if o is None else (o.value, o.low, o.high) for o in (one.against_own, one.against_ev)]
        rows.append([*(getattr(one, name) for name in names), *itertools.chain(*intervals)])
    return csv_text([*names, *ends], rows)


@house_style
def plot(ablation: Ablation, found: Sequence[AblationNumber]) -> bytes:
    """A PNG: for each measure, every variant's difference from the spectral router with its interval."""
    groups: dict[tuple[str, str, float], list[AblationNumber]] = {}
    for one in found:
        if one.measure != "choices" and (one.against_ev is not None or one.variant == SPECTRAL):
            groups.setdefault((one.measure, one.name, one.alpha), []).append(one)
    names = [one.name for one in ablation.variants]
    columns = min(4, max(1, len(groups)))
    lines = max(1, math.ceil(len(groups) / columns))
    height = (0.23 * len(names) + 1.1) * lines
    figure, grid = new_figure(3.1 * columns + 1.2, height, lines, columns, sharey=True)
    for axes in grid.flat[len(groups) :]:
        axes.set_visible(False)
    for axes, ((measure, name, alpha), group) in zip(grid.flat, groups.items(), strict=False):
        lower = measure == "perplexity"
        column, _, task = name.rpartition("/")
        label_axes(
            axes,
            f"{measure}: {name}" if lower else f"{column}: {task}",
            f"{'nats per token' if lower else 'points'} above EV, α = {alpha:g}",
        )
        for one in group:
            y = names.index(one.variant)
            if one.against_ev is None:
                axes.plot([0], [y], "D", color="black", markersize=4)
                continue
            gap = one.against_ev
            colour = COLOURS[1] if gap.is_clear else GREY
            axes.plot([gap.low, gap.high], [y, y], "-", color=colour, linewidth=1.5)
            axes.plot([gap.value], [y], "o", color=colour, markersize=4)
        axes.axvline(0, color="black", linewidth=0.6)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
    return png(figure)
