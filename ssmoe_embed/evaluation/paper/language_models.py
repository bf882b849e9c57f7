"""The paper's tables of language models as data, in the names of this package and of the harness.

Source: SSMoE, tables 1, 5, 8 and 12 to 16, https://arxiv.org/abs/2605.30992.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from ssmoe_embed.common.choices import Choice
from ssmoe_embed.data import paper_table
from ssmoe_embed.evaluation.harness.finding import MMLU, PAPER_TASKS
from ssmoe_embed.evaluation.harness.grid import NAMED, GridCell
from ssmoe_embed.language_model.routings import Routing


class Quantity(Choice):
    """What a number is."""

    SCORE = "score"
    """Points of 100."""
    FLIP_RATE = "flip rate"
    """Share of examples that only one of original and cell has right, in points of 100."""
    CORRECT_TO_WRONG = "right → wrong"
    WRONG_TO_CORRECT = "wrong → right"
    OVERLAP = "overlap"
    """Of selected experts, 0 to 1; the paper does not say by which measure."""
    PERPLEXITY = "perplexity"
    """On WikiText-2."""
    MEMORY = "memory, GB"


@dataclass(frozen=True)
class PublishedNumber:
    """One number of the paper.

    Attributes:
        table: The table's number.
        model: The paper's name of the model.
        cell: The cell of our grid that it is compared with.
        task: The harness' name of the task; None where the table has none.
        quantity: What the number is.
        value: The number as printed.
        stderr: Its standard error, where printed.
    """

    table: int
    model: str
    cell: str
    task: str | None
    quantity: Quantity
    value: float
    stderr: float | None = None


MODELS = {
    "GPT-OSS-20B": "openai/gpt-oss-20b",
    "GPT-OSS-120B": "openai/gpt-oss-120b",
    "OLMoE-7B (fine-tuned)": "allenai/OLMoE-1B-7B-0924",
}
"""The paper's models of these tables, with their hub ids."""

SHOTS = 10
"""Of tables 1, 5, 12, 13, 15 and 16, as far as the paper says; those of table 8 it does not tell."""

_GPT_OSS = "GPT-OSS-20B"
_ORIGINAL, _FULL = GridCell(Routing.ORIGINAL).name, GridCell(Routing.SSMOE).name
_DROPPED = NAMED["ssmoe-drop"].name
_TABLE_1 = {
    "Original": _ORIGINAL,
    "SSMoE-FULL": _FULL,
    "RandDrop": NAMED["random-drop"].name,
    "Router": NAMED["router-drop"].name,
    "SSMoE": _DROPPED,
}
_TASKS = PAPER_TASKS | {"MMLU": MMLU}
_MEANS = ("Avg", "Average", "Mean")

NOTES = (
    "Where tables 5, 12, 13 and 16 name SSMoE, they print the numbers that table 1 gives for SSMoE with 75 % of the "
    "experts, so they are compared with ssmoe+ssmoe-drop. Whether table 5's average-EV model has all experts is not said.",
    "The random router of table 12 has, task by task, the numbers of table 1's random expert dropping, though these are two "
    "different methods.",
    "Table 8 is of models that were fine-tuned, one of them with the SSMoE router; nothing here is.",
    "The paper does not say which α, which metrics of the harness and which calibration text it used for these tables, nor "
    "how it measured overlap; ours is the share of the k chosen experts.",
)


@cache
def published() -> tuple[PublishedNumber, ...]:
    """Every number of these tables but their means."""
    return tuple(
        one
        for source in (_table_1(), _wide(5, "table5_router_free.csv"), _table_8(), _wide(12, _FILE_12))
        for one in source
    ) + tuple(one for source in (_table_13(), _table_14(), _table_15(), _wide(16, _FILE_16)) for one in source)


_FILE_12 = "table12_training_free_routing.csv"
_FILE_16 = "table16_gsm8k_capacity.csv"
_COLUMNS = {
    "original": _ORIGINAL,
    "ssmoe": _DROPPED,
    "ssmoe_average_ev": GridCell(Routing.AVERAGE_EV).name,
    "hash": GridCell(Routing.HASH).name,
    "random": GridCell(Routing.RANDOM).name,
    "ssmoe_full": _FULL,
    "ssmoe_75": _DROPPED,
}


def _table_1() -> Iterator[PublishedNumber]:
    seen = set()
    for row in paper_table("table1_reasoning.csv"):
        model, cell = row["model"].split()[0], _TABLE_1[row["method"]]
        if (model, cell) not in seen:
            seen.add((model, cell))
            yield PublishedNumber(1, model, cell, None, Quantity.MEMORY, float(row["memory_gb"]))
        if row["task"] not in _MEANS:
            value, stderr = float(row["score"]), float(row["stderr"])
            yield PublishedNumber(1, model, cell, _TASKS[row["task"]], Quantity.SCORE, value, stderr)


def _wide(table: int, name: str) -> Iterator[PublishedNumber]:
    """A table with a column a cell."""
    for row in paper_table(name):
        if row["task"] not in _MEANS:
            for column, cell in _COLUMNS.items():
                if column in row:
                    yield PublishedNumber(
                        table, _GPT_OSS, cell, _TASKS[row["task"]], Quantity.SCORE, float(row[column])
                    )


def _table_8() -> Iterator[PublishedNumber]:
    for row in paper_table("table8_sft_olmoe.csv"):
        for column, cell in (("smoe", _ORIGINAL), ("ssmoe", _FULL)):
            if row["task"] not in _MEANS:
                task = _TASKS[row["task"]]
                yield PublishedNumber(8, "OLMoE-7B (fine-tuned)", cell, task, Quantity.SCORE, float(row[column]))


def _table_13() -> Iterator[PublishedNumber]:
    columns = {
        "flip_rate": Quantity.FLIP_RATE,
        "correct_to_wrong": Quantity.CORRECT_TO_WRONG,
        "wrong_to_correct": Quantity.WRONG_TO_CORRECT,
    }
    for row in paper_table("table13_answer_flips.csv"):
        if row["task"] not in _MEANS:
            for column, quantity in columns.items():
                yield PublishedNumber(13, _GPT_OSS, _DROPPED, _TASKS[row["task"]], quantity, float(row[column]))


def _table_14() -> Iterator[PublishedNumber]:
    cells = {"original": _ORIGINAL, "router": NAMED["router-drop"].name, "ssmoe": _DROPPED}
    for row in paper_table("table14_perplexity_wikitext2.csv"):
        yield PublishedNumber(14, row["model"], cells[row["method"]], None, Quantity.PERPLEXITY, float(row["ppl"]))


def _table_15() -> Iterator[PublishedNumber]:
    for row in paper_table("table15_overlap.csv"):
        if row["task"] not in _MEANS:
            yield PublishedNumber(
                15, _GPT_OSS, _FULL, _TASKS[row["task"]], Quantity.OVERLAP, float(row["mean_overlap"])
            )
