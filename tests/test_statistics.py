"""The paired bootstrap: scores computed again equal mteb's, on all examples and on any resample of them."""

import json

import mteb
import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTaskClusteringLegacy
from mteb.mocks.mock_tasks import MockBitextMiningTask, MockMultilingualSTSTask, MockSummarizationTask
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from scipy import stats
from sklearn import metrics

from ssmoe_embed.evaluation.offline import offline_tasks
from ssmoe_embed.evaluation.offline.metadata import make_metadata
from ssmoe_embed.evaluation.rescoring import scorer
from ssmoe_embed.evaluation.statistics import p_value, paired_bootstrap, rescore

OFFLINE = {task.metadata.name: task for task in offline_tasks()}
ONE_OF_EACH_TYPE = [
    "ReviewSnippetSentimentClassification",
    "WordNetDomainClustering",
    "WordNetParaphrasePairClassification",
    "BibleVerseReranking",
    "WordNetRelatedRetrieval",
    "WordRelatednessSTS",
]


class Letters(AbsEncoder):
    """Counts of letters, of runs of so many."""

    def __init__(self, run):
        self.run = run
        self.mteb_model_meta = ModelMeta.create_empty(overwrites={"name": f"test/letters-{run}", "revision": "1"})

    def encode(self, inputs, **kwargs):
        texts = [text.lower() for batch in inputs for text in batch["text"]]
        vectors = np.zeros((len(texts), 61), dtype=np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            for i in range(len(text) - self.run + 1):
                vector[sum(31**j * ord(c) for j, c in enumerate(text[i : i + self.run])) % 61] += 1
        return vectors


class SeveralSets(AbsTaskClusteringLegacy):
    """Sets of texts to be clustered each for itself; the second has one label only."""

    metadata = make_metadata("SeveralSets", "Clustering", "v_measure", "For tests.", ("nowhere", "1"))

    def load_data(self, num_proc=None, **kwargs):
        rng = np.random.default_rng(0)
        words = ["aaa", "bob", "xyz", "qq"]
        sets = [rng.integers(4, size=40).tolist(), [1] * 10, rng.integers(3, size=25).tolist()]
        sentences = [[words[i] * 3 + words[rng.integers(4)] for i in one] for one in sets]
        self.dataset = DatasetDict({"test": Dataset.from_dict({"sentences": sentences, "labels": sets})})
        self.data_loaded = True


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Given a task, the folders of two methods' predictions and all scores of both."""
    done = {}

    def run(task):
        name = task.metadata.name
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            sides = []
            for model in (Letters(1), Letters(3)):
                predictions = folder / str(model.run)
                result = mteb.evaluate(
                    model, [task], cache=None, prediction_folder=predictions, show_progress_bar=False
                )
                sides.append((predictions, result.task_results[0].scores["test"][0]))
            done[name] = sides
        return done[name]

    return run


def every_metric(task_type, scores):
    names = {
        "Classification": ("accuracy", "f1", "f1_weighted"),
        "Clustering": ("v_measure",),
        "PairClassification": tuple(n for n in scores if n.endswith("_ap")),
        "STS": tuple(n for n in scores if n.endswith(("spearman", "pearson"))),
    }
    starts = ("ndcg_at", "map_at", "mrr_at", "recall_at", "precision_at", "hit_rate_at")
    return names.get(task_type) or tuple(n for n in scores if n.startswith(starts))


@pytest.mark.parametrize("task", [*map(OFFLINE.get, ONE_OF_EACH_TYPE), SeveralSets()], ids=lambda t: t.metadata.name)
def test_the_main_score_computed_again_is_mtebs(task, evaluated):
    for predictions, scores in evaluated(task):
        assert rescore(task, predictions) == pytest.approx(scores["main_score"], abs=1e-5)


@pytest.mark.parametrize("name", ONE_OF_EACH_TYPE)
def test_every_metric_that_can_be_computed_again_is_mtebs(name, evaluated):
    predictions, scores = evaluated(OFFLINE[name])[1]
    content = json.loads((predictions / f"{name}_predictions.json").read_text())
    chosen = every_metric(OFFLINE[name].metadata.type, scores)
    found = {metric: rescore(OFFLINE[name], content, metric=metric) for metric in chosen}
    assert len(found) >= (1 if "Clustering" in name else 3)
    assert found == pytest.approx({metric: scores[metric] for metric in found}, abs=2e-5)


def drawn(count, times=3):
    """Positions of the drawn examples and their weights, for a few resamples."""
    positions = np.random.default_rng(0).integers(count, size=(times, count))
    return positions, np.stack([np.bincount(one, minlength=count) for one in positions]).astype(float)


def predictions_of(name, evaluated, metric):
    task = OFFLINE[name]
    predictions = json.loads((evaluated(task)[1][0] / f"{name}_predictions.json").read_text())["default"]["test"]
    task.load_data()  # evaluating frees what it read itself
    data = task.dataset["default"]["test"] if "default" in task.dataset else task.dataset["test"]
    return data, predictions, scorer(task, predictions, metric, "test", "default")


@pytest.mark.parametrize(("metric", "average"), [("accuracy", None), ("f1", "macro"), ("f1_weighted", "weighted")])
def test_a_resamples_classification_score_is_scikit_learns_of_the_repeated_texts(metric, average, evaluated):
    data, predictions, (count, score) = predictions_of("ReviewSnippetSentimentClassification", evaluated, metric)
    gold, found = np.asarray(data["label"]), np.asarray(predictions)
    positions, weights = drawn(count)
    for one, value in zip(positions, score(weights), strict=True):
        if average is None:
            expected = [metrics.accuracy_score(gold[one], row[one]) for row in found]
        else:
            expected = [metrics.f1_score(gold[one], row[one], average=average) for row in found]
        assert value == pytest.approx(np.mean(expected))


def test_a_resamples_average_precision_is_scikit_learns_of_the_repeated_pairs(evaluated):
    data, predictions, (count, score) = predictions_of("WordNetParaphrasePairClassification", evaluated, "max_ap")
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
def test_a_resamples_correlation_is_scipys_of_the_repeated_pairs(metric, statistic, evaluated):
    data, predictions, (count, score) = predictions_of("WordRelatednessSTS", evaluated, metric)
    gold, found = np.asarray(data["score"]), np.round(predictions["cosine_scores"], 2)
    predictions = predictions | {"cosine_scores": found.tolist(), "similarity_scores": found.tolist()}  # with ties
    count, score = scorer(OFFLINE["WordRelatednessSTS"], predictions, metric, "test", "default")
    positions, weights = drawn(count)
    for one, value in zip(positions, score(weights), strict=True):
        assert value == pytest.approx(statistic(gold[one], found[one]).statistic)


def test_a_resamples_v_measure_is_scikit_learns_of_the_repeated_texts(evaluated):
    task = SeveralSets()
    predictions = json.loads((evaluated(task)[1][0] / "SeveralSets_predictions.json").read_text())["default"]["test"]
    task.load_data()
    count, score = scorer(task, predictions, "v_measure", "test", "default")
    sets = task.dataset["test"]["labels"]
    assert count == 75
    positions, weights = drawn(count)
    for one, value in zip(positions, score(weights), strict=True):
        expected = [1.0]  # the set of one label
        for start, labels, clusters in [(0, sets[0], predictions[0]), (50, sets[2], predictions[1])]:
            inside = [i - start for i in one if start <= i < start + len(labels)]
            expected.append(metrics.v_measure_score(np.asarray(labels)[inside], np.asarray(clusters)[inside]))
        assert value == pytest.approx(np.mean(expected))


def test_interval_and_difference_are_those_of_the_queries_values(evaluated):
    task = OFFLINE["BibleVerseReranking"]
    (first, before), (second, after) = evaluated(task)
    result = paired_bootstrap(task, first, second, expected=(before["main_score"], after["main_score"]))
    again = paired_bootstrap(task, first, second)
    assert result == again
    assert (result.examples, result.resamples, result.metric) == (120, 10_000, "map_at_1000")
    assert result.difference == pytest.approx(after["main_score"] - before["main_score"], abs=2e-5)

    data = task.dataset["default"]["test"]
    ranks = []
    for folder in (first, second):
        content = json.loads((folder / "BibleVerseReranking_predictions.json").read_text())["default"]["test"]
        ordered = {q: sorted(scores, key=lambda d: (scores[d], d), reverse=True) for q, scores in content.items()}
        ranks.append([1 + ordered[q].index(next(iter(data["relevant_docs"][q]))) for q in ordered])
    values = 1 / np.array(ranks[1]) - 1 / np.array(ranks[0])  # average precision of one relevant document
    assert result.difference == pytest.approx(values.mean())
    independent = stats.bootstrap(
        (values,), np.mean, method="percentile", rng=np.random.default_rng(7)
    ).confidence_interval
    spread = values.std() / np.sqrt(len(values))
    assert (result.low, result.high) == pytest.approx((independent.low, independent.high), abs=0.1 * spread)
    assert f"{result.second:.4f}, 95% interval" in str(result)


def test_a_method_against_itself_differs_by_nothing(evaluated):
    task = OFFLINE["WordRelatednessSTS"]
    first, _ = evaluated(task)[0]
    result = paired_bootstrap(task, first, first, resamples=200)
    assert (result.difference, result.low, result.high, result.p_value) == (0, 0, 0, 1)


def test_turning_the_two_around_turns_the_interval_around(evaluated):
    task = OFFLINE["ReviewSnippetSentimentClassification"]
    (first, _), (second, _) = evaluated(task)
    there, back = paired_bootstrap(task, first, second), paired_bootstrap(task, second, first)
    assert (there.difference, there.low, there.high) == pytest.approx((-back.difference, -back.high, -back.low))
    assert there.p_value == back.p_value


def test_the_p_value_counts_resamples_on_either_side_of_zero():
    assert p_value(np.array([0.1, 0.2, 0.3, -0.1])) == pytest.approx(2 * 2 / 5)
    assert p_value(np.array([0.1] * 999)) == pytest.approx(2 / 1000)
    assert p_value(np.array([0.0, 0.0])) == 1.0
    assert p_value(np.array([0.0, 0.5, 0.5, 0.5])) == pytest.approx(2 * 2 / 5)


def test_three_queries_give_the_exact_distribution(tmp_path):
    """Of 27 equally likely resamples one in 27 draws only the query that is lost."""
    from ssmoe_embed.evaluation.offline import retrieval_task

    path = tmp_path / "three.jsonl"
    documents = [{"id": i, "document": f"d{i}"} for i in range(3)]
    path.write_text(
        "\n".join(json.dumps(r) for r in documents + [{"query": f"q{i}", "relevant": [i]} for i in range(3)])
    )
    task = retrieval_task(path)
    data = task.dataset["default"]["test"]
    ids = {text: identifier for identifier, text in zip(data["corpus"]["id"], data["corpus"]["text"], strict=True)}
    right = {f"q{i}": {ids[f"d{i}"]: 1.0, ids[f"d{(i + 1) % 3}"]: 0.5} for i in range(3)}
    wrong = {query: {d: -s for d, s in scores.items()} for query, scores in right.items()}
    first = {"default": {"test": {"q0": wrong["q0"], "q1": wrong["q1"], "q2": right["q2"]}}}
    second = {"default": {"test": {"q0": right["q0"], "q1": right["q1"], "q2": wrong["q2"]}}}
    result = paired_bootstrap(task, first, second, metric="hit_rate_at_1", resamples=20_000)
    assert (result.first, result.second, result.difference) == pytest.approx((1 / 3, 2 / 3, 1 / 3))
    below = 1 / 27 + 3 * (2 / 27)  # -1 if only q2 is drawn, -1/3 if it is drawn twice; 0 cannot be
    assert result.p_value == pytest.approx(2 * below, abs=0.02)
    assert (result.low, result.high) == pytest.approx((-1, 1))


def test_summaries_are_compared_by_the_task_s_own_evaluator():
    task = MockSummarizationTask()
    task.load_data()
    rng = np.random.default_rng(3)
    part = {kind: rng.random((6, 5)).tolist() for kind in ("cosine_scores", "dot_scores", "similarity_scores")}
    part["human_scores"] = rng.random((6, 5)).tolist()
    pairs = zip(part["human_scores"], part["cosine_scores"], strict=True)
    expected = np.mean([stats.spearmanr(*pair).statistic for pair in pairs])
    assert rescore(task, {"default": {"test": part}}, metric="cosine_spearman") == pytest.approx(expected)


def test_predictions_that_are_not_of_the_results_are_refused(evaluated):
    task = OFFLINE["WordRelatednessSTS"]
    (first, before), (second, after) = evaluated(task)
    with pytest.raises(ValueError, match="they are not of the same evaluation"):
        paired_bootstrap(task, second, first, expected=(before["main_score"], after["main_score"]))


def test_clusterings_need_the_scores_they_are_checked_by(evaluated):
    task = OFFLINE["WordNetDomainClustering"]
    (first, before), (second, after) = evaluated(task)
    with pytest.raises(ValueError, match=r"needs expected=\(first, second\)"):
        paired_bootstrap(task, first, second)
    expected = (before["main_score"], after["main_score"])
    result = paired_bootstrap(task, first, second, expected=expected, resamples=50)
    assert result.low <= result.high
    assert result.difference == pytest.approx(expected[1] - expected[0])


def test_predictions_of_different_examples_are_refused(evaluated):
    task = OFFLINE["WordNetRelatedRetrieval"]
    content = json.loads((evaluated(task)[0][0] / "WordNetRelatedRetrieval_predictions.json").read_text())
    fewer = {"default": {"test": dict(list(content["default"]["test"].items())[:-1])}}
    with pytest.raises(ValueError, match="of 250 and 249 examples"):
        paired_bootstrap(task, content, fewer)


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("WordRelatednessSTS", "cosine_kendall"),
        ("WordNetParaphrasePairClassification", "max_f1"),
        ("ReviewSnippetSentimentClassification", "ap"),
        ("BibleVerseReranking", "nauc_map_at_1000_max"),
    ],
)
def test_a_metric_that_cannot_be_resampled_is_named(name, metric, evaluated):
    first, _ = evaluated(OFFLINE[name])[0]
    with pytest.raises(ValueError, match=f"'{metric}' of '{name}' cannot be resampled; of this type of task these can"):
        paired_bootstrap(OFFLINE[name], first, first, metric=metric)


def test_a_type_whose_predictions_do_not_suffice_is_named():
    part = {"default": {"test": []}}
    with pytest.raises(ValueError, match=r"'MockBitextMiningTask' \(BitextMining\) do not suffice"):
        paired_bootstrap(MockBitextMiningTask(), part, part)


def test_of_several_subsets_one_must_be_chosen():
    part = {"test": {"cosine_scores": [0.1, 0.2]}}
    both = {"mteb_model_meta": {}, "eng": part, "fra": part}
    with pytest.raises(ValueError, match=r"there are split='test' subset='eng', split='test' subset='fra'"):
        paired_bootstrap(MockMultilingualSTSTask(), both, both)


def test_missing_predictions_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"WordRelatednessSTS_predictions\.json; evaluate again"):
        paired_bootstrap(OFFLINE["WordRelatednessSTS"], tmp_path, tmp_path)
