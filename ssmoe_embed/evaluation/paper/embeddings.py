"""The paper's tables of embedding scores as data, in the names of this package and of mteb.

Source: SSMoE, tables 2, 6 and 9 to 11, https://arxiv.org/abs/2605.30992.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from statistics import fmean

from ssmoe_embed.common.choices import Choice, unknown
from ssmoe_embed.data import paper_table
from ssmoe_embed.embedding.methods import Method
from ssmoe_embed.hub.names import RECIPES


class Condition(Choice):
    """What the texts were like."""

    CLEAN = "clean"
    """As they are."""
    CORRUPT = "corrupt"
    """With "AAA" put in, in a way and at a rate that the paper does not tell."""


@dataclass(frozen=True)
class PaperModel:
    """One of the paper's models: what the paper calls it, and our recipe."""

    name: str
    recipe: str


@dataclass(frozen=True)
class Dataset:
    """One of the paper's datasets.

    Attributes:
        category: The kind of task, as mteb names it.
        name: What the paper calls it; only unique within its category.
        task: What mteb calls it.
    """

    category: str
    name: str
    task: str

    @property
    def metric(self) -> str:
        """The name that mteb gives the score that the paper reports."""
        return METRICS[self.category]


@dataclass(frozen=True)
class PublishedScore:
    """One number of the paper.

    Attributes:
        model: The paper's name of the model.
        category: The kind of task; `OVERALL` for the mean of all.
        task: mteb's name of the dataset; None for a mean.
        method: The representation.
        prompt: The template, as this package names it.
        condition: Clean or corrupt texts.
        score: In points of 100.
    """

    model: str
    category: str
    task: str | None
    method: Method
    prompt: str
    condition: Condition
    score: float


@dataclass(frozen=True)
class PublishedAblation:
    """One number of table 6, measured by classification accuracy with OLMoE-7B.

    Attributes:
        task: mteb's name of the dataset.
        setting: `alpha` or `top_c`; the table does not say what the other one was.
        value: The setting's value.
        score: In points of 100.
    """

    task: str
    setting: str
    value: float
    score: float


OVERALL = "Overall"
"""The mean of the six categories' means."""

METRICS = {
    "Classification": "accuracy",
    "Clustering": "v_measure",
    "PairClassification": "max_ap",
    "Reranking": "map_at_1000",
    "STS": "cosine_spearman",
    "Summarization": "cosine_spearman",
}
"""mteb's main score of each category, in the paper's order: what its section 4.2 says it reports."""

MODELS = (
    PaperModel("OLMoE-7B", "ssmoe/olmoe-7b"),
    PaperModel("Qwen-MoE-7B", "ssmoe/qwen1.5-moe"),
    PaperModel("DeepSeekMoE-16B", "ssmoe/deepseek-moe-16b"),
)

DATASETS = (
    Dataset("Classification", "Emotion", "EmotionClassification"),
    Dataset("Classification", "Toxic", "ToxicConversationsClassification"),
    Dataset("Classification", "Tweet", "TweetSentimentExtractionClassification"),
    Dataset("Clustering", "Medrxiv", "MedrxivClusteringS2S"),
    Dataset("Clustering", "20Groups", "TwentyNewsgroupsClustering"),
    Dataset("PairClassification", "SemEval", "TwitterSemEval2015"),
    Dataset("PairClassification", "URLCorpus", "TwitterURLCorpus"),
    Dataset("Reranking", "Ask", "AskUbuntuDupQuestions"),
    Dataset("Reranking", "SciDocs", "SciDocsRR"),
    Dataset("Reranking", "StackOver", "StackOverflowDupQuestions"),
    Dataset("STS", "Biosses", "BIOSSES"),
    Dataset("STS", "SickR", "SICK-R"),
    Dataset("STS", "STS12", "STS12"),
    Dataset("STS", "STS13", "STS13"),
    Dataset("STS", "STS14", "STS14"),
    Dataset("STS", "STS15", "STS15"),
    Dataset("STS", "STS16", "STS16"),
    Dataset("STS", "STSBen", "STSBenchmark"),
    Dataset("Summarization", "Medrxiv", "SummEval"),  # SummEval is the one summarization task that MTEB had
)

METHODS = (Method.ROUTER, Method.SMOE, Method.MOEE, Method.EV, Method.SSMOE)
"""The methods that the paper has numbers of."""
_PROMPTS = {"none": "none", "PromptEOL": "prompteol"}
_SAME_PROMPT = {"release-none": "none"}
"""The paper's runs without a prompt put the text into quotes, as its release does; plain text is compared with them too."""
_ROUNDING = 0.0501
"""How far a mean of numbers of one decimal may be from its own print of one decimal."""
_SETTINGS = {"topc": "top_c", "alpha": "alpha"}


def paper_prompt(prompt: str) -> str:
    """The prompt whose published scores a run with `prompt` is compared with."""
    return _SAME_PROMPT.get(prompt, prompt)


def paper_model(name: str) -> PaperModel:
    """The paper's model that a recipe, a base model's hub id or the paper's own name stands for.

    Raises:
        ValueError: The paper has no such model; the message lists those it has.
    """
    for model in MODELS:
        if name.casefold() in (model.name.casefold(), model.recipe, RECIPES[model.recipe].base.casefold()):
            return model
    allowed = [spelling for model in MODELS for spelling in (model.recipe, model.name)]
    raise ValueError(f"The paper has no scores of this model: {unknown('model', name, allowed)}")


def datasets(category: str) -> tuple[Dataset, ...]:
    """The datasets of one category, in the paper's order."""
    return tuple(dataset for dataset in DATASETS if dataset.category == category)


@cache
def published() -> tuple[PublishedScore, ...]:
    """Every number of tables 2 and 9 to 11, as printed."""
    found = []
    for row in paper_table("table2_mteb_averages.csv"):  # clean and corrupt, without a prompt
        category = OVERALL if row["category"] == "Avg." else row["category"]
        method, condition = Method(row["method"].lower()), Condition(row["condition"])
        found.append(PublishedScore(row["model"], category, None, method, "none", condition, float(row["score"])))
    tasks = {(dataset.category, dataset.name): dataset.task for dataset in DATASETS}
    for row in paper_table("tables9-11_mteb_tasks.csv"):  # clean, with and without a prompt
        category, prompt = row["category"].replace(" ", ""), _PROMPTS[row["prompt"]]
        task, method = tasks[category, row["dataset"]], Method(row["method"].lower())
        score = float(row["score"])
        found.append(PublishedScore(row["model"], category, task, method, prompt, Condition.CLEAN, score))
    return tuple(found)


@cache
def misprints(model: PaperModel) -> tuple[str, ...]:
    """Where table 2 prints another mean than the tables of single tasks give, a sentence each."""
    numbers = [number for number in published() if (number.model, number.condition) == (model.name, Condition.CLEAN)]
    means = {(number.category, number.method): number.score for number in numbers if number.task is None}
    sentences = []
    for (category, method), stated in means.items():
        key = (category, method, "none")
        tasks = [n.score for n in numbers if n.task and (n.category, n.method, n.prompt) == key]
        if tasks and abs(fmean(tasks) - stated) > _ROUNDING:
            told = f"The paper's table 2 prints {stated} for {category} with {method}"
            sentences.append(f"{told}; its tables of single tasks give {fmean(tasks):.2f}.")
    return tuple(sentences)


@cache
def ablations() -> tuple[PublishedAblation, ...]:
    """Every number of table 6, as printed."""
    tasks = {dataset.name: dataset.task for dataset in datasets("Classification")}
    rows = paper_table("table6_ablation_olmoe.csv")
    return tuple(
        PublishedAblation(tasks[r["dataset"]], _SETTINGS[r["parameter"]], float(r["value"]), float(r["accuracy"]))
        for r in rows
    )
