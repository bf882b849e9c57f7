"""The notebooks run from top to bottom, show what they promise, and are kept without results."""

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
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


def results(book):
    """Everything that the cells show, as text."""
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    return [output.get("text") or "\n".join(map(str, output.get("data", {}).values())) for output in outputs]


@pytest.mark.parametrize("name", SHOWN)
def test_a_notebook_is_kept_without_results(name):
    book = nbformat.read(EXAMPLES / name, as_version=4)
    nbformat.validate(book)
    assert results(book) == []
    assert {cell.get("execution_count") for cell in book.cells} == {None}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHOWN)
def test_a_notebook_runs_and_shows_what_it_promises(name, environment, monkeypatch, tmp_path):
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.chdir(tmp_path)
    book = client.NotebookClient(nbformat.read(EXAMPLES / name, as_version=4), timeout=500).execute()
    shown = "\n".join(results(book))
    for promised in SHOWN[name]:
        assert re.search(promised, shown, re.M), promised
