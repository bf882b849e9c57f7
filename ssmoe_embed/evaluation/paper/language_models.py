"""The paper's tables of language models as data, in the names of this package and of the harness.

Source: SSMoE, tables 1, 5, 8 and 12 to 16, https://arxiv.org/abs/2605.30992.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cache

from ssmoe_embed.common.choices import Choice, unknown
from ssmoe_embed.common.tables import Report, Table, csv_text
from ssmoe_embed.data import paper_table
from ssmoe_embed.evaluation.harness.grid import MMLU, NAMED, PAPER_TASKS, GridCell
from ssmoe_embed.evaluation.harness.results import GridFolder, folder_flips
from ssmoe_embed.language_model.loading import Routing


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

_ORIGINAL, _FULL = GridCell(Routing.ORIGINAL).name, GridCell(Routing.SSMOE).name
_DROPPED = NAMED["ssmoe-drop"].name
_CELLS = {
    "original": _ORIGINAL,
    "ssmoe": _DROPPED,
    "ssmoe_full": _FULL,
    "ssmoe_75": _DROPPED,
    "ssmoe-full": _FULL,
    "ssmoe_average_ev": GridCell(Routing.AVERAGE_EV).name,
    "hash": GridCell(Routing.HASH).name,
    "random": GridCell(Routing.RANDOM).name,
    "randdrop": NAMED["random-drop"].name,
    "router": NAMED["router-drop"].name,
}
"""What a method or a column of scores is called in these tables, but for table 8 → the cell of our grid."""
_FLIPS = {
    "flip_rate": Quantity.FLIP_RATE,
    "correct_to_wrong": Quantity.CORRECT_TO_WRONG,
    "wrong_to_correct": Quantity.WRONG_TO_CORRECT,
}
"""Column of table 13 and attribute of `Flips` → what it is."""
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
    scores = {column: (cell, Quantity.SCORE) for column, cell in _CELLS.items()}
    tuned = {"smoe": (_ORIGINAL, Quantity.SCORE), "ssmoe": (_FULL, Quantity.SCORE)}
    flips = {column: (_DROPPED, quantity) for column, quantity in _FLIPS.items()}
    return (
        *_table_1(),
        *_wide(5, "table5_router_free.csv", scores),
        *_wide(8, "table8_sft_olmoe.csv", tuned, "OLMoE-7B (fine-tuned)"),
        *_wide(12, "table12_training_free_routing.csv", scores),
        *_wide(13, "table13_answer_flips.csv", flips),
        *(
            PublishedNumber(14, row["model"], _CELLS[row["method"]], None, Quantity.PERPLEXITY, float(row["ppl"]))
            for row in paper_table("table14_perplexity_wikitext2.csv")
        ),
        *_wide(15, "table15_overlap.csv", {"mean_overlap": (_FULL, Quantity.OVERLAP)}),
        *_wide(16, "table16_gsm8k_capacity.csv", scores),
    )


def _table_1() -> Iterator[PublishedNumber]:
    seen = set()
    for row in paper_table("table1_reasoning.csv"):
        model, cell = row["model"].split()[0], _CELLS[row["method"].lower()]
        if (model, cell) not in seen:
            seen.add((model, cell))
            yield PublishedNumber(1, model, cell, None, Quantity.MEMORY, float(row["memory_gb"]))
        if row["task"] not in _MEANS:
            value, stderr = float(row["score"]), float(row["stderr"])
            yield PublishedNumber(1, model, cell, _TASKS[row["task"]], Quantity.SCORE, value, stderr)


def _wide(
    table: int, name: str, columns: Mapping[str, tuple[str, Quantity]], model: str = "GPT-OSS-20B"
) -> Iterator[PublishedNumber]:
    """A table with a column for each cell or quantity."""
    for row in paper_table(name):
        if row["task"] not in _MEANS:
            for column, (cell, quantity) in columns.items():
                if column in row:
                    yield PublishedNumber(table, model, cell, _TASKS[row["task"]], quantity, float(row[column]))


@dataclass(frozen=True)
class NumberComparison:
    """One number of the paper and ours, in the same unit; ours is None if it was not measured."""

    paper: PublishedNumber
    measured: float | None

    @property
    def difference(self) -> float | None:
        """Ours less the paper's."""
        return None if self.measured is None else self.measured - self.paper.value


def compare_with_paper(folder: GridFolder, stands_for: str | None = None) -> list[NumberComparison]:
    """Compare the results of a grid with the paper's, a line for each number that the paper prints of the model.

    Args:
        folder: The results.
        stands_for: Which of the paper's models was measured, if its name does not tell.

    Raises:
        FileNotFoundError: The folder holds no results of `ssmoe lm-eval`.
        ValueError: The paper has no such model.
    """
    model = _paper_model(str(folder.settings()["base"]), stands_for)
    measured: dict[tuple[str, str | None, Quantity], float] = {}
    sizes: dict[str, set[int]] = {}
    for result in folder.results():
        measured[result.cell, result.task, Quantity.SCORE] = 100 * result.score
        if result.overlap is not None:
            measured[result.cell, result.task, Quantity.OVERLAP] = float(result.overlap["share"])
        sizes.setdefault(result.cell, set()).add(result.weight_bytes)
    for cell, found in sizes.items():
        if len(found) == 1:
            measured[cell, None, Quantity.MEMORY] = found.pop() / 1e9
    for (cell, task), flips in folder_flips(folder).items():
        for name, quantity in _FLIPS.items():
            measured[cell, task, quantity] = 100 * getattr(flips, name)
    for text in folder.perplexities():
        measured[text.cell, None, Quantity.PERPLEXITY] = text.value
    return [
        NumberComparison(number, measured.get((number.cell, number.task, number.quantity)))
        for number in published()
        if number.model == model
    ]


def notes(folder: GridFolder) -> list[str]:
    """What to bear in mind when the numbers are read."""
    settings = folder.settings()
    found = list(NOTES)
    if settings["num_fewshot"] != SHOTS:
        found.insert(0, f"Measured with num_fewshot={settings['num_fewshot']}; the paper's tables are {SHOTS}-shot.")
    if settings["limit"] is not None:
        found.insert(0, f"Only the first {settings['limit']} examples of each task were measured.")
    texts = sorted({one.text for one in folder.perplexities()})
    if texts:
        found.append(f"Perplexity here is of {', '.join(texts)}, and the paper's of WikiText-2.")
    return found


def report(folder: GridFolder, lines: Sequence[NumberComparison]) -> Report:
    """The comparison and what to bear in mind."""
    rows = []
    for line in lines:
        one = line.paper
        paper = f"{one.value:g}" + ("" if one.stderr is None else f" ± {one.stderr:g}")
        ours = None if line.measured is None else f"{line.measured:.4g}"
        gap = None if line.difference is None else f"{line.difference:+.3g}"
        rows.append((one.table, one.cell, one.task or "", str(one.quantity), paper, ours, gap))
    heads = ("table", "cell", "task", "quantity", "paper", "here", "difference")
    return Report("Compared with the paper", (Table(heads, tuple(rows), texts=4), *notes(folder)))


def numbers_csv(lines: Sequence[NumberComparison]) -> str:
    """One line a number."""
    heads = ("table", "model", "cell", "task", "quantity", "paper", "paper_stderr", "measured")
    return csv_text(heads, [(*astuple(line.paper), line.measured) for line in lines])


def _paper_model(base: str, stands_for: str | None) -> str:
    if stands_for is not None:
        if stands_for not in MODELS:
            raise ValueError(unknown("as", stands_for, MODELS))
        return stands_for
    for name, hub_id in MODELS.items():
        if base.casefold() in (hub_id.casefold(), f"ssmoe/{hub_id.split('/')[1]}".casefold(), name.casefold()):
            return name
    raise ValueError(
        f"The paper has no language-model scores of {base}; it has {', '.join(MODELS)}. If the measured model is one of "
        "these under another name, say which with --as."
    )
