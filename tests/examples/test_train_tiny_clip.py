"""The training of the bundled model of images: what is held out stays out, and an interrupted stage goes on."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDERS = (EXAMPLES / "train_tiny_clip", EXAMPLES / "train_tiny")
STYLES = ("noto", "fluent-emoji-flat", "fxemoji", "emojione", "twemoji")
CONCEPTS = 12


@pytest.fixture(scope="module", autouse=True)
def training_modules():
    """Let the example's modules be imported by their names, as its scripts do."""
    before = set(sys.modules)
    sys.path[:0] = map(str, FOLDERS)
    yield
    for folder in FOLDERS:
        sys.path.remove(str(folder))
    for name in set(sys.modules) - before:
        if any((folder / f"{name}.py").exists() for folder in FOLDERS):
            del sys.modules[name]


@pytest.fixture(scope="module")
def work(tmp_path_factory, training_modules):
    """What `pictures.py` and `texts.py` write, of twelve concepts, two of which are held out."""
    from model import make_tokenizer

    folder, rng = tmp_path_factory.mktemp("clip"), np.random.default_rng(0)
    kept = {"group": "animals-nature", "subgroup": "animal-mammal"}
    concepts = [
        {"label": f"thing {i}", "tags": [f"tag {i}"], "held_out": i >= CONCEPTS - 2} | kept for i in range(CONCEPTS)
    ]
    shown = [{"concept": i, "style": style} for style in STYLES for i in range(CONCEPTS)]
    said = [[one["label"], f"a picture of {one['label']}", *one["tags"]] for one in concepts]
    broad = [f"word {i}" for i in range(40)]
    np.save(folder / "pixels.npy", rng.integers(0, 256, (len(shown), 48, 48, 4), dtype=np.uint8))
    for name, count in (("meant", CONCEPTS), ("broad", len(broad))):
        np.save(folder / f"{name}.npy", rng.normal(size=(count, 192)).astype(np.float16))
    (folder / "pictures.json").write_text(json.dumps({"concepts": concepts, "pictures": shown}), encoding="utf-8")
    (folder / "texts.json").write_text(json.dumps({"broad": broad, "said": said}), encoding="utf-8")
    make_tokenizer(broad, size=600).save_pretrained(folder / "tokenizer")
    return folder


def test_neither_the_held_out_style_nor_a_held_out_concept_is_trained_on(work):
    from train_clip import Trainer

    material = Trainer(work).material
    shown = json.loads((work / "pictures.json").read_text(encoding="utf-8"))["pictures"]
    trained = {row for rows in material.pictures.values() for row in rows}
    for row in trained | set(material.kept_back):
        assert shown[row]["style"] != "twemoji"
        assert shown[row]["concept"] < CONCEPTS - 2
    assert trained.isdisjoint(material.kept_back)
    assert all(shown[row]["concept"] == concept for row, concept in material.kept_back.items())
    assert len(material.kept_back) == CONCEPTS - 2


def test_a_picture_that_is_only_moved_to_white_is_the_colour_that_it_was():
    from batches import MEAN, STD, grounds, plain, premultiplied, recolouring, seen

    colour = np.array([200, 100, 50, 255], np.uint8)
    pixels = np.broadcast_to(colour, (1, 48, 48, 4))
    wanted = (colour[:3] / 255 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(plain(pixels)[0].permute(1, 2, 0).reshape(-1, 3).mean(0), wanted, atol=1e-5)
    rng = np.random.default_rng(0)
    black, mirrored = np.zeros(64, bool), np.ones(64, bool)
    shown = seen(premultiplied(np.repeat(pixels, 64, axis=0)), black, mirrored, rng)
    assert shown.shape == (64, 3, 32, 32)
    assert torch.isfinite(shown).all()
    grey = recolouring(rng, 200).double() @ torch.ones(3, dtype=torch.float64)  # a map of hue and strength keeps grey
    assert (grey / grey.mean(dim=1, keepdim=True)).sub(1).abs().max() < 0.4  # but for its tint
    assert grounds(np.ones(500, bool), rng).min() >= 0.6


def test_each_head_of_the_image_tower_starts_by_looking_at_its_region(work):
    from batches import plain
    from starts import start_from_patches, start_from_regions
    from train_clip import Trainer, dense_model

    trainer = Trainer(work)
    model = dense_model(trainer.tokenizer).eval()
    start_from_regions(model, start_from_patches(model, trainer.material, trainer.shown()))
    pixels = plain(trainer.material.pixels[trainer.shown()])
    seen = model.vision_model(pixels, output_attentions=True).attentions[0].mean(dim=0)[:, 0, 1:]  # [heads,16]
    rows, columns = np.divmod(np.arange(16), 4)
    for head, region in enumerate((rows == 0, columns == 0, (rows < 2) & (columns < 2))):
        assert seen[head][torch.from_numpy(region)].sum() > 0.75


def test_two_drawings_of_a_concept_are_told_from_others_by_cross_entropy():
    from clip_losses import alike

    images = torch.nn.functional.normalize(torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    losses = []
    for i in range(6):
        others = [j for j in range(6) if j != i]
        logits = torch.stack([10 * images[i] @ images[j] for j in others])
        losses.append(logits.logsumexp(0) - 10 * images[i] @ images[(i + 3) % 6])
    assert alike(images).item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


@pytest.mark.slow
def test_every_stage_runs_and_an_interrupted_one_goes_on_to_the_same_weights(work, monkeypatch, tmp_path):
    import shutil

    import starts
    import train_clip

    from ssmoe_embed.vision import ClipMoeModel

    monkeypatch.setattr(train_clip, "STEPS", dict.fromkeys(train_clip.STEPS, 3))
    monkeypatch.setattr(train_clip, "SAVE_EVERY", 1)
    monkeypatch.setattr(train_clip, "GATES_ALONE", 1)
    monkeypatch.setattr(train_clip, "start_from_bag", lambda *given: starts.start_from_bag(*given, steps=2))
    folders = [tmp_path / name for name in ("whole", "stopped")]
    for folder in folders:
        shutil.copytree(work, folder)
    train_clip.Trainer(folders[0]).run()

    class StoppedError(Exception):
        """The second step of a stage is not finished."""

    for stage in ("vision", "moe"):
        save, count = train_clip.checkpoint.save, []

        def stop(path, *given, stage=stage, save=save, count=count):
            count.append(path.stem)
            if count.count(stage) == 2:
                raise StoppedError
            save(path, *given)

        with monkeypatch.context() as patched:
            patched.setattr(train_clip.checkpoint, "save", stop)
            with pytest.raises(StoppedError):
                train_clip.Trainer(folders[1]).run()
    train_clip.Trainer(folders[1]).run()
    whole, stopped = (ClipMoeModel.from_pretrained(folder / "trained").state_dict() for folder in folders)
    assert whole.keys() == stopped.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(stopped[name], tensor, rtol=0, atol=0)
    gate = whole["vision_model.encoder.layers.0.mlp.gate.weight"]
    assert not torch.equal(gate, torch.zeros_like(gate))
