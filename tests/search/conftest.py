"""A small index of the shared texts."""

import pytest
from indexing import static_model, varied

from ssmoe_embed.search import SemanticIndex


@pytest.fixture(scope="module")
def model():
    return static_model()


@pytest.fixture(scope="module")
def documents(texts):
    return varied(texts)


@pytest.fixture
def index(model, documents, tmp_path):
    made = SemanticIndex.create(tmp_path / "index", model)
    made.add(documents, progress=False)
    return made
