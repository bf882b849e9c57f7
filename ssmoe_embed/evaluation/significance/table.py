"""Two methods side by side as tables: for the terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from rich.table import Table

from ssmoe_embed.evaluation.paper.table import NOTHING, markdown_row, signed
from ssmoe_embed.evaluation.significance.comparison import CORRECTION, MethodDifference

_CSV_FIELDS = (
    "model",
    "revision",
    "corruption",
    "prompt",
    "task",
    "metric",
    "first",
    "second",
    "first_score",
    "second_score",
    "difference",
    "low",
    "high",
    "p_value",
    "p_holm",
    "examples",
    "resamples",
    "reason",
)


def header(first: str, second: str) -> list[str]:
    """The columns."""
    return ["task", "metric", first, second, f"{first} − {second}", "95 % interval", "p", "p (Holm)", "n"]


def cells(line: MethodDifference) -> list[str]:
    """One line; scores and differences in points of 100."""
    head = [line.task, line.first.metric]
    found = line.bootstrap
    if found is None:
        scores = [f"{100 * score.score:.1f}" for score in (line.first, line.second)]
        return [*head, *scores, NOTHING, line.reason, NOTHING, NOTHING, NOTHING]
    return [
        *head,
        f"{100 * found.second:.1f}",
        f"{100 * found.first:.1f}",
        signed(100 * found.difference, 2),
        f"[{signed(100 * found.low, 2)}, {signed(100 * found.high, 2)}]",
        p_text(found.p_value),
        NOTHING if line.adjusted is None else p_text(line.adjusted),
        str(found.examples),
    ]


def p_text(value: float) -> str:
    """A p-value of three digits, or that it is smaller."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def rich_tables(lines: Sequence[MethodDifference], first: str, second: str) -> list[Table]:
    """A table for each setup."""
    tables = []
    for setup in dict.fromkeys(line.setup for line in lines):
        table = Table(title=setup, title_justify="left")
        table.add_column("task", overflow="fold", min_width=20)
        for name in header(first, second)[2:]:
            table.add_column(name, justify="right", no_wrap="%" in name)
        for line in lines:
            if line.setup == setup:
                task, metric, *rest = cells(line)
                table.add_row(f"{task}\n{metric}", *rest)
        tables.append(table)
    return tables


def markdown(lines: Sequence[MethodDifference], first: str, second: str) -> str:
    """The lines as a Markdown document."""
    names = header(first, second)
    text = [f"# {first} and {second}", "", f"Points of 100. {CORRECTION}", ""]
    for setup in dict.fromkeys(line.setup for line in lines):
        text += [f"## {setup}", "", markdown_row(names), f"|---|---|{'---:|' * (len(names) - 2)}"]
        text += [markdown_row(cells(line)) for line in lines if line.setup == setup]
        text.append("")
    return "\n".join(text)


def csv_text(lines: Sequence[MethodDifference], first: str, second: str) -> str:
    """The lines as CSV; scores from 0 to 1 as mteb gives them."""
    file = io.StringIO()
    writer = csv.DictWriter(file, _CSV_FIELDS, lineterminator="\n", restval="")
    writer.writeheader()
    for line in lines:
        row = {
            "model": line.first.model,
            "revision": line.first.revision,
            "corruption": line.first.corruption,
            "prompt": line.first.prompt,
            "task": line.task,
            "metric": line.first.metric,
            "first": first,
            "second": second,
            "first_score": f"{line.first.score:.6f}",
            "second_score": f"{line.second.score:.6f}",
            "reason": line.reason,
        }
        found = line.bootstrap
        if found is not None:
            row |= {
                "first_score": f"{found.second:.6f}",
                "second_score": f"{found.first:.6f}",
                "difference": f"{found.difference:.6f}",
                "low": f"{found.low:.6f}",
                "high": f"{found.high:.6f}",
                "p_value": f"{found.p_value:.6f}",
                "p_holm": f"{line.adjusted:.6f}",
                "examples": str(found.examples),
                "resamples": str(found.resamples),
            }
        writer.writerow(row)
    return file.getvalue()
