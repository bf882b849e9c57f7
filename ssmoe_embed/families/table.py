"""The table of families, as `ssmoe families` prints it and `docs/families.md` keeps it."""

from __future__ import annotations

from ssmoe_embed.common.tables import Table
from ssmoe_embed.families import families
from ssmoe_embed.families.refused import REFUSED

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


def table() -> Table:
    """One row for each adapter; its models are one line each."""
    found: list[tuple[str, ...]] = []
    for family in families():
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


def markdown() -> str:
    """The text of `docs/families.md`."""
    reasons: dict[str, list[str]] = {}
    for name, reason in sorted(REFUSED.items()):
        reasons.setdefault(reason, []).append(f"`{name}`")
    refused = "\n".join(f"- {', '.join(names)}: {reason}." for reason, names in reasons.items())
    return f"{_HEAD}\n{table().markdown()}\n{_REFUSED}{refused}\n"
