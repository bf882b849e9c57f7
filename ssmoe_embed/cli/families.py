"""`ssmoe families`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ssmoe_embed.families.table import COLUMNS, markdown, rows


def families(
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the text of docs/families.md.")] = False,
) -> None:
    """List the families of MoE models that are supported, and what is not supported of each."""
    if as_markdown:
        typer.echo(markdown(), nl=False)
        return
    table = Table(*COLUMNS, show_lines=True)
    for row in rows():
        table.add_row(*(cell.replace("`", "") for cell in row))
    Console().print(table)
