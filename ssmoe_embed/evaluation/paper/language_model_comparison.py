"""A grid's results compared with the paper's numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ssmoe_embed.common.choices import unknown
from ssmoe_embed.common.tables import Report, Table, csv_text
from ssmoe_embed.evaluation.harness.flips import Flips, folder_flips
from ssmoe_embed.evaluation.harness.results import GridFolder, TaskResult
from ssmoe_embed.evaluation.paper.language_models import MODELS, NOTES, SHOTS, PublishedNumber, Quantity, published


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
