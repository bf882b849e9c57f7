"""Where commands write, and what is left there when they fail."""

import pytest

MODEL = "no/such-model"
FAILING = {
    "build": (MODEL,),
    "drop": (MODEL,),
    "encode": ("texts.txt", "--model", MODEL),
    "index": ("texts.txt", "--model", MODEL),
    "inspect": (MODEL,),
    "evaluate": (MODEL, "--tasks", "WordRelatednessSTS"),
    "sweep": (MODEL, "--alpha", 0, "--tasks", "WordRelatednessSTS"),
    "ablate": (MODEL,),
    "lm-eval": (MODEL,),
}
FILES = {"encode": "out/vectors.npy", "inspect": "out/report.html", "compare": "out/table.md"}


@pytest.fixture
def folder(tmp_path, texts, monkeypatch):
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", FAILING)
def test_a_command_that_fails_leaves_nothing_behind(ssmoe, folder, command):
    output = FILES.get(command, "out/x").removeprefix("out/")
    ran = ssmoe(command, *FAILING[command], "--output", output)
    assert ran.status == 1
    assert "Error: " in ran.err or "Failed: " in ran.err
    assert [path.name for path in folder.iterdir()] == ["texts.txt"]


@pytest.mark.parametrize("command", FILES)
def test_a_folder_that_is_not_there_is_refused_before_anything_is_loaded(ssmoe, folder, command):
    arguments = FAILING.get(command, (folder,))
    ran = ssmoe(command, *arguments, "--output", FILES[command])
    assert ran.status == 1
    assert "There is no folder out to write" in ran.err
    assert not (folder / "out").exists()
