"""The model that ships: small, whole, ready in every method, and better at meaning than counting words."""

import numpy as np
import pytest
import torch
from having import having
from transformers import AutoModelForCausalLM, AutoTokenizer

import ssmoe_embed
from ssmoe_embed.data import calibration_texts, search_corpus, tiny_folder
from ssmoe_embed.embedding.methods import Method
from ssmoe_embed.search.corpora import bundled_index


@pytest.fixture(scope="module")
def tiny():
    return ssmoe_embed.load(progress=False)


def test_it_is_small_enough_for_a_wheel():
    assert (tiny_folder() / "base" / "model.safetensors").stat().st_size <= 25_000_000
    assert sum(file.stat().st_size for file in tiny_folder().rglob("*") if file.is_file()) <= 26_000_000


@pytest.mark.parametrize("method", list(map(str, Method)))
@pytest.mark.parametrize("prompt", [None, "none", "prompteol"])
def test_every_method_is_ready_without_fitting(tiny, method, prompt):
    own = tiny[0].settings
    try:
        having(tiny[0], method=method, prompt=own.prompt if prompt is None else prompt)
        vectors = tiny.encode(["a text", "another one, somewhat longer"])
    finally:
        tiny[0].settings = own
    assert vectors.shape[0] == 2
    assert np.isfinite(vectors).all()


def test_a_vector_does_not_depend_on_its_batch(tiny):
    texts = calibration_texts()[::60]
    together, alone = tiny.encode(texts, batch_size=16), np.stack([tiny.encode(text) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_no_router_is_collapsed(tiny):
    """On varied texts every layer spreads its tokens over its experts."""
    module = tiny[0]
    loads = {}

    def count(layer):
        def hook(router, args, output):
            chosen = torch.bincount(output[2].flatten(), minlength=router.num_experts)
            loads[layer] = loads.get(layer, 0) + chosen

        return hook

    layers = module.encoder.layers
    handles = [layer.router.register_forward_hook(count(layer.index)) for layer in layers]
    try:
        tiny.encode(calibration_texts()[::10], batch_size=16)
    finally:
        for handle in handles:
            handle.remove()
    for load in loads.values():
        share = load.double() / load.sum()
        entropy = -(share * share.clamp_min(1e-12).log()).sum() / np.log(len(share))
        assert entropy > 0.85


def test_it_is_a_language_model():
    """Its next-token loss on plain English is far below that of a uniform guess, ln 8192 = 9.0."""
    base = tiny_folder() / "base"
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    text = "The function returns a list of all the files in the directory, or raises an error if there is no such file."
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.inference_mode():
        loss = model(input_ids=ids, labels=ids).loss
    assert loss < 6.5


@pytest.mark.slow
def test_it_beats_random_weights_and_shared_words_where_meaning_decides(tiny, tmp_path):
    mteb = pytest.importorskip("mteb")
    from ssmoe_embed.evaluation.baselines import DenseEncoder, load_baseline
    from ssmoe_embed.evaluation.significance.bootstrap import paired_bootstrap
    from ssmoe_embed.evaluation.tasks.offline import offline_task

    task = offline_task("WordNetRelatedRetrieval")
    others = [load_baseline("random-weights"), load_baseline("tfidf-words")]
    for place, encoder in enumerate([DenseEncoder(tiny, others[0].mteb_model_meta), *others]):
        mteb.evaluate(encoder, [task], cache=None, prediction_folder=tmp_path / str(place), show_progress_bar=False)
    for place in (1, 2):
        gain = paired_bootstrap(task, tmp_path / str(place), tmp_path / "0")
        assert gain.low > 0.05
        assert gain.p_value < 0.01


def test_the_readmes_query_finds_its_answer_first_and_the_corpus_comes_with_its_vectors(tiny, tmp_path, monkeypatch):
    """The vectors are those that the model makes, and nothing but the query and what tells models apart is encoded."""
    documents, encoded = search_corpus(), []
    original = type(tiny).encode
    monkeypatch.setattr(
        type(tiny), "encode", lambda self, inputs, *a, **k: encoded.append(inputs) or original(self, inputs, *a, **k)
    )
    index = bundled_index(tiny, cache=tmp_path, progress=False)
    for mode in ("hybrid", "vectors"):
        assert index.search("how do I undo the last commit", 1, mode=mode)[0].document.id == "git-undo-last-commit"
    assert len(encoded) < 10
    vectors = tiny.encode([documents[i].full_text for i in (0, 700, -1)], normalize_embeddings=True)
    np.testing.assert_allclose(index.vectors([documents[i].id for i in (0, 700, -1)]), vectors, atol=1e-4)
