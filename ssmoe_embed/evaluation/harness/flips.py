"""Answers that turn from right to wrong and back between two models.

Source: SSMoE, table 13, https://arxiv.org/abs/2605.30992; its flip rate is the sum of the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scipy.stats import binomtest

from ssmoe_embed.evaluation.harness.results import GridFolder


@dataclass(frozen=True)
class Flips:
    """How two models' answers to the same examples differ.

    Attributes:
        first: Share that the first model has right.
        second: Share that the second has right.
        correct_to_wrong: Share that only the first has right.
        wrong_to_correct: Share that only the second has right.
        p_value: Two-sided exact McNemar test of the two being equally likely.
        examples: Number of examples.
    """

    first: float
    second: float
    correct_to_wrong: float
    wrong_to_correct: float
    p_value: float
    examples: int

    @property
    def flip_rate(self) -> float:
        """Share of examples that flip either way."""
        return self.correct_to_wrong + self.wrong_to_correct


def answer_flips(first: Mapping[str, float], second: Mapping[str, float]) -> Flips:
    """Compare two models example by example.

    Args:
        first: What each example scored with the first model, 1 for right and 0 for wrong.
        second: With the second.

    Raises:
        ValueError: The examples differ, there are none, or a score is neither 0 nor 1.
    """
    if first.keys() != second.keys() or not first:
        raise ValueError(
            f"Answers are compared example by example, and these are {len(first)} and {len(second)} examples of which "
            f"{len(first.keys() & second.keys())} are the same; evaluate both models on the same ones."
        )
    if {*first.values(), *second.values()} - {0.0, 1.0}:
        raise ValueError("Answers flip where each is right or wrong; this task scores its examples otherwise.")
    count = len(first)
    lost = sum(first[key] > second[key] for key in first)
    won = sum(first[key] < second[key] for key in first)
    right = sum(first.values()) / count, sum(second.values()) / count
    p_value = float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0
    return Flips(*right, lost / count, won / count, p_value, count)


def folder_flips(folder: GridFolder, base: str = "original") -> dict[tuple[str, str], Flips]:
    """Each cell's flips against the base cell, by cell and task; tasks without right and wrong answers are left out."""
    found = {}
    measured = {(result.cell, result.task) for result in folder.results()}
    for cell, task in sorted(measured):
        if cell == base or (base, task) not in measured:
            continue
        scores = folder.correct(base, task), folder.correct(cell, task)
        if not {*scores[0].values(), *scores[1].values()} - {0.0, 1.0}:
            found[cell, task] = answer_flips(*scores)
    return found
