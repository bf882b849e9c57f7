"""Methods that share a forward pass: the same vectors as `encode`, each text read once."""

import numpy as np
import pytest

from ssmoe_embed.embedding.model import EmbeddingModel
from ssmoe_embed.evaluation.mteb.passes import FeatureStore, SharedPass

SHARING = ("router", "smoe", "moee", "ev")


@pytest.fixture
def model(calibrated_module):
    before = calibrated_module.settings
    yield EmbeddingModel(modules=[calibrated_module], device="cpu")
    calibrated_module.settings = before


def variants(model, methods=SHARING, **changes):
    settings = {"calibration": "standardize"} | changes
    return [model[0].settings.changed(method=method, **settings) for method in methods]


def encoded(model, settings, texts, **kwargs):
    model[0].settings = settings
    return model.encode(texts, show_progress_bar=False, **kwargs)


@pytest.fixture
def passes(model, monkeypatch):
    """Counts the base model's forward passes."""
    count = []
    handle = model[0].model.register_forward_hook(lambda *_: count.append(1))
    yield count
    handle.remove()


@pytest.mark.parametrize("calibration", ["none", "standardize", "whiten", "batch"])
def test_vectors_are_bit_for_bit_those_of_encode(model, texts, calibration):
    shared = SharedPass(model, variants(model, calibration=calibration))
    for settings in variants(model, calibration=calibration):
        found = shared.encode(texts, settings, batch_size=8)
        np.testing.assert_array_equal(found, encoded(model, settings, texts, batch_size=8))


def test_the_rerouted_pass_gives_the_vectors_of_encode(model, texts):
    [settings] = variants(model, ["ssmoe"], alpha=0.5)
    np.testing.assert_array_equal(
        SharedPass(model, [settings]).encode(texts, settings), encoded(model, settings, texts)
    )


def test_an_ensemble_of_prompts_gives_the_vectors_of_encode(model, texts):
    chosen = variants(model, calibration="none", prompt="metaeol")
    shared = SharedPass(model, chosen)
    for settings in chosen:
        found = shared.encode(texts[:9], settings)
        np.testing.assert_allclose(found, encoded(model, settings, texts[:9]), atol=1e-6)


def test_four_methods_take_one_forward_pass(model, texts, passes):
    chosen = variants(model)
    shared = SharedPass(model, chosen)
    for settings in chosen:
        shared.encode(texts, settings, batch_size=8)
    assert len(passes) == shared.batches_read == len(texts) / 8
    assert shared.texts_read == len(texts)


def test_a_text_is_read_once_however_often_it_occurs(model, texts):
    [settings] = variants(model, ["moee"])
    shared = SharedPass(model, [settings])
    first = shared.encode(texts[:10] * 3, settings, batch_size=4)
    again = shared.encode(texts[:20], settings, batch_size=4)
    assert shared.texts_read == 20
    np.testing.assert_array_equal(first[:10], first[20:])
    np.testing.assert_array_equal(first[:10], again[:10])
    np.testing.assert_allclose(again, encoded(model, settings, texts[:20]), atol=1e-5)


def test_a_prompt_before_the_template_makes_other_texts(model, texts):
    [settings] = variants(model, ["smoe"])
    shared = SharedPass(model, [settings])
    plain, prompted = (shared.encode(texts[:5], settings, prompt=prompt) for prompt in ("", "query: "))
    assert shared.texts_read == 10
    np.testing.assert_array_equal(plain, encoded(model, settings, texts[:5]))
    np.testing.assert_array_equal(prompted, encoded(model, settings, texts[:5], prompt="query: "))


@pytest.mark.parametrize(("memory", "scratch"), [(0, 2**30), (0, 0)], ids=["on disk", "not kept"])
def test_limits_of_memory_change_no_vector(model, texts, tmp_path, memory, scratch):
    chosen = variants(model)
    shared = SharedPass(model, chosen, memory=memory, scratch=scratch, folder=tmp_path)
    for settings in chosen:
        found = shared.encode(texts, settings, batch_size=8)
        np.testing.assert_allclose(found, encoded(model, settings, texts, batch_size=8), atol=1e-6)
    assert shared.texts_read == (len(texts) if scratch else len(texts) * len(chosen))
    assert not list(tmp_path.iterdir()), "the scratch file has no name that could be left behind"


def test_a_store_keeps_rows_in_memory_then_on_disk_then_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr("ssmoe_embed.evaluation.mteb.passes._CHUNK_BYTES", 4 * 3 * 10)  # ten rows of three numbers
    rows = np.random.default_rng(0).standard_normal((100, 3)).astype(np.float32)
    keys = [bytes([i]) for i in range(100)]
    store = FeatureStore(3, memory=2 * 120, scratch=3 * 120, folder=tmp_path)
    store.put(keys, rows)
    assert len(store) == 50
    assert store.is_full
    for i in range(50):
        np.testing.assert_array_equal(store.get(keys[i]), rows[i])
    assert all(store.get(key) is None for key in keys[50:])


def test_settings_of_different_forward_passes_are_refused(model):
    chosen = variants(model, ["smoe", "ssmoe"])
    assert chosen[0].forward != chosen[1].forward
    with pytest.raises(ValueError, match="do not share a forward pass"):
        SharedPass(model, chosen)


@pytest.mark.parametrize("change", [{"prompt": "prompteol"}, {"max_seq_length": 64}, {"instruction": "Classify."}])
def test_what_changes_the_tokens_changes_the_pass(model, change):
    settings = model[0].settings
    assert settings.forward != settings.changed(**change).forward
