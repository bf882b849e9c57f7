"""A grid of language models: the cells that the paper's tables 1, 5 and 12 compare, and how they are measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssmoe_embed.common.choices import unknown
from ssmoe_embed.common.hub import HubOptions
from ssmoe_embed.evaluation.tasks.local_data import LocalData
from ssmoe_embed.language_model.dropped import CALIBRATION_TOKENS
from ssmoe_embed.language_model.dropping import DropBy, Limits
from ssmoe_embed.language_model.loading import load_tokenizer, skeleton
from ssmoe_embed.language_model.perplexity import calibration_ids, predicted_ids, read_text, text_digest
from ssmoe_embed.language_model.routings import Routing, RoutingSettings, parse_routing


@dataclass(frozen=True)
class GridCell:
    """One model of the grid.

    Attributes:
        routing: How its tokens find their experts, see `parse_routing`.
        drop: What decided which experts it lost; None if it has them all.
    """

    routing: str
    drop: DropBy | None = None

    @property
    def name(self) -> str:
        """Its name in files and tables."""
        return str(self.routing) if self.drop is None else f"{self.routing}+{self.drop}-drop"

    @classmethod
    def parse(cls, name: str) -> GridCell:
        """The cell of that name.

        Raises:
            ValueError: It names none.
        """
        if name in NAMED:
            return NAMED[name]
        routing, _, drop = name.rpartition("+")
        if not routing or ":" in drop:  # it has no dropping, or a setting has a +
            return cls(parse_routing(name))
        if not drop.endswith("-drop"):
            raise ValueError(unknown("cell", name, [*NAMED, *(cell.name for cell in GRID)]))
        return cls(parse_routing(routing), DropBy.parse(drop.removesuffix("-drop"), "drop"))


NAMED = {
    "random-drop": GridCell(Routing.ORIGINAL, DropBy.RANDOM),
    "router-drop": GridCell(Routing.ORIGINAL, DropBy.ROUTER),
    "ssmoe-drop": GridCell(Routing.SSMOE, DropBy.SSMOE),
}
"""The paper's three ways to drop; only the third also routes by SSMoE."""

GRID = (
    GridCell(Routing.ORIGINAL),
    GridCell(Routing.SSMOE),
    *NAMED.values(),
    GridCell(Routing.HASH),
    GridCell(Routing.RANDOM),
    GridCell(Routing.AVERAGE_EV),
)
"""All that the paper compares."""


@dataclass(frozen=True)
class GridOptions:
    """How a grid is measured.

    Attributes:
        keep: Fraction of the experts that stays in the cells that drop some.
        num_fewshot: Examples in each prompt; None for the task's own number.
        limit: Only the first examples of each task; None for all.
        settings: What the routings leave open.
        calibration: Text file on which experts are scored; by default the sample in the package.
        seed: Of random dropping.
        batch_size: Batch size, in requests.
        overlap_prompts: Prompts of each task on which the overlap of routings is measured; 0 for none.
        text: Text file whose perplexity is measured too, with the windows that `perplexity` has by default.
        dtype: Dtype of the weights; by default the checkpoint's own.
        loading: For `load`: `device_map`, `revision`, …
        data: Folder that the tasks' data are in; None for the hub.
        progress: Show progress bars.
    """

    keep: float = 0.75
    num_fewshot: int | None = None
    limit: int | None = None
    settings: RoutingSettings = field(default_factory=RoutingSettings)
    calibration: str | Path | None = None
    seed: int = 0
    batch_size: int = 8
    overlap_prompts: int = 16
    text: str | Path | None = None
    dtype: str | None = None
    loading: dict[str, Any] = field(default_factory=dict)
    data: LocalData | None = None
    progress: bool = True

    def record(self, base: str | Path) -> dict[str, Any]:
        """What decides the scores, as JSON values; batches and devices do not."""
        return {
            "base": str(base),
            "revision": self.loading.get("revision"),
            "dtype": self.dtype,
            "keep": self.keep,
            "num_fewshot": self.num_fewshot,
            "limit": self.limit,
            "settings": self.settings.as_dict(),
            "calibration": None if self.calibration is None else text_digest(self.calibration),
            "seed": self.seed,
        }


def check_grid(base: str | Path, cells: Sequence[GridCell], options: GridOptions) -> None:
    """Refuse a grid of which a later cell could not be measured; no weights are read for it.

    Args:
        base: Folder, hub id or recipe name of the language model.
        cells: The grid.
        options: How it is to be measured.

    Raises:
        FileNotFoundError: A text file is missing.
        UnsupportedModelError: The model is dense, or cannot lose experts.
        ValueError: `keep` leaves too few experts, or a text is too short.
    """
    hub = HubOptions.among(options.loading)
    model = skeleton(base, hub)
    if any(cell.drop is not None for cell in cells):
        Limits.of(model).kept(options.keep)
    scored = any(cell.drop not in (None, DropBy.RANDOM) for cell in cells)
    if options.text is None and (options.calibration is None or not scored):
        return
    tokenizer = load_tokenizer(base, hub)
    if scored and options.calibration is not None:
        calibration_ids(tokenizer, read_text(options.calibration), CALIBRATION_TOKENS)
    if options.text is not None:
        predicted_ids(tokenizer, read_text(options.text))
