"""`ssmoe info` and `ssmoe families`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from ssmoe_embed.cli.options import DEFAULT_MODEL, memory_lines
from ssmoe_embed.common.tables import Table


def info(
    model: Annotated[str, typer.Argument(help="Folder, hub id or recipe name of the embedding model.")] = DEFAULT_MODEL,
) -> None:
    """Show a model's settings, size and memory."""
    from ssmoe_embed.embedding.module import SSMoE
    from ssmoe_embed.hub.loading import load
    from ssmoe_embed.quantization.memory import weight_count

    encoder = load(model, progress=False)
    module = encoder[0]
    if not isinstance(module, SSMoE):
        raise ValueError(f"{model} is not a model of this package: its first module is {type(module).__name__}.")
    spectral = module.routers.settings.as_dict() if module.routers else {}
    rows = module.get_config_dict() | spectral
    rows |= {
        "dimension": encoder.get_embedding_dimension(),
        "parameters": f"{weight_count(module.model):,}",
        "memory": memory_lines(module),
        "device": str(encoder.device),
        "calibrations": "\n".join(module.calibrations.factors) or "none",
    }
    lines = {name: str(value).split("\n") for name, value in rows.items()}
    shown = [(name if place == 0 else "", line) for name, found in lines.items() for place, line in enumerate(found)]
    Console().print(Table(("setting", "value"), tuple(shown), title=model, texts=2).rich())


def families(
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the text of docs/families.md.")] = False,
) -> None:
    """List the supported model families, and what is refused.

    --markdown prints the full table of docs/families.md.
    """
    from ssmoe_embed.families.table import markdown, table

    if as_markdown:
        typer.echo(markdown(), nl=False)
        return
    shown = (0, 1, -1)  # what fits a terminal
    full = table()
    rows = [tuple(row[place].replace("`", "") for place in shown) for row in full.rows]
    Console().print(Table(tuple(full.columns[place] for place in shown), tuple(rows), texts=len(shown)).rich())
