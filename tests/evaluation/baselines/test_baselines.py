import json

import mteb
import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity
from torch.utils.data import DataLoader

import ssmoe_embed
from ssmoe_embed.evaluation.baselines import (
    BASELINES,
    MINILM,
    MOST_DIMENSIONS,
    baseline_name,
    does,
    load_baseline,
    task_texts,
)
from ssmoe_embed.evaluation.tasks.offline import offline_task

TASK = "WordNetSimilaritySTS"
TEXTS = ["a quick reply to a question", "an unknownword reply", "generosity as manifested by practicing charity"]


def encode(encoder, texts, task=TASK, batch_size=2):
    loader = DataLoader([{"text": text} for text in texts], batch_size=batch_size)
    metadata = offline_task(task).metadata
    return np.asarray(
        encoder.encode(loader, task_metadata=metadata, hf_split="test", hf_subset="default", batch_size=batch_size)
    )


@pytest.fixture(scope="module", params=[name for name in BASELINES if name != "baseline/bm25"])
def encoder(request):
    return load_baseline(request.param)


def test_a_vector_depends_on_its_text_alone(encoder):
    together = encode(encoder, TEXTS, batch_size=3)
    alone = np.concatenate([encode(encoder, [text]) for text in TEXTS[::-1]])[::-1]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.isfinite(together).all()


def test_its_results_are_kept_under_its_name(encoder, tmp_path):
    name = next(name for name, make in BASELINES.items() if name == encoder.mteb_model_meta.name)
    task = offline_task("WordRelatednessSTS")
    mteb.evaluate(encoder, [task], cache=mteb.ResultCache(tmp_path), show_progress_bar=False)
    (found,) = tmp_path.glob(f"results/{name.replace('/', '__')}/*/WordRelatednessSTS.json")
    assert json.loads(found.read_text(encoding="utf-8"))["task_name"] == "WordRelatednessSTS"
    assert found.parent.name.split("-")[0] in {
        "ssmoe",
        "all",
    }  # the package that its vectors come from, and its version


def test_tfidf_vectors_are_scikit_learns_fitted_on_the_whole_task():
    fitted = TfidfVectorizer(sublinear_tf=True).fit(task_texts(TASK))
    assert len(fitted.vocabulary_) < MOST_DIMENSIONS
    np.testing.assert_allclose(
        encode(load_baseline("tfidf-words"), TEXTS), fitted.transform(TEXTS).toarray(), atol=1e-6
    )


def test_sketched_vectors_have_nearly_the_same_cosines():
    texts = task_texts(TASK)
    fitted = TfidfVectorizer(sublinear_tf=True, analyzer="char_wb", ngram_range=(3, 5)).fit(texts)
    assert len(fitted.vocabulary_) > MOST_DIMENSIONS
    sketched = encode(load_baseline("tfidf-chars"), texts[:200], batch_size=64)
    assert sketched.shape == (200, MOST_DIMENSIONS)
    exact = cosine_similarity(fitted.transform(texts[:200]))
    errors = np.abs(cosine_similarity(sketched) - exact)
    assert np.sqrt(np.mean(errors**2)) < 0.01
    assert errors.max() < 0.1


def test_a_corruptions_token_is_nothing_to_tfidf():
    words = load_baseline("tfidf-words")
    assert not encode(words, ["AAA"]).any()
    np.testing.assert_allclose(encode(words, ["quick AAA reply"]), encode(words, ["quick reply"]), atol=1e-6)


def test_a_baseline_that_was_fitted_on_one_task_is_fitted_again_on_the_next():
    words = load_baseline("tfidf-words")
    before = encode(words, TEXTS)
    encode(words, ["tiger"], task="WordRelatednessSTS")
    np.testing.assert_array_equal(before, encode(words, TEXTS))


def test_all_texts_of_a_task_are_its_texts():
    reviews = task_texts("ReviewSnippetSentimentClassification")
    assert len(reviews) == 740  # both splits
    verses = task_texts("BibleVerseReranking")
    data = offline_task("BibleVerseReranking")
    data.load_data()
    part = data.dataset["default"]["test"]
    assert set(verses) == set(part["corpus"]["text"]) | set(part["queries"]["text"])


def test_bm25_ranks_by_its_formula_and_reranks_only_the_candidates():
    documents = ["green tea tea", "black coffee", "tea shop", "nothing"]
    corpus = [{"id": f"d{i}", "text": text, "title": ""} for i, text in enumerate(documents)]
    model = load_baseline("bm25")

    class Columns(list):
        def __getitem__(self, key):
            return [row[key] for row in self] if isinstance(key, str) else list.__getitem__(self, key)

    model.index(Columns(corpus))
    queries = Columns([{"id": "q", "text": "tea"}, {"id": "unknown", "text": "zebra"}])
    found = model.search(queries, top_k=3)
    lengths = np.array([3, 2, 2, 1])
    counts = np.array([2, 0, 1, 0])
    idf = np.log(1 + (4 - 2 + 0.5) / (2 + 0.5))  # k1 = 1.5, b = 0.75
    scores = idf * counts / (counts + 1.5 * (0.25 + 0.75 * lengths / lengths.mean()))
    assert list(found["q"])[:2] == ["d0", "d2"]
    assert [found["q"][d] for d in ("d0", "d2")] == pytest.approx(scores[[0, 2]], rel=1e-5)
    assert set(found["unknown"].values()) == {0.0}
    assert len(found["unknown"]) == 3
    ranked = model.search(queries, top_k=3, top_ranked={"q": ["d1", "d2"], "unknown": ["d3"]})
    assert {query: set(hits) for query, hits in ranked.items()} == {"q": {"d1", "d2"}, "unknown": {"d3"}}


def test_bm25_is_for_ranking_only():
    ranker = load_baseline("bm25")
    assert does(ranker, "Retrieval")
    assert does(ranker, "Reranking")
    assert not does(ranker, "STS")
    assert does(load_baseline("chance"), "STS")


def test_random_weights_are_the_bundled_architecture_and_always_the_same():
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first, second = load_baseline("random-weights"), load_baseline("random-weights")
    assert torch.equal(state, torch.random.get_rng_state())
    np.testing.assert_array_equal(encode(first, TEXTS), encode(second, TEXTS))
    tiny = ssmoe_embed.load(progress=False)
    assert [p.shape for p in first.model[0].model.parameters()] == [p.shape for p in tiny[0].model.parameters()]
    assert not np.allclose(encode(first, TEXTS), tiny.encode(TEXTS))
    assert first.model[0].settings.prompt == tiny[0].settings.prompt


def test_the_dense_encoder_is_the_one_in_the_package():
    vectors = encode(load_baseline("minilm"), TEXTS)
    assert vectors.shape == (3, 384)
    similar = cosine_similarity(encode(load_baseline("minilm"), ["a small dog", "a puppy", "the stock market"]))
    assert similar[0, 1] > 0.6
    assert similar[0, 2] < 0.3


@pytest.mark.parametrize("name", ["tfidf-words", "baseline/tfidf-words"])
def test_the_prefix_may_be_left_out(name):
    assert baseline_name(name) == "baseline/tfidf-words"


def test_other_names():
    assert baseline_name("minilm") == baseline_name("all-MiniLM-L6-v2") == MINILM
    assert baseline_name("ssmoe/tiny") is None
    with pytest.raises(ValueError, match="Did you mean 'baseline/tfidf-words'"):
        load_baseline("baseline/tfidf-word")
