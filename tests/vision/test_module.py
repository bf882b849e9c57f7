"""`SSMoEVision` encodes texts, pictures and both, under any routing, and is the same after it was saved."""

import numpy as np
import pytest
import torch
from clip_moe import Release, block_names, published, release_ev
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import CLIPImageProcessorPil, CLIPProcessor, CLIPTokenizer

import ssmoe_embed
from ssmoe_embed import EmbeddingModel, SSMoEVision
from ssmoe_embed.embedding.tokenization import TextError
from ssmoe_embed.vision import PAPER, ClipMoeModel, ImageError, VisionRouting
from ssmoe_embed.vision.checkpoint import from_published

TEXTS = ["a b c", "a", "c " * 60]
IDS = [[98, 3, 4, 5, 99], [98, 3, 99], [98, *[5] * 28, 99]]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def images():
    pixels = np.random.default_rng(0).integers(0, 255, (3, 12, 12, 3), dtype=np.uint8)
    return [Image.fromarray(one) for one in pixels]


def processor():
    words = {"<|startoftext|>": 98, "<|endoftext|>": 99, "a</w>": 3, "b</w>": 4, "c</w>": 5}
    images = CLIPImageProcessorPil(size={"shortest_edge": 12}, crop_size={"height": 12, "width": 12})
    return CLIPProcessor(images, CLIPTokenizer(vocab=words, merges=[], model_max_length=30))


@pytest.fixture(scope="module")
def module():
    return SSMoEVision(from_published(published()), processor())


@pytest.fixture(scope="module")
def model(module):
    return EmbeddingModel(modules=[module], device="cpu")


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vision")
    model.save(str(folder))
    return folder


def expected(release, images):
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2) / 255
    pixels = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    return release.image(pixels), torch.cat([release.text(torch.tensor([ids])) for ids in IDS])


def close(found, wanted):
    torch.testing.assert_close(torch.as_tensor(found).double(), torch.as_tensor(wanted).double(), rtol=1e-4, atol=1e-5)


def test_images_and_texts_are_what_the_paper_says_in_any_order_and_batch(model, images):
    image, text = expected(Release(published()), images)
    close(model.encode(images), image)
    close(model.encode(TEXTS), text)
    mixed = [images[0], TEXTS[0], {"image": images[1]}, TEXTS[1]]
    close(model.encode(mixed), torch.stack([image[0], text[0], image[1], text[1]]))
    close(model.encode([*images, *TEXTS], batch_size=1), torch.cat([image, text]))


def test_a_picture_with_a_text_is_the_sum_of_their_directions(model, images):
    both = model.encode([{"image": images[0], "text": TEXTS[0]}, TEXTS[1], {"text": TEXTS[0], "image": images[1]}])
    image, text = (torch.nn.functional.normalize(one, dim=-1) for one in expected(Release(published()), images))
    close(both[[0, 2]], image[:2] + text[:1])
    close(torch.nn.functional.normalize(torch.tensor(both[1]), dim=-1), text[1])


def test_the_papers_routing_is_the_releases(module, images):
    tensors = published()
    release = Release(tensors, {name: release_ev(tensors, name) for name in block_names()}, 1.0)
    routed = EmbeddingModel(modules=[module.using(PAPER)], device="cpu")
    for found, wanted in zip((routed.encode(images), routed.encode(TEXTS)), expected(release, images), strict=True):
        close(found, wanted)
    close(EmbeddingModel(modules=[module], device="cpu").encode(images), expected(Release(tensors), images)[0])


def test_one_tower_is_routed_and_the_other_is_left(module, model, images):
    routed = EmbeddingModel(modules=[module.using(VisionRouting(towers="text", alpha=1.0))], device="cpu")
    np.testing.assert_array_equal(routed.encode(images), model.encode(images))
    assert np.abs(routed.encode(TEXTS) - model.encode(TEXTS)).max() > 1e-2


def test_it_is_loaded_as_it_was_saved(model, folder, images, tmp_path):
    plain = SentenceTransformer(str(folder), device="cpu")
    assert type(plain[0]) is SSMoEVision
    for inputs in (images, TEXTS):
        np.testing.assert_array_equal(plain.encode(inputs), model.encode(inputs))
    assert isinstance(ClipMoeModel.from_pretrained(folder), ClipMoeModel)
    routed = ssmoe_embed.load(folder, method="paper", device="cpu")
    routed.save(str(tmp_path / "first"))
    again = ssmoe_embed.load(tmp_path / "first", device="cpu")
    assert again[0].routing == PAPER
    np.testing.assert_array_equal(again.encode(images), routed.encode(images))
    again.save(str(tmp_path / "second"))
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name
    learned = ssmoe_embed.load(tmp_path / "first", method="smoe", device="cpu")
    np.testing.assert_array_equal(learned.encode(images), model.encode(images))


def test_a_saved_routing_is_changed_when_it_is_loaded(folder):
    assert ssmoe_embed.load(folder, alpha=0.25, device="cpu")[0].routing == VisionRouting(alpha=0.25)
    for wrong, message in ({"method": "ev"}, "method='ev'"), ({"prompt": "x"}, "setting='prompt'"):
        with pytest.raises(ValueError, match=message):
            ssmoe_embed.load(folder, device="cpu", **wrong)
    with pytest.raises(ValueError, match="learned routers"):
        ssmoe_embed.load(folder, device="cpu", method="smoe", alpha=0.5)


def test_spectral_routers_of_another_model_are_refused(module):
    other = SSMoEVision(from_published(published(seed=1)), processor(), PAPER)
    with pytest.raises(ValueError, match="differ"):
        SSMoEVision(module.model, processor(), PAPER, other.routers)


def test_smaller_numbers_change_little(folder, model, images, tmp_path):
    pytest.importorskip("bitsandbytes")
    for options in {"dtype": "bfloat16", "device_map": "cpu"}, {"load_in_4bit": True}:
        small = ssmoe_embed.load(folder, device="cpu", model_kwargs=options)
        found, wanted = small.encode(images), model.encode(images)
        assert found.dtype == np.float32
        cosines = (found * wanted).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(wanted, axis=1)
        assert cosines.min() > 0.95
    packed = {name for name, part in small[0].model.named_modules() if "4bit" in type(part).__name__}
    experts = {name for name, part in model[0].model.named_modules() if name.endswith(("fc1", "fc2"))}
    assert experts <= packed
    assert not any(name.endswith("gate") for name in packed)
    with pytest.raises(ValueError, match="4 bits"):
        small.save(tmp_path)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (["a", 7], TextError, "Input 1 is of type int"),
        ([{"picture": 1}], TextError, r"keys \['picture'\]"),
        ([{"text": 1}], TextError, "text of type int"),
        ([b"x"], ImageError, "Input 0 is no picture"),
    ],
)
def test_an_input_that_is_neither_text_nor_picture_is_named(module, given, error, message):
    with pytest.raises(error, match=message):
        module.preprocess(given)


def test_odd_texts_are_read(model):
    long = "c " * 200_000
    close(model.encode(["c " * 60, long, "\n\n c" * 60]), model.encode(["c " * 60])[[0, 0, 0]])
    assert np.isfinite(model.encode(["", "\ud83d", "\x00", "😀"])).all()
    close(model.encode(["b"], prompt="a "), model.encode(["a b"]))


def test_its_card_says_what_it_is(folder):
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| image | `12 × 12 pixels, patches of 4` |" in card
    assert "| experts | `2 of 4 per token` |" in card
