"""The paired bootstrap between two methods on one task."""

import json

import numpy as np
import pytest
from letters import new_task
from mteb.mocks.mock_tasks import MockBitextMiningTask, MockMultilingualSTSTask
from scipy import stats

from ssmoe_embed.evaluation.significance.bootstrap import p_value, paired_bootstrap
from ssmoe_embed.evaluation.tasks.offline import retrieval_task


def test_interval_and_difference_are_those_of_the_queries_values(letters):
    name = "BibleVerseReranking"
    task = new_task(name)
    (first, before), (second, after) = letters(name)
    result = paired_bootstrap(task, first, second, expected=(before["main_score"], after["main_score"]))
    again = paired_bootstrap(task, first, second)
    assert result == again
    assert (result.examples, result.resamples, result.metric) == (120, 10_000, "map_at_1000")
    assert result.difference == pytest.approx(after["main_score"] - before["main_score"], abs=2e-5)

    data = task.dataset["default"]["test"]
    ranks = []
    for folder in (first, second):
        content = json.loads((folder / "BibleVerseReranking_predictions.json").read_text(encoding="utf-8"))["default"][
            "test"
        ]
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


def test_a_method_against_itself_differs_by_nothing(letters):
    name = "WordRelatednessSTS"
    task = new_task(name)
    first, _ = letters(name)[0]
    result = paired_bootstrap(task, first, first, resamples=200)
    assert (result.difference, result.low, result.high, result.p_value) == (0, 0, 0, 1)


def test_turning_the_two_around_turns_the_interval_around(letters):
    name = "ReviewSnippetSentimentClassification"
    task = new_task(name)
    (first, _), (second, _) = letters(name)
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
    path = tmp_path / "three.jsonl"
    documents = [{"id": i, "document": f"d{i}"} for i in range(3)]
    path.write_text(
        "\n".join(json.dumps(r) for r in documents + [{"query": f"q{i}", "relevant": [i]} for i in range(3)]),
        encoding="utf-8",
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


def test_predictions_that_are_not_of_the_results_are_refused(letters):
    name = "WordRelatednessSTS"
    task = new_task(name)
    (first, before), (second, after) = letters(name)
    with pytest.raises(ValueError, match="they are not of the same evaluation"):
        paired_bootstrap(task, second, first, expected=(before["main_score"], after["main_score"]))


def test_clusterings_need_the_scores_they_are_checked_by(letters):
    name = "WordNetDomainClustering"
    task = new_task(name)
    (first, before), (second, after) = letters(name)
    with pytest.raises(ValueError, match=r"needs expected=\(first, second\)"):
        paired_bootstrap(task, first, second)
    expected = (before["main_score"], after["main_score"])
    result = paired_bootstrap(task, first, second, expected=expected, resamples=50)
    assert result.low <= result.high
    assert result.difference == pytest.approx(expected[1] - expected[0])


def test_the_interval_of_clusterings_holds_the_difference_though_repeated_texts_raise_low_v_measures_more():
    task = new_task("SeveralSets")
    task.load_data()
    data = task.dataset["test"]["labels"]
    clusters = [labels for labels in data if len(set(labels)) > 1]
    rng = np.random.default_rng(0)
    chance = [rng.integers(10, size=len(labels)).tolist() for labels in clusters]
    worst, best = ({"default": {"test": found}} for found in (chance, clusters))
    result = paired_bootstrap(task, worst, best, resamples=2000)
    assert result.low < result.difference < result.high
    assert result.difference - result.low == pytest.approx(result.high - result.difference, rel=0.3)


def test_predictions_of_different_examples_are_refused(letters):
    name = "WordNetRelatedRetrieval"
    task = new_task(name)
    content = json.loads((letters(name)[0][0] / "WordNetRelatedRetrieval_predictions.json").read_text(encoding="utf-8"))
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
def test_a_metric_that_cannot_be_resampled_is_named(name, metric, letters):
    first, _ = letters(name)[0]
    with pytest.raises(ValueError, match=f"'{metric}' of '{name}' cannot be resampled; of this type of task these can"):
        paired_bootstrap(new_task(name), first, first, metric=metric)


@pytest.mark.parametrize("resamples", [0, -3, 2.5])
def test_a_number_of_resamples_that_makes_no_sense_is_named(resamples):
    with pytest.raises(ValueError, match=f"resamples={resamples} is not a whole number of at least 1"):
        paired_bootstrap(MockMultilingualSTSTask(), {}, {}, resamples=resamples)


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
        paired_bootstrap(new_task("WordRelatednessSTS"), tmp_path, tmp_path)
