"""The benchmark of training under four ways: what it reports of finished runs, and that its examples are of one length."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

from ssmoe_embed.language_model import load_tokenizer


@pytest.fixture
def curves(monkeypatch):
    """The script."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("training_curves")


def finished(perplexity, loss):
    names = ("ssmoe_continuation", "ssmoe_dictionary", "entropy", "dead", "overlap", "own", "gradients", "specificity")
    curve = [[100 * (step + 1), loss + 1 / (step + 1)] for step in range(24)]
    seen = {"original": perplexity, "ssmoe": perplexity + 1}
    return dict.fromkeys(names, 0.5) | {"seconds": 2.0, "curve": curve, "perplexity": seen, "vectors": {}}


def test_ways_are_compared_seed_by_seed(curves, monkeypatch, capsys, tmp_path):
    for start in curves.STARTS:
        for way in (*curves.WAYS, *curves.OPTIMIZERS):
            for seed in curves.SEEDS:
                found = finished(100 * (seed + 1) * (1.1 if way == "SD-MoE" else 1), 2 + seed + (way == "SD-MoE"))
                found["vectors"] = dict.fromkeys(curves.METHODS, 10.0 * seed)
                (tmp_path / f"{curves._name(start, way, seed)}.json").write_text(json.dumps(found), encoding="utf-8")
    output = tmp_path / "out.md"
    monkeypatch.setattr(sys, "argv", ["x", "--work", str(tmp_path), "--report", "--output", str(output)])
    curves.main()
    assert output.read_text(encoding="utf-8").strip() == capsys.readouterr().out.strip()
    rows = re.findall(r"\| SD-MoE \| (.*) \|", output.read_text(encoding="utf-8"))
    assert rows[0].split(" | ")[:2] == ["220.0 (110.0 to 330.0)", "1.100 (1.100 to 1.100)"]
    assert rows[2].split(" | ") == ["10.0 (0.0 to 20.0)"] * 5
    assert output.with_suffix(".svg").read_bytes().startswith(b"<?xml")
    binned = curves._binned(finished(1, 2)["curve"])
    assert len(binned) == curves.BINS
    assert binned[0] == pytest.approx((200, 2.75))


def test_examples_are_of_one_length_and_none_is_held_out_too(curves):
    tokenizer = load_tokenizer("ssmoe/tiny")
    train, held = curves.texts(tokenizer)
    assert (len(train), len(held)) == (curves.EXAMPLES, curves.HELD_OUT)
    assert not {*train} & {*held}
    lengths = [len(ids) for ids in tokenizer(train[:40])["input_ids"]]
    assert max(abs(length - curves.PIECE) for length in lengths) <= 3
