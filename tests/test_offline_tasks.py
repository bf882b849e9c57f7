import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfVectorizer

from ssmoe_embed.evaluation.offline import (
    ClassificationTask,
    ClusteringTask,
    PairClassificationTask,
    RetrievalTask,
    SimilarityTask,
    offline_tasks,
)

TASKS = {task.name: task for task in offline_tasks()}
RETRIEVAL = [name for name, task in TASKS.items() if isinstance(task, RetrievalTask)]
WITHOUT_SHARED_WORDS = [name for name in RETRIEVAL if name != "howto_search"]


def random_encoder(dimensions=16):
    rng = np.random.default_rng(0)
    return lambda texts: rng.standard_normal((len(texts), dimensions))


def tfidf(task):
    return TfidfVectorizer(ngram_range=(1, 2)).fit(task.texts()).transform


def oracle(task):
    """An encoder that knows the answers."""
    if isinstance(task, RetrievalTask):
        identity = np.eye(len(task.documents))
        queries = np.stack([identity[list(positions)].mean(axis=0) for positions in task.relevant])
        sides = iter([queries, identity])
    elif isinstance(task, SimilarityTask | PairClassificationTask):
        cosines = np.asarray(task.gold if isinstance(task, SimilarityTask) else task.labels, dtype=float)
        first = np.tile([1.0, 0.0], (len(cosines), 1))
        sides = iter([first, np.stack([cosines, np.sqrt(1 - cosines**2)], axis=1)])
    else:
        labels = (task.train_labels, task.test_labels) if isinstance(task, ClassificationTask) else (task.labels,)
        names = sorted(set(labels[0]))
        sides = iter([np.eye(len(names))[[names.index(label) for label in part]] for part in labels])
    return lambda texts: next(sides)


def test_the_tasks_have_different_names_and_all_ways_of_measuring():
    assert len(TASKS) == 8
    assert {type(task) for task in TASKS.values()} == {
        RetrievalTask,
        SimilarityTask,
        PairClassificationTask,
        ClassificationTask,
        ClusteringTask,
    }


@pytest.mark.parametrize("name", TASKS)
def test_an_encoder_that_knows_the_answers_gets_full_marks(name):
    task = TASKS[name]
    assert task.evaluate(oracle(task))[task.main_metric] == pytest.approx(1.0)


@pytest.mark.parametrize("name", TASKS)
def test_random_vectors_score_about_chance(name):
    task = TASKS[name]
    score = task.evaluate(random_encoder())[task.main_metric]
    chance = np.mean(task.labels) if isinstance(task, PairClassificationTask) else 0.0
    assert abs(score - chance) < 0.1


@pytest.mark.parametrize("name", TASKS)
def test_the_interval_holds_the_score_and_two_runs_agree(name):
    task = TASKS[name]
    scores, again = (task.evaluate(HashingVectorizer(n_features=64).transform) for _ in range(2))
    main = task.main_metric
    assert scores == again
    assert scores[f"{main}_low"] <= scores[main] <= scores[f"{main}_high"]
    assert 0 < scores[f"{main}_high"] - scores[f"{main}_low"] < 0.2


@pytest.mark.parametrize("name", [*RETRIEVAL, "paraphrase_pairs", "similarity"])
def test_equal_vectors_for_all_texts_earn_nothing(name):
    task = TASKS[name]
    score = task.evaluate(lambda texts: np.ones((len(texts), 3)))[task.main_metric]
    assert score <= (np.mean(task.labels) + 1e-9 if isinstance(task, PairClassificationTask) else 0.01)


@pytest.mark.parametrize("name", WITHOUT_SHARED_WORDS)
def test_answers_share_no_content_word_with_the_query_and_wrong_documents_do(name):
    task = TASKS[name]
    words = CountVectorizer(stop_words="english", binary=True).fit(task.texts())
    shared = (words.transform(task.queries) @ words.transform(task.documents).T).toarray()  # [Q, D]
    right = np.array([row[list(positions)].max() for row, positions in zip(shared, task.relevant, strict=True)])
    assert right.max() == 0
    assert np.mean(shared.max(axis=1) > 0) > 0.6


@pytest.mark.parametrize("name", WITHOUT_SHARED_WORDS)
def test_tfidf_finds_nothing_where_no_word_is_shared(name):
    assert TASKS[name].evaluate(tfidf(TASKS[name]))["mrr@10"] < 0.05


def test_word_overlap_says_nothing_about_similarity_and_misleads_on_paraphrases():
    similarity, pairs = TASKS["similarity"], TASKS["paraphrase_pairs"]
    words = CountVectorizer(binary=True).fit(similarity.texts())
    first, second = words.transform(similarity.first), words.transform(similarity.second)
    shared = np.asarray(first.multiply(second).sum(axis=1)).ravel()
    jaccard = shared / (np.asarray(first.sum(axis=1)).ravel() + np.asarray(second.sum(axis=1)).ravel() - shared)
    assert abs(pearsonr(jaccard, similarity.gold).statistic) < 0.1
    assert abs(similarity.evaluate(tfidf(similarity))["spearman"]) < 0.05
    assert pairs.evaluate(tfidf(pairs))["ap"] < np.mean(pairs.labels)


def test_retrieval_scores_equal_their_definitions():
    scores = np.array([[0.9, 0.5, 0.1, 0.0], [0.2, 0.8, 0.3, 0.3], [0.4, 0.4, 0.4, 0.4]])
    task = RetrievalTask("toy", ("a", "b", "c"), tuple("wxyz"), (frozenset({0}), frozenset({2, 0}), frozenset({3})))
    result = task.evaluate_scores(scores)
    ranks = [1, 2.5, 2.5]  # expected places among the tied
    assert result["mrr@10"] == pytest.approx(np.mean([1 / rank for rank in ranks]))
    assert result["recall@1"] == pytest.approx(1 / 3)
    assert result["recall@10"] == 1.0
    discounts = 1 / np.log2(np.arange(2, 6))
    tied = discounts[1:3].mean()  # documents 2 and 3 of the second query share two places
    expected = [1.0, (tied + discounts[3]) / discounts[:2].sum(), discounts.mean()]
    assert result["ndcg@10"] == pytest.approx(np.mean(expected))


def test_several_relevant_documents_that_are_tied_count_by_the_first():
    task = RetrievalTask("toy", ("a", "b"), tuple("xyz"), (frozenset({0, 1}), frozenset({0, 1})))
    result = task.evaluate_scores(np.array([[0.9, 0.9, 0.1], [0.5, 0.5, 0.5]]))
    assert result["mrr@10"] == pytest.approx(np.mean([1, 1 / (4 / 3)]))  # mean first place of two among three: 4/3


def test_pair_scores_equal_their_definitions():
    rng = np.random.default_rng(1)
    left, right = rng.standard_normal((2, 40, 5))
    labels, gold = rng.integers(2, size=40), rng.random(40)
    cosines = (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
    names = tuple(map(str, range(40)))

    sides = iter([left, right] * 2)
    pairs = PairClassificationTask("toy", names, names, tuple(labels)).evaluate(lambda texts: next(sides))
    sorted_labels = labels[np.argsort(-cosines)]
    precision = np.cumsum(sorted_labels) / np.arange(1, 41)
    assert pairs["ap"] == pytest.approx(precision[sorted_labels == 1].mean())

    similarity = SimilarityTask("toy", names, names, tuple(gold)).evaluate(lambda texts: next(sides))
    ranks = [np.argsort(np.argsort(values)) for values in (cosines, gold)]
    assert similarity["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_label_scores_equal_their_definitions():
    vectors = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1], [1, 0.2], [0.2, 1]], dtype=float)
    labels = ("a", "a", "b", "b", "b", "b")

    def entropy(*groups):
        shares = np.unique(np.array(["".join(group) for group in zip(*groups, strict=True)]), return_counts=True)[1] / 6
        return -(shares * np.log(shares)).sum()

    clusters = "xxyyxy"
    joint, classes, groups = entropy(labels, clusters), entropy(labels), entropy(clusters)
    homogeneity, completeness = 1 - (joint - groups) / classes, 1 - (joint - classes) / groups
    measured = ClusteringTask("toy", tuple(clusters), labels).evaluate(lambda texts: vectors)
    assert measured["v_measure"] == pytest.approx(2 * homogeneity * completeness / (homogeneity + completeness))

    rows = {str(i): vector for i, vector in enumerate(vectors)}
    task = ClassificationTask("toy", ("0", "2") * 3, ("a", "b") * 3, ("1", "3", "4", "5"), ("a", "b", "b", "b"))
    result = task.evaluate(lambda texts: np.stack([rows[text] for text in texts]))
    assert result["accuracy"] == result["knn_accuracy"] == 0.75


def test_vectors_that_are_not_finite_or_too_few_are_refused():
    task = SimilarityTask("toy", ("good", "bad"), ("c", "d"), (0.1, 0.2))
    with pytest.raises(ValueError, match=r"not finite for the text 'bad' \(position 1\)"):
        task.evaluate(lambda texts: np.array([[1.0, 2.0], [np.nan, 0.0]]))
    with pytest.raises(ValueError, match=r"shape \(1, 2\) for 2 texts"):
        task.evaluate(lambda texts: np.ones((1, 2)))


def test_a_query_about_an_unknown_document_is_refused():
    with pytest.raises(ValueError, match=r"unknown documents \[7\]"):
        RetrievalTask.from_records("toy", [{"id": 1, "document": "d"}, {"query": "q", "relevant": [7]}])


def test_the_tasks_import_neither_torch_nor_mteb():
    code = (
        "import sys, types; package = types.ModuleType('ssmoe_embed'); package.__path__ = [sys.argv[1]]; "
        "sys.modules['ssmoe_embed'] = package; import ssmoe_embed.evaluation.offline as offline; "
        "offline.offline_tasks(); print(*({'torch', 'mteb', 'transformers'} & set(sys.modules)))"
    )
    package = Path(sys.modules["ssmoe_embed"].__path__[0])
    result = subprocess.run([sys.executable, "-c", code, str(package)], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
