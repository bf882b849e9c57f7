"""`ssmoe info` and `ssmoe families`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from ssmoe_embed.cli.options import DEFAULT_MODEL, memory_lines
from ssmoe_embed.common.tables import Table

_HEAD = """# Families of MoE models

Written by `ssmoe families --markdown > docs/families.md`; change the adapters in `ssmoe_embed/families/`, not this file.

All of these can be embedded, re-routed and read from disk. "From disk" names the number formats from which spectral routers
are made without loading the model. What "refused" names is refused with a message that says why.

A family is named by the `model_type` in a model's config.json. A model that also sees or hears goes by its own `model_type`
where it has a row, else by that of its text part (`text_config`): Kimi-K2.5 by `deepseek_v3`, InternVL 3.5 by `qwen3_moe`.
Only its text part is loaded into an embedding model.
"""
_REFUSED = """
## Known and not supported

"""


def info(
    model: Annotated[str, typer.Argument(help="Folder, hub id or recipe name of the embedding model.")] = DEFAULT_MODEL,
) -> None:
    """Show a model's settings, size and memory."""
    from ssmoe_embed.embedding.module import SSMoE
    from ssmoe_embed.hub.models import load
    from ssmoe_embed.quantization.loading import weight_count

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
    if as_markdown:
        typer.echo(family_page(), nl=False)
        return
    shown = (0, 1, -1)  # what fits a terminal
    full = family_table()
    rows = [tuple(row[place].replace("`", "") for place in shown) for row in full.rows]
    Console().print(Table(tuple(full.columns[place] for place in shown), tuple(rows), texts=len(shown)).rich())


def family_table() -> Table:
    """One row for each adapter of a family; its models are one line each."""
    from ssmoe_embed.families import families as adapters

    found: list[tuple[str, ...]] = []
    for family in adapters():
        notes = family.notes
        models = "\n".join(f"`{name}`: {models}" for name, models in family.models.items())
        score = str(family.score) if notes.score == "–" else notes.score
        how = (score, notes.weights, notes.beside, notes.layout)
        found.append((models, *how, notes.four_bit, notes.from_disk, notes.unsupported))
    heads: tuple[str, ...] = (
        "model_type: models",
        "score",
        "scores → weights",
        "beside the routed experts",
        "layout on disk",
    )
    heads += ("4-bit", "from disk", "refused")
    return Table(heads, tuple(found), texts=len(heads))


def family_page() -> str:
    """The text of `docs/families.md`."""
    from ssmoe_embed.families.refused import REFUSED

    reasons: dict[str, list[str]] = {}
    for name, reason in sorted(REFUSED.items()):
        reasons.setdefault(reason, []).append(f"`{name}`")
    refused = "\n".join(f"- {', '.join(names)}: {reason}." for reason, names in reasons.items())
    return f"{_HEAD}\n{family_table().markdown()}\n{_REFUSED}{refused}\n"
