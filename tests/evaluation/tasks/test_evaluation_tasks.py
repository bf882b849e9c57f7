"""Names of suites and tasks."""

import mteb
import pytest
from mteb.mocks import MockSTSTask

from ssmoe_embed.evaluation.tasks.finding import expanded, find_tasks
from ssmoe_embed.evaluation.tasks.offline import offline_tasks

PAPER = {
    "EmotionClassification": "accuracy",
    "ToxicConversationsClassification": "accuracy",
    "TweetSentimentExtractionClassification": "accuracy",
    "MedrxivClusteringS2S": "v_measure",
    "TwentyNewsgroupsClustering": "v_measure",
    "TwitterSemEval2015": "max_ap",
    "TwitterURLCorpus": "max_ap",
    "AskUbuntuDupQuestions": "map_at_1000",
    "SciDocsRR": "map_at_1000",
    "StackOverflowDupQuestions": "map_at_1000",
    **dict.fromkeys(
        ["BIOSSES", "SICK-R", "STS12", "STS13", "STS14", "STS15", "STS16", "STSBenchmark"], "cosine_spearman"
    ),
    "SummEval": "cosine_spearman",
}


def names(tasks):
    return [task.metadata.name for task in tasks]


def test_paper_is_its_nineteen_tasks_with_todays_metrics():
    found = find_tasks(["paper"])
    assert {task.metadata.name: task.metadata.main_score for task in found} == PAPER
    assert all(list(task.hf_subsets) == ["default"] for task in found)


@pytest.mark.parametrize("name", ["MTEB(eng, v1)", "MTEB(eng, v2)"])
def test_a_benchmark_is_mtebs_own(name):
    assert set(names(find_tasks([name]))) == set(names(mteb.get_benchmark(name).tasks))


def test_suites_names_and_tasks_mix_and_no_task_comes_twice():
    first = names(offline_tasks())[0]
    found = names(find_tasks(["STS12", MockSTSTask(), "paper", first, "offline"]))
    assert found[:2] == ["STS12", "MockSTSTask"]
    assert len(found) == len(set(found)) == 1 + len(PAPER) + len(offline_tasks())


def test_an_average_of_tasks_comes_after_its_parts():
    [average] = [task for task in find_tasks(["MTEB(eng, v1)"]) if task.metadata.name == "CQADupstackRetrieval"]
    found = names(expanded([average]))
    assert found[-1] == "CQADupstackRetrieval"
    assert len(found) == 13


@pytest.mark.parametrize(
    ("name", "near"),
    [("EmotionClasification", "EmotionClassification"), ("MTEB(eng v1)", "MTEB(eng, v1)"), ("ofline", "offline")],
)
def test_an_unknown_name_is_refused_with_near_ones(name, near):
    with pytest.raises(ValueError, match="is not known") as error:
        find_tasks([name])
    assert repr(near) in str(error.value)


def test_no_task_at_all_is_refused():
    with pytest.raises(ValueError, match="No task was named"):
        find_tasks([])
