"""The notebooks run from top to bottom, show what they promise, and are kept without results."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.extras
EXAMPLES = Path(__file__).parents[2] / "examples"
SHOWN = {
    "quickstart.ipynb": [
        r"\(3, 256\)",
        r"smoe +like: 0\.\d+  unlike",
        "<SemanticIndex 'how-to': 150 documents",
        "commit",
    ],
    "evaluate_and_compare.ipynb": [
        r"^\[\]$",
        r"\| ssmoe/tiny \| ssmoe \|",
        r"\| WordRelatednessSTS \| cosine_spearman",
    ],
}


@pytest.fixture
def nbformat():
    return pytest.importorskip("nbformat")


def results(book):
    """Everything that the cells show, as text."""
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    return [output.get("text") or "\n".join(map(str, output.get("data", {}).values())) for output in outputs]


@pytest.mark.parametrize("name", SHOWN)
def test_a_notebook_is_kept_without_results(nbformat, name):
    book = nbformat.read(EXAMPLES / name, as_version=4)
    nbformat.validate(book)
    assert results(book) == []
    assert {cell.get("execution_count") for cell in book.cells} == {None}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHOWN)
def test_a_notebook_runs_and_shows_what_it_promises(nbformat, name, monkeypatch, tmp_path):
    shells = pytest.importorskip("IPython.core.interactiveshell")
    from IPython.utils.capture import capture_output

    monkeypatch.chdir(tmp_path)
    shell, shown = shells.InteractiveShell(), ""  # what a kernel runs cells with, in this process
    for cell in nbformat.read(EXAMPLES / name, as_version=4).cells:
        if cell.cell_type == "code":
            with capture_output() as captured:
                ran = shell.run_cell(cell.source)
            ran.raise_error()
            result = {} if ran.result is None else shell.display_formatter.format(ran.result)[0]
            shown += "\n".join([captured.stdout, *map(str, result.values()), ""])
    for promised in SHOWN[name]:
        assert re.search(promised, shown, re.M), promised
