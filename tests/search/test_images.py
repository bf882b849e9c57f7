"""Folders of images are indexed and searched like texts, by words and by image."""

import json

import numpy as np
import pytest
from clip_moe import published
from PIL import Image
from serving import serving
from transformers import CLIPImageProcessorPil, CLIPProcessor, CLIPTokenizer

from ssmoe_embed import EmbeddingModel, SSMoEVision
from ssmoe_embed.search import Document, SemanticIndex, read_documents
from ssmoe_embed.search.corpora import corpus_index, emoji_index
from ssmoe_embed.serving.app import create_app
from ssmoe_embed.vision import ImageError
from ssmoe_embed.vision.checkpoint import from_published


@pytest.fixture(scope="module")
def model():
    words = {"<|startoftext|>": 98, "<|endoftext|>": 99, "a</w>": 3, "b</w>": 4, "c</w>": 5}
    images = CLIPImageProcessorPil(size={"shortest_edge": 12}, crop_size={"height": 12, "width": 12})
    processor = CLIPProcessor(images, CLIPTokenizer(vocab=words, merges=[], model_max_length=30))
    return EmbeddingModel(modules=[SSMoEVision(from_published(published()), processor)], device="cpu")


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "pictures"
    place.mkdir()
    rng = np.random.default_rng(0)
    for name in ("red-heart.png", "IMG_7.jpg", "blueSky.png"):
        Image.fromarray(rng.integers(0, 255, (14, 20, 3), dtype=np.uint8)).save(place / name)
    (place / "broken.png").write_bytes(b"no picture")
    (place / "notes.md").write_text("# Notes\n\nNo picture.\n", encoding="utf-8")
    return place


@pytest.fixture
def index(model, folder, tmp_path):
    made = SemanticIndex.create(tmp_path / "index", model)
    made.add(read_documents(folder, images="only"), progress=False)
    return made


def test_an_image_is_a_document_with_its_names_words_and_the_models_vector(index, model, folder):
    found = {document.title: document for document in index.documents()}
    assert {title: document.text for title, document in found.items()} == {
        "red-heart.png": "red heart", "IMG_7.jpg": "IMG 7", "blueSky.png": "blue Sky"
    }  # fmt: skip
    assert found["IMG_7.jpg"].metadata["width"] == 20
    vectors = model.encode([Image.open(folder / title) for title in found])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(index.vectors([one.id for one in found.values()]), vectors, atol=1e-5)


def test_what_is_no_image_is_skipped_and_told_of(folder):
    corpus = read_documents(folder, images="only")
    assert len(list(corpus)) == 3
    assert sorted(reason.partition(":")[0] for _, reason in corpus.skipped_files) == ["of another kind", "unreadable"]
    texts = read_documents(folder)
    assert [document.title for document in texts] == ["Notes"]
    assert {reason for _, reason in texts.skipped_files} == {"image"}
    assert len(list(read_documents(folder, images="too"))) == 4
    with pytest.raises(ValueError, match="--images"):
        read_documents(folder / "IMG_7.jpg")


def test_words_of_a_name_and_filters_find_an_image(index):
    assert index.search("heart", 1, mode="words")[0].document.title == "red-heart.png"
    hits = index.search("a b", 5, filters={"path": index.search("heart", 1)[0].document.metadata["path"]})
    assert [hit.document.title for hit in hits] == ["red-heart.png"]


def test_an_image_finds_itself_first(index, folder):
    for given in (folder / "blueSky.png", Image.open(folder / "blueSky.png"), (folder / "blueSky.png").read_bytes()):
        hits = index.search_like(given, 2)
        assert hits[0].document.title == "blueSky.png"
        assert hits[0].similarity == pytest.approx(1, abs=1e-5)
    with pytest.raises(ImageError):
        index.search_like(folder / "none.png")


def test_only_a_changed_image_is_encoded_again(index, model, folder):
    assert index.add(read_documents(folder, images="only"), progress=False).encoded == 0
    Image.new("RGB", (5, 5), "green").save(folder / "IMG_7.jpg")
    counts = index.add(read_documents(folder, images="only"), progress=False)
    assert (counts.encoded, counts.updated, counts.unchanged) == (1, 1, 2)


def test_a_model_of_texts_refuses_images(built, folder, tmp_path):
    import ssmoe_embed

    texts = SemanticIndex.create(tmp_path / "texts", ssmoe_embed.load(built, progress=False))
    with pytest.raises(ValueError, match="reads texts only"):
        texts.add(read_documents(folder, images="only"), progress=False)
    texts.add([Document("a", "a text")], progress=False)
    with pytest.raises(ValueError, match="cannot be searched by an image"):
        texts.search_like(folder / "IMG_7.jpg")


@pytest.mark.slow
def test_the_bundled_emoji_are_an_index(model, tmp_path):
    index = emoji_index(model, cache=tmp_path, progress=False)
    hit = index.search("tired", 1, mode="words")[0]
    assert "tired" in hit.document.title
    assert hit.document.image.is_file()
    assert emoji_index(model, cache=tmp_path, progress=False).info()["generation"] == index.info()["generation"]


def test_a_folder_without_an_index_is_searched_too(model, folder, tmp_path):
    made = corpus_index(model, read_documents(folder, images="only"), cache=tmp_path / "cache", progress=False)
    assert len(made) == 3


def test_the_server_gives_thumbnails_of_what_is_indexed_and_searches_by_image(index, model, folder):
    with serving(create_app(model, name="clip", corpus=index, map_size=0)) as client:
        hits = client.get("/api/search", params={"q": "heart", "mode": "words"}).json()["hits"]
        assert [hit["image"] for hit in hits] == [True]
        answer = client.get("/api/image", params={"id": hits[0]["id"]})
        assert answer.headers["content-type"] == "image/png"
        assert answer.content.startswith(b"\x89PNG")
        assert client.get("/api/image", params={"id": str(folder / "notes.md")}).status_code == 404
        found = client.post("/api/like", content=(folder / "IMG_7.jpg").read_bytes(), params={"top": 1}).json()
        assert found["hits"][0]["title"] == "IMG_7.jpg"
        refused = client.post("/api/like", content=b"no picture")
        assert refused.status_code == 400
        assert "Pillow" in json.dumps(refused.json())


def test_the_command_searches_a_folder_of_images_by_words_and_by_image(ssmoe, folder):
    asked = ("search", "--images", folder, "--json", "--top", 1, "--quiet")
    by_words, by_image = ssmoe(*asked, "a red heart"), ssmoe(*asked, "--like", folder / "IMG_7.jpg")
    assert (by_words.status, by_image.status) == (0, 0), by_words.err + by_image.err
    assert json.loads(by_words.out)["source"].endswith("red-heart.png")
    assert json.loads(by_image.out)["source"].endswith("IMG_7.jpg")


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (("a query", "--like", "x.png"), "takes the place of a query"),
        (("--like", "x.png", "--words-only"), "An image has no words"),
        (("--images", "none-there", "a query"), "none-there"),
        (("--images", ".", "--corpus", ".", "a query"), "exclude each other"),
    ],
)
def test_the_command_says_what_does_not_go_together(ssmoe, asked, told):
    ran = ssmoe("search", *asked)
    assert ran.status != 0
    assert told in ran.err


@pytest.mark.slow  # encodes all their names
def test_the_command_answers_a_sentence_with_emoji(ssmoe):
    ran = ssmoe("search", "--corpus", "emoji", "I am so tired", "--quiet")
    assert ran.status == 0, ran.err
    assert any(0x1F300 <= ord(letter) <= 0x1FAFF for letter in ran.out)
