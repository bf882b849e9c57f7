"""What a comparison with the paper consists of: setups, and a row for each task, category and the whole."""

from __future__ import annotations

from dataclasses import dataclass

from ssmoe_embed.embedding.methods import Method
from ssmoe_embed.evaluation.paper.embeddings import Condition, PaperModel
from ssmoe_embed.evaluation.tasks.corruption import CLEAN


@dataclass(frozen=True, order=True)
class Setup:
    """How a model was run, all but the method.

    Attributes:
        corruption: `clean`, or the corruption's name.
        prompt: The template.
        settings: What else differs from the model's own settings, as `alpha=0.9, mix=logits`.
    """

    corruption: str
    prompt: str
    settings: str = ""

    @property
    def condition(self) -> Condition:
        """What the paper calls it."""
        return Condition.CLEAN if self.corruption == CLEAN else Condition.CORRUPT


@dataclass(frozen=True)
class Row:
    """One line of the comparison; scores in points of 100.

    Attributes:
        setup: How the model was run.
        method: The representation.
        category: The kind of task, or `OVERALL`.
        task: mteb's name of the dataset; None for a mean.
        measured: Our score; None where nothing was measured.
        published: The paper's; None where it has none for exactly this.
        covered: How many tasks were measured.
        total: How many tasks the paper has there.
    """

    setup: Setup
    method: Method
    category: str
    task: str | None
    measured: float | None
    published: float | None
    covered: int
    total: int

    @property
    def difference(self) -> float | None:
        """Measured less published, if there are both."""
        return None if self.measured is None or self.published is None else self.measured - self.published


@dataclass(frozen=True)
class Comparison:
    """One measured model beside the paper's.

    Attributes:
        model: The measured model.
        revision: Its revision.
        paper: Which of the paper's models it is compared with.
        rows: The lines: for each setup and method the tasks, the categories' means and the overall one.
        notes: What a reader should know.
    """

    model: str
    revision: str
    paper: PaperModel
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def setups(self) -> tuple[Setup, ...]:
        """The setups in order, each once."""
        return tuple(dict.fromkeys(row.setup for row in self.rows))

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods in order, each once."""
        return tuple(dict.fromkeys(row.method for row in self.rows))
