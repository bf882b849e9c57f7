"""Links between the files of the repository lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGES = [
    *REPOSITORY.glob("*.md"),
    *(page for folder in ("docs", "benchmarks", "examples") for page in (REPOSITORY / folder).rglob("*.md")),
]
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s#]*)(?:#([^)\s]*))?\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The names that the headings of a page are linked by."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_links_lead_to_files_and_headings_that_are_there(page):
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    for place, heading in LINK.findall(text):
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), f"{place} is not there"
        if heading and target.suffix == ".md":
            assert heading in anchors(target), f"{place} has no heading #{heading}"
