"""The table of families, as `ssmoe families` prints it and `docs/families.md` keeps it."""

from __future__ import annotations

from ssmoe_embed.families import families
from ssmoe_embed.families.refused import REFUSED

COLUMNS = ("model_type", "models", "scores → weights", "beside the routed experts", "on disk", "not supported")

_HEAD = """# Families of MoE models

Written by `ssmoe families --markdown > docs/families.md`; change the adapters in `ssmoe_embed/families/`, not this file.

All of these can be embedded, re-routed and read from disk. What "not supported" names is refused, with a message that says
why. A family is named by the `model_type` in a model's config.json.
"""
_REFUSED = """
## Known and not supported

"""


def rows() -> list[tuple[str, ...]]:
    """One row a family, in the order of `COLUMNS`."""
    found: list[tuple[str, ...]] = []
    for family in families():
        notes = family.notes
        types = ", ".join(f"`{name}`" for name in family.model_types)
        found.append((types, notes.models, notes.weights, notes.beside, notes.layout, notes.unsupported))
    return found


def markdown() -> str:
    """The text of `docs/families.md`."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows()]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    reasons: dict[str, list[str]] = {}
    for name, reason in sorted(REFUSED.items()):
        reasons.setdefault(reason, []).append(f"`{name}`")
    refused = "\n".join(f"- {', '.join(names)}: {reason}." for reason, names in reasons.items())
    return f"{_HEAD}\n{table}\n{_REFUSED}{refused}\n"
