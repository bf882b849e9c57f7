"""A server of a few notes."""

import pytest
from serving import NAME, notes, serving

import ssmoe_embed
from ssmoe_embed.serving.app import create_app
from ssmoe_embed.serving.refusals import ServerLimits


@pytest.fixture(scope="module")
def model(built):
    return ssmoe_embed.load(built, progress=False)


@pytest.fixture(scope="module")
def index(model, texts, tmp_path_factory):
    return notes(model, texts, tmp_path_factory.mktemp("indexes"))


@pytest.fixture(scope="module")
def app(model, index):
    """The application that serves the notes, with low limits."""
    limits = ServerLimits(max_query=100, max_top=50)
    return create_app(model, name=NAME, corpus=index, limits=limits)


@pytest.fixture(scope="module")
def client(app):
    """An HTTP client of the notes, whose map is ready."""
    with serving(app) as client:
        app.state.maps.wait()
        yield client
