"""`ssmoe info`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ssmoe_embed.cli.options import DEFAULT_MODEL, memory_lines


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
    table = Table("setting", "value", title=model)
    spectral = module.routers.settings.as_dict() if module.routers else {}
    rows = module.get_config_dict() | spectral
    rows |= {
        "dimension": encoder.get_embedding_dimension(),
        "parameters": f"{weight_count(module.model):,}",
        "memory": memory_lines(module),
        "device": str(encoder.device),
        "calibrations": "\n".join(module.calibrations.factors) or "none",
    }
    for name, value in rows.items():
        table.add_row(name, str(value))
    Console().print(table)
