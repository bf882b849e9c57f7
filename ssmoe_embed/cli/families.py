"""`ssmoe families`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


def families(
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the text of docs/families.md.")] = False,
) -> None:
    """List the supported model families, and what is refused.

    --markdown prints the full table of docs/families.md.
    """
    from ssmoe_embed.families.table import COLUMNS, markdown, rows

    if as_markdown:
        typer.echo(markdown(), nl=False)
        return
    shown = (0, 1, -1)  # what fits a terminal
    table = Table(show_lines=True)
    for place in shown:
        table.add_column(COLUMNS[place], overflow="fold")
    for row in rows():
        table.add_row(*(row[place].replace("`", "") for place in shown))
    Console().print(table)
