"""Scores computed again from predictions equal mteb's, on all examples and on any resample of them."""

import json

import numpy as np
import pytest
from letters import ONE_OF_EACH_TYPE, new_task
from mteb.mocks import MockSummarizationTask
from scipy import stats
from sklearn import metrics

from ssmoe_embed.evaluation.significance.bootstrap import weighted_scorer
from ssmoe_embed.evaluation.significance.rescoring import scorer


def every_metric(task_type, scores):
    names = {
        "Classification": ("accuracy", "f1", "f1_weighted"),
        "Clustering": ("v_measure",),
        "PairClassification": tuple(n for n in scores if n.endswith("_ap")),
        "STS": tuple(n for n in scores if n.endswith(("spearman", "pearson"))),
    }
    starts = ("ndcg_at", "map_at", "mrr_at", "recall_at", "precision_at", "hit_rate_at")
    return names.get(task_type) or tuple(n for n in scores if n.startswith(starts))


def again(task, predictions, metric=None):
    """A score computed again on all examples."""
    count, score = weighted_scorer(task, predictions, metric=metric)
    return float(score(np.ones(count)))


@pytest.mark.parametrize("name", [*ONE_OF_EACH_TYPE, "SeveralSets"])
def test_the_main_score_computed_again_is_mtebs(name, letters):
    for predictions, scores in letters(name):
        assert again(new_task(name), predictions) == pytest.approx(scores["main_score"], abs=1e-5)


@pytest.mark.parametrize("name", ONE_OF_EACH_TYPE)
def test_every_metric_that_can_be_computed_again_is_mtebs(name, letters):
    predictions, scores = letters(name)[1]
    task = new_task(name)
    content = json.loads((predictions / f"{name}_predictions.json").read_text(encoding="utf-8"))
    chosen = every_metric(task.metadata.type, scores)
    found = {metric: again(task, content, metric) for metric in chosen}
    assert len(found) >= (1 if "Clustering" in name else 3)
    assert found == pytest.approx({metric: scores[metric] for metric in found}, abs=2e-5)


def drawn(count, times=3):
    """Positions of the drawn examples and their weights, for a few resamples."""
    positions = np.random.default_rng(0).integers(count, size=(times, count))
    return positions, np.stack([np.bincount(one, minlength=count) for one in positions]).astype(float)


def kept(name, letters):
    """A task's data, and the predictions of them."""
    task = new_task(name)
    task.load_data()
    predictions = json.loads((letters(name)[1][0] / f"{name}_predictions.json").read_text(encoding="utf-8"))["default"][
        "test"
    ]
    return task, task.dataset["test"], predictions


@pytest.mark.parametrize(("metric", "average"), [("accuracy", None), ("f1", "macro"), ("f1_weighted", "weighted")])
def test_a_resamples_classification_score_is_scikit_learns_of_the_repeated_texts(metric, average, letters):
    task, data, predictions = kept("ReviewSnippetSentimentClassification", letters)
    count, score = scorer(task, predictions, metric, "test", "default")
    gold, found = np.asarray(data["label"]), np.asarray(predictions)
    positions, weights = drawn(count)
    for one, value in zip(positions, score(weights), strict=True):
        if average is None:
            expected = [metrics.accuracy_score(gold[one], row[one]) for row in found]
        else:
            expected = [metrics.f1_score(gold[one], row[one], average=average) for row in found]
        assert value == pytest.approx(np.mean(expected))


def test_a_resamples_average_precision_is_scikit_learns_of_the_repeated_pairs(letters):
    task, data, predictions = kept("WordNetParaphrasePairClassification", letters)
    count, score = scorer(task, predictions, "max_ap", "test", "default")
    labels = np.asarray(data["labels"])
    signs = {kind: -1 if kind.endswith("distances") else 1 for kind in predictions}
    assert len(signs) == 5
    positions, weights = drawn(count)
    for one, value in zip(positions, score(weights), strict=True):
        expected = [
            metrics.average_precision_score(labels[one], sign * np.asarray(predictions[kind])[one])
            for kind, sign in signs.items()
        ]
        assert value == pytest.approx(max(expected))


@pytest.mark.parametrize(("metric", "statistic"), [("cosine_spearman", stats.spearmanr), ("pearson", stats.pearsonr)])
def test_a_resamples_correlation_is_scipys_of_the_repeated_pairs(metric, statistic, letters):
    task, data, predictions = kept("WordRelatednessSTS", letters)
    gold, found = np.asarray(data["score"]), np.round(predictions["cosine_scores"], 2)
    predictions = predictions | {"cosine_scores": found.tolist(), "similarity_scores": found.tolist()}  # with ties
    count, score = scorer(task, predictions, metric, "test", "default")
    positions, weights = drawn(count)
    for one, value in zip(positions, score(weights), strict=True):
        assert value == pytest.approx(statistic(gold[one], found[one]).statistic)


def test_a_resamples_v_measure_is_scikit_learns_of_the_repeated_texts(letters):
    task, data, predictions = kept("SeveralSets", letters)
    count, score = scorer(task, predictions, "v_measure", "test", "default")
    sets = data["labels"]
    assert count == 75
    positions, weights = drawn(count)
    for one, value in zip(positions, score(weights), strict=True):
        expected = [1.0]  # the set of one label
        for start, labels, clusters in [(0, sets[0], predictions[0]), (50, sets[2], predictions[1])]:
            inside = [i - start for i in one if start <= i < start + len(labels)]
            expected.append(metrics.v_measure_score(np.asarray(labels)[inside], np.asarray(clusters)[inside]))
        assert value == pytest.approx(np.mean(expected))


def test_summaries_are_scored_by_the_tasks_own_evaluator():
    task = MockSummarizationTask()
    task.load_data()
    rng = np.random.default_rng(3)
    part = {kind: rng.random((6, 5)).tolist() for kind in ("cosine_scores", "dot_scores", "similarity_scores")}
    part["human_scores"] = rng.random((6, 5)).tolist()
    pairs = zip(part["human_scores"], part["cosine_scores"], strict=True)
    expected = np.mean([stats.spearmanr(*pair).statistic for pair in pairs])
    assert again(task, {"default": {"test": part}}, "cosine_spearman") == pytest.approx(expected)
