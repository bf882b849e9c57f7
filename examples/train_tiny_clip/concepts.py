"""What is drawn: emoji of emojibase with their names and tags, split into those to train on and those held out."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

HELD_OUT_SHARE = 0.15
_NOT_TOLD_BY_LOOKS = ("country-flag", "subdivision-flag", "keycap", "alphanum", "zodiac", "geometric")
"""Subgroups whose members nobody recognises who was not told which is which; none of these is held out."""


@dataclass(frozen=True)
class Concept:
    """One emoji, whatever its skin tone.

    Attributes:
        key: Its code points in hexadecimal, without variation selectors.
        emoji: The characters themselves.
        label: Its name.
        tags: Words for it.
        group: Its group in emojibase's hierarchy, such as "animals-nature".
        subgroup: Its subgroup, such as "animal-mammal".
        held_out: Whether no picture and no text of it may be trained on.
    """

    key: str
    emoji: str
    label: str
    tags: tuple[str, ...]
    group: str
    subgroup: str
    held_out: bool


def code_points(hexcode: str) -> str:
    """Code points as all sources write them here: lower case, no variation selectors, no leading zeros."""
    parts = [part.lstrip("0") for part in re.split(r"[-_ ]", hexcode.lower())]
    return "-".join(part for part in parts if part not in ("fe0f", "fe0e"))


def read_concepts(emojibase: Path) -> list[Concept]:
    """All emoji of the English data, skin tones collapsed, in emojibase's order.

    Args:
        emojibase: The unpacked npm package `emojibase-data`.
    """
    names = json.loads((emojibase / "meta" / "groups.json").read_text(encoding="utf-8"))
    records = json.loads((emojibase / "en" / "data.json").read_text(encoding="utf-8"))
    records = sorted((one for one in records if "group" in one), key=lambda one: one["order"])
    groups = [names["groups"][str(one["group"])] for one in records]
    subgroups = [names["subgroups"][str(one["subgroup"])] for one in records]
    kept = [place for place, group in enumerate(groups) if group != "component"]
    held = held_out([(code_points(records[place]["hexcode"]), subgroups[place]) for place in kept])
    return [
        Concept(
            key=(key := code_points(records[place]["hexcode"])),
            emoji=records[place]["emoji"],
            label=records[place]["label"],
            tags=tuple(records[place].get("tags", ())),
            group=groups[place],
            subgroup=subgroups[place],
            held_out=key in held,
        )
        for place in kept
    ]


def held_out(keys: list[tuple[str, str]]) -> set[str]:
    """Which concepts are held out: the same share of every subgroup, chosen by the hash of their code points."""
    by_subgroup = defaultdict(list)
    for key, subgroup in keys:
        if not subgroup.startswith(_NOT_TOLD_BY_LOOKS):
            by_subgroup[subgroup].append(key)
    held: set[str] = set()
    for members in by_subgroup.values():
        members.sort(key=lambda key: hashlib.sha256(key.encode()).digest())
        held.update(members[: round(HELD_OUT_SHARE * len(members))])
    return held
