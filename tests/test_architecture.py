"""ARCHITECTURE.md is true: every part is in its table, and imports point up the table only."""

import ast
import re
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
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


MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imported(path):
    """What a file imports of the package, for types only too: each module, and each name that is taken from it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield (whole, "") if whole in MODULES else (node.module, alias.name)


def test_no_file_imports_itself_in_a_circle():
    graph = {
        name: {other for other, _ in imported(path) if other in MODULES and MODULES[other].name != "__init__.py"}
        - {name}
        for name, path in MODULES.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as circle:
        pytest.fail(" → ".join(circle.args[1]))


def test_no_file_takes_another_ones_private_names():
    wrong = [
        f"{name} takes {other}.{taken}"
        for name, path in MODULES.items()
        for other, taken in imported(path)
        if other.startswith("ssmoe_embed") and re.match(r"_(?!_)", taken)
    ]
    assert not wrong


def test_no_public_class_has_the_name_of_another():
    named = defaultdict(list)
    for name, path in MODULES.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                named[node.name].append(name)
    assert {kind: where for kind, where in named.items() if len(where) > 1} == {}


def test_no_file_of_the_package_is_longer_than_350_lines():
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert {name: length for name, length in lengths.items() if length > 350} == {}


OURS = sorted(
    path for folder in ("ssmoe_embed", "tests", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")
)
TEXT = {"read_text", "write_text", "open", "run", "Popen", "check_output"}


def test_no_text_is_read_or_written_in_the_encoding_of_whoever_runs_it():
    wrong = []
    for path in OURS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or getattr(node.func, "attr", getattr(node.func, "id", "")) not in TEXT:
                continue
            called, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            if called.endswith(("read_text", "write_text")):
                named = len(node.args) > called.endswith("write_text")
            elif called.endswith("open"):  # others than a path's and Python's own are told by what they are given
                mode = node.args[called == "open" :] or [ast.Constant("r")]
                named = "b" in ast.unparse(mode[0]) or not re.match(r"'[rwax]", ast.unparse(mode[0]))
            else:
                named = given.get("text", given.get("universal_newlines", "False")) == "False"
            if not named and "encoding" not in given:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {called}")
    assert wrong == []
