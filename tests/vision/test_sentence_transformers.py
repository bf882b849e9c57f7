"""sentence-transformers' own module reads the model, so images and texts are encoded by one `SentenceTransformer`."""

import numpy as np
import pytest
import torch
from clip_moe import Release, block_names, published, release_ev
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import CLIPImageProcessorPil, CLIPProcessor, CLIPTokenizer

from ssmoe_embed.vision import PAPER, reroute_towers, spectral_policies, spectral_routers
from ssmoe_embed.vision.checkpoint import from_published

TEXTS = ["a b c", "a", "c " * 60]  # the last is cut
IDS = [[98, 3, 4, 5, 99], [98, 3, 99], [98, *[5] * 28, 99]]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def images():
    pixels = np.random.default_rng(0).integers(0, 255, (3, 12, 12, 3), dtype=np.uint8)
    return [Image.fromarray(one) for one in pixels]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip-moe")
    words = {"<|startoftext|>": 98, "<|endoftext|>": 99, "a</w>": 3, "b</w>": 4, "c</w>": 5}
    images = CLIPImageProcessorPil(size={"shortest_edge": 12}, crop_size={"height": 12, "width": 12})
    CLIPProcessor(images, CLIPTokenizer(vocab=words, merges=[], model_max_length=30)).save_pretrained(folder)
    from_published(published()).save_pretrained(folder)
    return folder


@pytest.fixture
def model(folder):
    return SentenceTransformer(str(folder), device="cpu")


def expected(release, images):
    """What the release makes of the images and the texts."""
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2) / 255
    pixels = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    return release.image(pixels), torch.cat([release.text(torch.tensor([ids])) for ids in IDS])


def test_images_and_texts_are_encoded_into_one_space(model, images):
    image, text = expected(Release(published()), images)
    ours = [torch.from_numpy(model.encode(inputs)).double() for inputs in (images, TEXTS)]
    torch.testing.assert_close(ours[0], image, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours[1], text, rtol=1e-4, atol=1e-5)
    cosine = torch.nn.functional.normalize(text) @ torch.nn.functional.normalize(image).T
    torch.testing.assert_close(model.similarity(ours[1], ours[0]).double(), cosine, rtol=1e-4, atol=1e-5)
    assert model.modalities == ["text", "image"]
    np.testing.assert_array_equal(model.encode([{"image": image} for image in images]), ours[0].float().numpy())


def test_re_routing_its_model_re_routes_its_vectors(model, images):
    tensors = published()
    evs = {name: release_ev(tensors, name) for name in block_names()}
    clip = model[0].auto_model
    with reroute_towers(clip, spectral_policies(spectral_routers(clip, PAPER, progress=False), PAPER)):
        ours = [torch.from_numpy(model.encode(inputs)).double() for inputs in (images, TEXTS)]
    for found, release in zip(ours, expected(Release(tensors, evs, 1.0), images), strict=True):
        torch.testing.assert_close(found, release, rtol=1e-4, atol=1e-5)


def test_a_vector_does_not_depend_on_its_batch_and_survives_saving(model, images, tmp_path):
    model.save(str(tmp_path))
    loaded = SentenceTransformer(str(tmp_path), device="cpu")
    for inputs in (images, TEXTS):
        together = model.encode(inputs)
        np.testing.assert_array_equal(loaded.encode(inputs), together)
        np.testing.assert_allclose(model.encode(inputs, batch_size=1), together, rtol=1e-4, atol=1e-5)
