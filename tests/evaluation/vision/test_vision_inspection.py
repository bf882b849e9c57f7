"""Both towers of a CLIP-MoE are inspected and taken apart as a language model is."""

import csv
import json

import numpy as np
import pytest
import torch

import ssmoe_embed
from ssmoe_embed.data import emoji_concepts, emoji_pictures
from ssmoe_embed.evaluation.vision.ablation import within
from ssmoe_embed.evaluation.vision.inspection import collect_tower, shipped_names, shipped_pictures
from ssmoe_embed.vision import Tower, VisionRouting, spectral_policies, spectral_routers


@pytest.fixture(scope="module")
def module():
    return ssmoe_embed.load("ssmoe/tiny-clip", device="cpu", progress=False)[0]


@pytest.mark.parametrize(("tower", "sample"), [(Tower.TEXT, shipped_names), (Tower.VISION, shipped_pictures)])
def test_what_the_routers_say_is_read_of_every_token_and_of_no_padding(module, tower, sample):
    found = sample(24)
    inputs = found.texts if tower is Tower.TEXT else found.pictures
    routers = spectral_routers(module.model, VisionRouting(towers=(tower,)), progress=False)[tower]
    alone = [collect_tower(module, tower, [one], routers)[0] for one in inputs]
    read, vectors = collect_tower(module, tower, inputs, routers, batch_size=16)
    torch.testing.assert_close(read.tokens, torch.cat([one.tokens for one in alone]))
    for place, layer in enumerate(read.layers):
        torch.testing.assert_close(
            layer.learned, torch.cat([one.layers[place].learned for one in alone]), atol=1e-4, rtol=1e-4
        )
        own = layer.learned.topk(2).indices.sort(dim=1).values
        assert (layer.chosen.sort(dim=1).values == own).float().mean() > 0.999
    policy = spectral_policies({tower: routers}, VisionRouting(towers=(tower,), alpha=1.0))[tower]
    routed, moved = collect_tower(module, tower, inputs, routers, policy=policy)
    first = routed.layers[0]
    assert (first.chosen.sort(dim=1).values == first.spectral.topk(2).indices.sort(dim=1).values).float().mean() > 0.999
    assert not torch.equal(vectors, moved)


@pytest.mark.slow
def test_the_command_shows_both_towers(ssmoe, tmp_path):
    page = tmp_path / "report.html"
    ran = ssmoe("inspect", "ssmoe/tiny-clip", "-o", page, "--max-texts", 32, "--clusters", 3, "--quiet")
    assert ran.status == 0, ran.err
    vision, text = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))["models"]
    assert (vision["model"], text["model"]) == ("ssmoe/tiny-clip, vision tower", "ssmoe/tiny-clip, text tower")
    model = ssmoe_embed.load("ssmoe/tiny-clip", device="cpu", progress=False)[0].model
    for told, tower in ((vision, model.vision_model), (text, model.text_model)):
        assert len(told["layers"]) == tower.config.num_hidden_layers
        rows = tower.encoder.layers[0].mlp.gate.weight.double().detach().numpy()
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        off = ~np.eye(len(rows), dtype=bool)
        assert told["layers"][0]["learned"]["cosine"] == pytest.approx(np.abs((unit @ unit.T)[off]).mean(), rel=1e-5)
        assert set(told["layers"][0]["overlaps"]) == {"c_fc", "c_proj"}
        assert set(told["clusters"]) == {"original", "ssmoe", "ev"}
    assert "row 1, column 1" in str(vision["layers"])
    assert "row 1, column 1" in page.read_text(encoding="utf-8") or "class" in page.read_text(encoding="utf-8")


def test_pictures_are_only_for_models_that_see(ssmoe, tmp_path):
    ran = ssmoe("inspect", "ssmoe/tiny", "--images", tmp_path, "-o", tmp_path / "report.html")
    assert ran.status != 0
    assert "none of the models reads images" in ran.err


def test_the_command_takes_both_towers_apart(ssmoe, tmp_path):
    chosen = ["--variant", "permuted", "--variant", "random-pairs", "--variant", "equal-weights"]
    ran = ssmoe("ablate", "ssmoe/tiny-clip", *chosen, "--seeds", 2, "--documents", 16, "-o", tmp_path, "--quiet")
    assert ran.status == 0, ran.err
    lines = list(csv.DictReader((tmp_path / "ablation.csv").open(encoding="utf-8")))
    found = {(line["variant"], line["set"], line["measure"]): line for line in lines}
    assert {line["variant"] for line in lines} == {"original", "ev", "permuted", "equal-weights", "random-pairs"}
    for variant in ("original", "equal-weights"):  # the learned router's own two experts
        assert float(found[variant, "choices", "vision tower"]["value"]) == pytest.approx(1, abs=1e-3)
    assert float(found["random-pairs", "choices", "text tower"]["value"]) == pytest.approx(0.5, abs=0.1)
    assert found["random-pairs", "choices", "text tower"]["seeds"] == "2"
    texts, pictures = zip(*wanted(False, 16), strict=True)
    model = ssmoe_embed.load("ssmoe/tiny-clip", device="cpu", progress=False)
    cosines = np.asarray(model.similarity(model.encode(list(pictures)), model.encode(list(texts))))
    right = [np.argsort(-row)[:5].tolist().count(place) for place, row in enumerate(cosines)]
    told = found["original", "seen concepts", "image→text @5"]
    assert float(told["value"]) == pytest.approx(100 * np.mean(right))
    assert float(told["low"]) <= float(told["against_ev"]) <= float(told["high"])


def test_a_model_that_tells_nothing_apart_is_never_right():
    assert within(np.ones((6, 6)), 5).tolist() == [0] * 6
    assert within(np.array([[0.5, 0.9, 0.1], [0.2, 0.3, 0.3], [0, 0, 1.0]]), 1).tolist() == [0, 0, 1]


def wanted(held_out, count):
    """Names and drawings, chosen as the command says it does."""
    drawn = dict(emoji_pictures("twemoji"))
    there = [one for one in emoji_concepts() if one["held_out"] == held_out and one["key"] in drawn]
    return [
        (f"a picture of {one['label']}", drawn[one["key"]])
        for one in (there[i * len(there) // count] for i in range(count))
    ]


def test_what_a_model_of_images_cannot_be_asked_is_refused(ssmoe, tmp_path):
    for wrong, told in ((["--tasks", "STS12"], "leave out"), (["--variant", "weights-only"], "weights-only")):
        ran = ssmoe("ablate", "ssmoe/tiny-clip", *wrong, "-o", tmp_path)
        assert ran.status != 0
        assert told in ran.err
