"""The paper's tables of language models as data, in the names of this package and of the harness.

Source: SSMoE, tables 1, 5, 8 and 12 to 16, https://arxiv.org/abs/2605.30992.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from ssmoe_embed.common.choices import Choice, unknown
from ssmoe_embed.common.tables import Report, Table, csv_text
from ssmoe_embed.data import paper_table
from ssmoe_embed.evaluation.harness.grid import MMLU, NAMED, PAPER_TASKS, GridCell
from ssmoe_embed.evaluation.harness.results import Flips, GridFolder, TaskResult, folder_flips
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


_SCORES = {
    "original": _ORIGINAL,
    "ssmoe": _DROPPED,
    "ssmoe_average_ev": GridCell(Routing.AVERAGE_EV).name,
    "hash": GridCell(Routing.HASH).name,
    "random": GridCell(Routing.RANDOM).name,
    "ssmoe_full": _FULL,
    "ssmoe_75": _DROPPED,
}
_FLIPS = {
    "flip_rate": Quantity.FLIP_RATE,
    "correct_to_wrong": Quantity.CORRECT_TO_WRONG,
    "wrong_to_correct": Quantity.WRONG_TO_CORRECT,
}


@cache
def published() -> tuple[PublishedNumber, ...]:
    """Every number of these tables but their means."""
    scores = {column: (cell, Quantity.SCORE) for column, cell in _SCORES.items()}
    tuned = {"smoe": (_ORIGINAL, Quantity.SCORE), "ssmoe": (_FULL, Quantity.SCORE)}
    flips = {column: (_DROPPED, quantity) for column, quantity in _FLIPS.items()}
    return (
        *_table_1(),
        *_wide(5, "table5_router_free.csv", scores),
        *_wide(8, "table8_sft_olmoe.csv", tuned, "OLMoE-7B (fine-tuned)"),
        *_wide(12, "table12_training_free_routing.csv", scores),
        *_wide(13, "table13_answer_flips.csv", flips),
        *_table_14(),
        *_wide(15, "table15_overlap.csv", {"mean_overlap": (_FULL, Quantity.OVERLAP)}),
        *_wide(16, "table16_gsm8k_capacity.csv", scores),
    )


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


def _wide(
    table: int, name: str, columns: Mapping[str, tuple[str, Quantity]], model: str = "GPT-OSS-20B"
) -> Iterator[PublishedNumber]:
    """A table with a column for each cell or quantity."""
    for row in paper_table(name):
        if row["task"] not in _MEANS:
            for column, (cell, quantity) in columns.items():
                if column in row:
                    yield PublishedNumber(table, model, cell, _TASKS[row["task"]], quantity, float(row[column]))


def _table_14() -> Iterator[PublishedNumber]:
    cells = {"original": _ORIGINAL, "router": NAMED["router-drop"].name, "ssmoe": _DROPPED}
    for row in paper_table("table14_perplexity_wikitext2.csv"):
        yield PublishedNumber(14, row["model"], cells[row["method"]], None, Quantity.PERPLEXITY, float(row["ppl"]))


@dataclass(frozen=True)
class NumberComparison:
    """One number of the paper and ours.

    Attributes:
        paper: The paper's.
        measured: Ours, in the same unit; None if it was not measured.
    """

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
    results = {(one.cell, one.task): one for one in folder.results()}
    flips = folder_flips(folder)
    values = {one.cell: one.value for one in folder.perplexities()}
    lines = []
    for one in published():
        if one.model == model:
            found = values.get(one.cell) if one.quantity is Quantity.PERPLEXITY else _measured(one, results, flips)
            lines.append(NumberComparison(one, found))
    return lines


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
    rows = [
        (one.table, one.model, one.cell, one.task, one.quantity, one.value, one.stderr, line.measured)
        for line in lines
        for one in [line.paper]
    ]
    return csv_text(heads, rows)


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


def _measured(
    one: PublishedNumber, results: dict[tuple[str, str], TaskResult], flips: dict[tuple[str, str], Flips]
) -> float | None:
    """Our number for one of the paper's, if it was measured."""
    if one.quantity is Quantity.MEMORY:
        sizes = {result.weight_bytes for (cell, _), result in results.items() if cell == one.cell}
        return sizes.pop() / 1e9 if len(sizes) == 1 else None
    key = (one.cell, str(one.task))
    if key not in results:
        return None
    if one.quantity is Quantity.SCORE:
        return 100 * results[key].score
    if one.quantity is Quantity.OVERLAP:
        overlap = results[key].overlap
        return None if overlap is None else float(overlap["share"])
    if key not in flips:
        return None
    shares = {
        Quantity.FLIP_RATE: flips[key].flip_rate,
        Quantity.CORRECT_TO_WRONG: flips[key].correct_to_wrong,
        Quantity.WRONG_TO_CORRECT: flips[key].wrong_to_correct,
    }
    return 100 * shares[one.quantity]
