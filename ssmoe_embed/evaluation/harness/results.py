"""Scores of a grid on disk: one JSON file for a cell and task, and one line an example beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from scipy.stats import binomtest

from ssmoe_embed.common.files import atomic_file

SETTINGS = "lm_eval.json"
_CELLS = "cells"
_TEXTS = "perplexity"


@dataclass(frozen=True)
class TaskResult:
    """What one cell scored on one task.

    Attributes:
        cell: The cell's name.
        task: The harness' name of the task.
        metric: The harness' key of the score.
        score: 0 to 1.
        stderr: Its standard error as the harness gives it; None if it gives none.
        examples: Test examples.
        metrics: Everything that the harness scored.
        weight_bytes: Memory of the cell's weights.
        overlap: Experts in common with the model's own routing, see `Overlap`; None for the own routing, and where the
            number of experts differs from token to token.
        version: Of the harness.
        data: `local-` and a hash where the task's data came from a folder, else empty.
    """

    cell: str
    task: str
    metric: str
    score: float
    stderr: float | None
    examples: int
    metrics: dict[str, Any]
    weight_bytes: int
    overlap: dict[str, Any] | None
    version: str
    data: str = ""


@dataclass(frozen=True)
class TextResult:
    """How well one cell predicts a text, see `Perplexity`.

    Attributes:
        cell: The cell's name.
        text: Name of the text file.
        digest: Of its content.
    """

    cell: str
    text: str
    digest: str
    value: float
    nll: float
    stderr: float
    tokens: int
    window: int
    stride: int


@dataclass(frozen=True)
class GridFolder:
    """The folder of a grid's results."""

    path: Path

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Note what the folder's results were measured with; results of other settings must not mix with them.

        Raises:
            ValueError: The folder's results have other settings.
        """
        file = self.path / SETTINGS
        if all(path == file for path in self.path.glob("*")):
            _write(file, settings)  # nothing was measured yet
            return
        if not file.is_file():
            raise ValueError(
                f"{self.path} is not empty and holds no results of `ssmoe lm-eval`; choose another --output."
            )
        found, wanted = self.settings(), json.loads(json.dumps(settings))
        differing = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        if differing:
            said = ", ".join(f"{name} {found.get(name)!r} instead of {wanted.get(name)!r}" for name in differing)
            raise ValueError(f"{self.path} holds results measured with {said}; choose another --output.")

    def settings(self) -> dict[str, Any]:
        """What the results were measured with.

        Raises:
            FileNotFoundError: It is no such folder.
        """
        file = self.path / SETTINGS
        if not file.is_file():
            raise FileNotFoundError(f"{self.path} holds no results of `ssmoe lm-eval`: there is no {SETTINGS} in it.")
        loaded: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return loaded

    def check_data(self, revisions: Mapping[str, str]) -> None:
        """Make sure that results of these tasks were measured on the same data.

        Raises:
            ValueError: Some were measured on others.
        """
        for result in self.results():
            wanted = revisions.get(result.task, result.data)
            if result.data != wanted:
                raise ValueError(
                    f"{self.path} holds a result of {result.task} on {result.data or 'the hub'}'s data, and now they are "
                    f"{wanted or 'the hub'}'s; choose another --output."
                )

    def has(self, cell: str, task: str) -> bool:
        """Whether that cell's score on that task is there."""
        return self._file(cell, task).is_file()

    def write(self, result: TaskResult, samples: Sequence[Mapping[str, Any]]) -> None:
        """Keep a score and its examples, which come first, so that a score is never without them."""
        lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
        with atomic_file(self._samples(result.cell, result.task)) as file:
            file.write(lines.encode())
        _write(self._file(result.cell, result.task), asdict(result))

    def results(self) -> list[TaskResult]:
        """Every score."""
        files = sorted((self.path / _CELLS).glob("*/*.json"))
        return [TaskResult(**json.loads(file.read_text(encoding="utf-8"))) for file in files]

    def perplexities(self) -> list[TextResult]:
        """Every perplexity."""
        files = sorted((self.path / _TEXTS).glob("*/*.json"))
        return [TextResult(**json.loads(file.read_text(encoding="utf-8"))) for file in files]

    def has_perplexity(self, cell: str, digest: str) -> bool:
        """Whether that cell's perplexity of that text is there."""
        return (self.path / _TEXTS / _folder(cell) / f"{digest}.json").is_file()

    def write_perplexity(self, result: TextResult) -> None:
        """Keep a perplexity."""
        _write(self.path / _TEXTS / _folder(result.cell) / f"{result.digest}.json", asdict(result))

    def correct(self, cell: str, task: str) -> dict[str, float]:
        """What each example scored, by a key that is the same in every cell."""
        file = self._samples(cell, task)
        if not file.is_file():
            raise FileNotFoundError(f"There are no examples at {file}; run `ssmoe lm-eval` again.")
        with file.open(encoding="utf-8") as lines:  # a prompt may hold Unicode's other ends of lines
            examples = [json.loads(line) for line in lines]
        return {f"{one['task']}:{one['doc_id']}:{one['doc_hash']}": one["score"] for one in examples}

    def _file(self, cell: str, task: str) -> Path:
        return self.path / _CELLS / _folder(cell) / f"{task}.json"

    def _samples(self, cell: str, task: str) -> Path:
        return self.path / _CELLS / _folder(cell) / f"{task}.examples.jsonl"


def _folder(cell: str) -> str:
    """A cell's name as that of a folder, on any system."""
    return quote(cell, safe="+=,")


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_file(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


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
