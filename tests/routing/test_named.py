"""Routings by name: what may be written, what becomes of it, and that the documentation lists all of them."""

from pathlib import Path

import pytest

from ssmoe_embed.embedding.settings import EmbeddingSettings
from ssmoe_embed.evaluation.harness.grid import GridCell
from ssmoe_embed.evaluation.harness.results import GridFolder, TextResult
from ssmoe_embed.evaluation.mteb.runs import grid
from ssmoe_embed.language_model.dropping import parse_drop_by
from ssmoe_embed.language_model.loading import parse_routing
from ssmoe_embed.routing.named import NAMED, canonical

DOCS = Path(__file__).parents[2] / "docs" / "routers.md"


def test_the_documentation_lists_every_routing_with_its_settings():
    text = DOCS.read_text(encoding="utf-8")
    for name, routing in NAMED.items():
        row = (f"`{name}`", routing.what, routing.source, routing.cost, routing.refuses)
        assert f"| {' | '.join(row)} |" in text
        assert all(f"`{field}" in text for field in routing.kind.__dataclass_fields__)


@pytest.mark.parametrize(
    ("written", "short"),
    [
        ("usmoe", "usmoe"),
        ("usmoe:causal=true,rate=0.30", "usmoe:causal=true,rate=0.3"),
        ("usmoe:rate=0.5,causal=false", "usmoe"),
        ("competition:response=norm", "competition:response=norm"),
        ("random:seed=3", "random:seed=3"),
        ("equal", "equal"),
        ("least-similar:top_c=0.20", "least-similar:top_c=0.2"),
    ],
)
def test_a_routing_has_one_shortest_form(written, short):
    assert canonical(written) == short
    assert canonical(short) == short
    assert EmbeddingSettings(method="smoe", routing=written) == EmbeddingSettings(method="smoe", routing=short)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("usmeo", "usmoe"),
        ("usmoe:rate=high", "is no number"),
        ("usmoe:rate=2", "outside"),
        ("usmoe:budget=0", "outside"),
        ("usmoe:share=1", "setting='share'"),
        ("usmoe:causal=1", "neither true nor false"),
        ("competition:response=max", "softplus"),
        ("equal:share=1", "equal has no settings"),
        ("least-similar:top_c=2.5", "not a fraction"),
    ],
)
def test_what_cannot_be_read_is_refused_with_what_can(written, said):
    for read in (canonical, parse_routing, GridCell.parse):
        with pytest.raises(ValueError, match=said):
            read(written)


def test_a_language_model_may_not_look_ahead_and_is_told_before_it_is_loaded():
    with pytest.raises(ValueError, match="causal=true"):
        GridCell.parse("usmoe")


def test_a_method_that_is_routed_by_the_mix_takes_no_other_routing():
    with pytest.raises(ValueError, match="choose method='smoe'"):
        EmbeddingSettings(method="ssmoe", routing="usmoe")


def test_an_evaluation_measures_each_routing_and_the_mix_once():
    runs = grid(["smoe", "ssmoe"], overrides={"alpha": 0.3}, routings=["own", "usmoe:rate=0.50", "hash"])
    own = EmbeddingSettings(method="moee", routing="usmoe")
    found = [(str(one.method), one.routing) for one in (run.settings(own) for run in runs)]
    assert found == [("smoe", None), ("smoe", "usmoe"), ("smoe", "hash"), ("ssmoe", None)]
    assert grid(["ssmoe"])[0].settings(own).routing is None
    with pytest.raises(ValueError, match="usmoe"):
        grid(["smoe"], routings=["usmeo"])


@pytest.mark.parametrize("by", ["usmoe:causal=true", "competition", "equal", "best"])
def test_experts_are_dropped_by_routings_that_have_scores(by):
    assert parse_drop_by("router") == "router"
    assert parse_drop_by("smoothed:noise=0.10") == "smoothed"
    assert parse_drop_by("least-similar:top_c=50") == "least-similar"
    with pytest.raises(ValueError, match="by="):
        parse_drop_by(by)


def test_a_grid_keeps_each_routing_apart_on_any_system(tmp_path):
    folder = GridFolder(tmp_path)
    cells = [GridCell.parse(name) for name in ("usmoe:causal=true+ssmoe-drop", "usmoe:causal=true", "ev")]
    assert [cell.name for cell in cells] == ["usmoe:causal=true+ssmoe-drop", "usmoe:causal=true", "ev"]
    assert [cell.drop for cell in cells] == ["ssmoe", None, None]
    for cell in cells:
        folder.write_perplexity(TextResult(cell.name, "a.txt", "12", 2.0, 0.7, 0.1, 10, 5, 2))
    assert sorted(one.cell for one in folder.perplexities()) == sorted(cell.name for cell in cells)
    assert all(folder.has_perplexity(cell.name, "12") for cell in cells)
    assert not any(set(':<>"|?*\\') & set(path.name) for path in tmp_path.rglob("*"))
