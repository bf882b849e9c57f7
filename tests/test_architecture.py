"""ARCHITECTURE.md is true: every part is in its table, and imports point up the table only."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ssmoe_embed"
ROWS = re.findall(
    r"^\| ((?:`[a-z_./]+`(?:, )?)+) \|", (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"), re.MULTILINE
)
ORDER = {
    name.removesuffix("/").removesuffix(".py"): place
    for place, row in enumerate(ROWS)
    for name in re.findall(r"`([a-z_./]+)`", row)
}
PARTS = sorted({path.name.removesuffix(".py") for path in PACKAGE.iterdir()} - {"__init__", "__pycache__", "py.typed"})


def imports(part):
    """The parts that a part's modules import, each with the module that does."""
    folder = PACKAGE / part
    for path in folder.rglob("*.py") if folder.is_dir() else [PACKAGE / f"{part}.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module else []
            for name in names:
                if name.startswith("ssmoe_embed.") and name.split(".")[1] in PARTS:
                    yield name.split(".")[1], path.relative_to(PACKAGE)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_in_the_table_and_imports_only_what_stands_above_it(part):
    assert part in ORDER
    wrong = [
        f"{path} imports {other}" for other, path in imports(part) if other != part and ORDER[other] >= ORDER[part]
    ]
    assert not wrong
