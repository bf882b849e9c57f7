"""The offline tasks: valid mteb tasks, which an encoder that knows the answers solves and one that counts words does not."""

import json
from collections import Counter

import mteb
import numpy as np
import pytest
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.types import PromptType
from scipy.stats import pearsonr
from sklearn.feature_extraction.text import CountVectorizer

from ssmoe_embed.common import lazy as dependencies
from ssmoe_embed.evaluation.baselines import load_baseline, task_texts
from ssmoe_embed.evaluation.tasks import offline
from ssmoe_embed.evaluation.tasks.offline import add_task, offline_task, offline_tasks, retrieval_task

METADATA = {task.metadata.name: task.metadata for task in offline_tasks()}
TYPES = {"Classification", "Clustering", "PairClassification", "Reranking", "Retrieval", "STS"}
WITHOUT_SHARED_WORDS = ["WordNetExampleRetrieval", "WordNetRelatedRetrieval", "WordNetReverseRetrieval"]


@pytest.fixture(params=METADATA)
def task(request):
    return loaded(request.param)


def loaded(name):
    """A new object of a task, with its data."""
    task = offline_task(name)
    task.load_data()
    return task


def of_type(*types):
    return pytest.mark.parametrize("task", [name for name, one in METADATA.items() if one.type in types], indirect=True)


class Encoder(AbsEncoder):
    """Vectors from a function of the texts and the kind of prompt."""

    def __init__(self, function):
        self.function = function
        self.mteb_model_meta = ModelMeta.create_empty(overwrites={"name": "test/encoder", "revision": "1"})

    def encode(self, inputs, *, prompt_type=None, **kwargs):
        texts = [text for batch in inputs for text in batch["text"]]
        return np.asarray(self.function(texts, prompt_type), dtype=np.float32)


def main_score(task, encoder):
    scores = task.evaluate(encoder, split="test", encode_kwargs={"batch_size": 64})
    return scores["default"]["main_score"]


def data_of(task):
    return task.dataset["default"]["test"] if "default" in task.dataset else task.dataset["test"]


def oracle(task):
    """An encoder that knows the answers."""
    data = data_of(task)
    if task.metadata.type in {"Retrieval", "Reranking"}:
        place = {identifier: i for i, identifier in enumerate(data["corpus"]["id"])}
        identity = np.eye(len(place))
        documents = dict(zip(data["corpus"]["text"], identity, strict=True))
        queries = {
            text: np.mean([identity[place[d]] for d in data["relevant_docs"][query]], axis=0)
            for query, text in zip(data["queries"]["id"], data["queries"]["text"], strict=True)
        }
        return Encoder(lambda texts, kind: [(queries if kind == PromptType.query else documents)[t] for t in texts])
    if task.metadata.type in {"STS", "PairClassification"}:
        sts = task.metadata.type == "STS"
        cosines = np.asarray(data["score"] if sts else data["labels"], dtype=float)
        cosines = cosines / task.max_score if sts else cosines
        first = np.tile([1.0, 0.0], (len(cosines), 1))
        sides = iter([first, np.stack([cosines, np.sqrt(1 - cosines**2)], axis=1)])
        return Encoder(lambda texts, kind: next(sides))
    label = {}
    for split in task.dataset.values():
        label |= dict(zip(split[task.input_column_name], split[task.label_column_name], strict=True))
    names = sorted(set(label.values()))
    return Encoder(lambda texts, kind: np.eye(len(names))[[names.index(label[text]) for text in texts]])


def test_there_is_a_task_of_every_type_under_a_name_that_mteb_does_not_use():
    known = {t.metadata.name.lower() for t in mteb.get_tasks(exclude_superseded=False, exclude_aggregate=False)}
    assert len(METADATA) == 11
    assert {one.type for one in METADATA.values()} == TYPES
    assert not known & {name.lower() for name in METADATA}


def test_the_metadata_say_where_the_texts_are_from(task):
    metadata = task.metadata
    assert metadata.is_filled()
    assert metadata.eval_langs == ["eng-Latn"]
    assert metadata.license not in {None, "not specified"}
    assert len(metadata.dataset["revision"]) == 40
    assert len(metadata.description) > 40
    assert isinstance(task, mteb.AbsTask)


def test_an_encoder_that_knows_the_answers_gets_full_marks(task):
    assert main_score(task, oracle(task)) == pytest.approx(
        1.0, abs=1e-4 if task.metadata.type != "Clustering" else 0.02
    )


@pytest.mark.slow
def test_random_vectors_score_about_chance_and_the_same_again_with_the_same_task_object(task):
    data = data_of(task)
    chance = {"PairClassification": 1 / 3, "Reranking": 0.21, "Clustering": 0.12}.get(task.metadata.type, 0.0)
    if task.metadata.type == "Classification":
        chance = max(Counter(data["label"]).values()) / len(data)
    encoder = load_baseline("chance")
    score = main_score(task, encoder)
    assert abs(score - chance) < 0.08
    assert main_score(task, encoder) == score


@of_type("Retrieval", "PairClassification", "STS")
def test_equal_vectors_for_all_texts_earn_nothing(task):
    score = main_score(task, Encoder(lambda texts, kind: np.ones((len(texts), 3))))
    base = np.mean(data_of(task)["labels"]) if task.metadata.type == "PairClassification" else 0.0
    assert score == pytest.approx(base, abs=0.02)


@pytest.mark.parametrize("name", WITHOUT_SHARED_WORDS)
def test_answers_share_no_content_word_with_the_query_and_wrong_documents_do(name):
    data = data_of(loaded(name))
    documents, queries = list(data["corpus"]["text"]), list(data["queries"]["text"])
    place = {identifier: i for i, identifier in enumerate(data["corpus"]["id"])}
    words = CountVectorizer(stop_words="english", binary=True).fit(documents + queries)
    shared = (words.transform(queries) @ words.transform(documents).T).toarray()  # [queries, documents]
    right = [
        row[[place[d] for d in data["relevant_docs"][query]]].max()
        for row, query in zip(shared, data["queries"]["id"], strict=True)
    ]
    assert max(right) == 0
    assert np.mean(shared.max(axis=1) > 0) > 0.6


@pytest.mark.parametrize("name", WITHOUT_SHARED_WORDS)
def test_counting_words_finds_nothing_where_none_is_shared(name):
    assert main_score(loaded(name), load_baseline("tfidf-words")) < 0.05


def test_word_overlap_says_nothing_about_similarity_and_misleads_on_paraphrases():
    similarity, pairs = loaded("WordNetSimilaritySTS"), loaded("WordNetParaphrasePairClassification")
    data = data_of(similarity)
    words = CountVectorizer(binary=True).fit(task_texts(similarity.metadata.name))
    first, second = (words.transform(data[side]) for side in ("sentence1", "sentence2"))
    shared = np.asarray(first.multiply(second).sum(axis=1)).ravel()
    jaccard = shared / (np.asarray(first.sum(axis=1)).ravel() + np.asarray(second.sum(axis=1)).ravel() - shared)
    assert abs(pearsonr(jaccard, data["score"]).statistic) < 0.1
    assert abs(main_score(similarity, load_baseline("tfidf-words"))) < 0.05
    assert main_score(pairs, load_baseline("tfidf-words")) < np.mean(data_of(pairs)["labels"])


def test_a_verse_is_sought_among_sixteen_and_counting_words_does_not_always_find_it():
    task = loaded("BibleVerseReranking")
    data = data_of(task)
    assert len(data["queries"]) == 120
    for query, candidates in data["top_ranked"].items():
        assert len(set(candidates)) == 16
        assert set(data["relevant_docs"][query]) < set(candidates)
    assert 0.7 < main_score(task, load_baseline("tfidf-words")) < 0.95


def test_reviews_are_balanced_and_no_sentence_is_in_both_splits():
    task = loaded("ReviewSnippetSentimentClassification")
    for split in task.dataset.values():
        assert len(set(Counter(split["label"]).values())) == 1
    assert not set(task.dataset["train"]["text"]) & set(task.dataset["test"]["text"])


def test_the_how_to_documents_answer_every_question_and_hold_all_that_was_written_for_the_project():
    data = data_of(loaded("HowToRetrieval"))
    assert len(data["corpus"]) == 600
    assert len(data["queries"]) >= 120
    assert all(data["relevant_docs"][query] for query in data["queries"]["id"])


def test_a_file_of_ones_own_becomes_a_task_and_baselines_know_its_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(offline, "_added", {})
    path = tmp_path / "drinks.jsonl"
    records = [
        {"id": 1, "document": "green tea"},
        {"id": 2, "document": "fried rice"},
        {"query": "tea", "relevant": [1]},
    ]
    path.write_text("\n".join(map(json.dumps, records)) + "\n", encoding="utf-8")
    mine = retrieval_task(path)
    add_task(mine)
    assert offline_task("drinks") is mine
    assert sorted(task_texts("drinks")) == ["fried rice", "green tea", "tea"]
    assert main_score(mine, load_baseline("tfidf-words")) == 1.0
    assert main_score(mine, load_baseline("bm25")) == 1.0


def test_a_line_of_ones_own_file_ends_at_a_newline_only(tmp_path):
    path = tmp_path / "poems.jsonl"
    records = [{"id": 1, "document": "a line\u2028and another\x85"}, {"query": "poem\u2029", "relevant": [1]}]
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
    data = retrieval_task(path).dataset["default"]["test"]
    assert (data["corpus"]["text"][0], data["queries"]["text"][0]) == (records[0]["document"], records[1]["query"])


def test_a_query_about_an_unknown_document_is_refused(tmp_path):
    path = tmp_path / "broken.jsonl"
    path.write_text('{"id": 1, "document": "d"}\n{"query": "q", "relevant": [7]}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"'q' of task 'broken' names the unknown documents \[7\]"):
        retrieval_task(path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"id": 1, "document": "d"}'], "mine.jsonl has no query"),
        (['{"query": "q", "relevant": [1]}'], "mine.jsonl has no document"),
        ([], "mine.jsonl has no document"),
        (['{"id": 1, "document": "d"}', "", "{"], "Line 3 of mine.jsonl is no record"),
        (["[1]"], "Line 1 of mine.jsonl is no record"),
        (['{"document": "d"}'], "Line 1 of mine.jsonl is no record"),
        (['{"id": 1, "document": "d"}', '{"query": "q"}'], "Line 2 of mine.jsonl is no record"),
        (['{"id": 1, "document": "d"}', '{"query": "q", "relevant": []}'], "Line 2 of mine.jsonl is no record"),
        (['{"id": 1, "document": "d"}', '{"id": "1", "document": "e"}'], "Line 2 of mine.jsonl has the id '1' again"),
    ],
)
def test_a_file_of_ones_own_that_is_no_task_is_refused_with_the_line(tmp_path, lines, message):
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        retrieval_task(path)


def test_a_shipped_tasks_name_is_taken(tmp_path):
    path = tmp_path / "HowToRetrieval.jsonl"
    path.write_text('{"id": 1, "document": "d"}\n{"query": "q", "relevant": [1]}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="already called 'HowToRetrieval'"):
        add_task(retrieval_task(path))


def test_without_mteb_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setattr(dependencies, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'ssmoe-embed\[mteb\]'"):
        dependencies.require_mteb()
