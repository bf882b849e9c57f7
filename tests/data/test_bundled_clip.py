"""The bundled model of images and texts is small, loads by its name, and puts both into one space."""

import numpy as np
from sentence_transformers import SentenceTransformer

import ssmoe_embed  # noqa: F401 (makes the name known)
from ssmoe_embed.data import BUNDLED_CLIP, bundled_folder, emoji_concepts, emoji_pictures


def test_it_is_small_and_loads_by_its_name():
    assert sum(path.stat().st_size for path in bundled_folder(BUNDLED_CLIP).iterdir()) < 12e6
    model = SentenceTransformer(BUNDLED_CLIP, device="cpu")
    pictures = dict(list(emoji_pictures("twemoji"))[:3])
    vectors = model.encode(list(pictures.values()))
    assert vectors.shape == (3, 192)
    assert model.encode("I am so tired").shape == (192,)
    assert np.isfinite(vectors).all()


def test_every_emoji_has_the_pictures_that_it_says():
    for style in ("noto", "twemoji"):
        keys = {key for key, _ in emoji_pictures(style)}
        assert keys == {one["key"] for one in emoji_concepts() if style in one["styles"]}
