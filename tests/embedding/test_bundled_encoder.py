"""The bundled model without PyTorch gives the vectors that the libraries give."""

import json
import shutil

import numpy as np
import pytest

import ssmoe_embed
from ssmoe_embed.data import tiny_folder
from ssmoe_embed.embedding.bundled import BundledEncoder
from ssmoe_embed.search import SemanticIndex
from ssmoe_embed.search.corpora import bundled_index
from ssmoe_embed.search.fingerprint import difference, model_fingerprint, model_identity

TEXTS = [
    "how do I exit vim",
    "",
    "ünïcode 文字, 12 <|endoftext|> <|padding|>",
    "lone \ud800 surrogate",
    "A cat sat in the sun on the warm stones of the old harbour wall. " * 40,
    " a" * 5000,
]


@pytest.fixture(scope="module")
def both():
    return BundledEncoder(), ssmoe_embed.load(progress=False)


def test_its_vectors_are_those_of_the_loaded_model(both):
    quick, model = both
    expected = model.encode(TEXTS, show_progress_bar=False)
    np.testing.assert_allclose(quick.encode_document(TEXTS), expected, atol=2e-5)
    np.testing.assert_allclose(quick.encode_query(TEXTS[:1]), expected[:1], atol=2e-5)
    assert quick.get_embedding_dimension() == expected.shape[1]


def test_an_index_does_not_tell_the_two_apart(both):
    quick, model = both
    assert quick.identity == model_identity(model)
    assert difference(model_fingerprint(model), model_fingerprint(quick)) == ""


def test_both_find_the_same_in_the_bundled_corpus_and_share_its_index(both, tmp_path):
    indexes = [bundled_index(one, cache=tmp_path, progress=False) for one in both]
    assert len({index.folder for index in indexes}) == 1
    first, second = (index.search("put a div in the middle of the page", 5, snippets=True) for index in indexes)
    assert [hit.document.id for hit in first] == [hit.document.id for hit in second]
    assert [hit.snippet for hit in first] == [hit.snippet for hit in second]
    np.testing.assert_allclose([hit.score for hit in first], [hit.score for hit in second], atol=1e-5)
    assert SemanticIndex.open(indexes[0].folder, both[0]).search("x", 1)


def test_other_settings_than_its_own_are_refused(tmp_path):
    folder = tmp_path / "tiny"
    shutil.copytree(tiny_folder(), folder)
    settings = json.loads((folder / "ssmoe_config.json").read_text("utf-8"))
    (folder / "ssmoe_config.json").write_text(json.dumps(settings | {"method": "ev"}), "utf-8")
    with pytest.raises(ValueError, match="other settings than method 'smoe'"):
        BundledEncoder(folder)
