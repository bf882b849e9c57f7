"""How a grid is measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssmoe_embed.language_model.routings import RoutingSettings
from ssmoe_embed.language_model.texts import text_digest


@dataclass(frozen=True)
class Options:
    """How a grid is measured.

    Attributes:
        keep: Fraction of the experts that stays in the cells that drop some.
        num_fewshot: Examples in each prompt; None for the task's own number.
        limit: Only the first examples of each task; None for all.
        settings: What the routings leave open.
        calibration: Text file on which experts are scored; by default the sample in the package.
        seed: Of random dropping.
        batch_size: Requests a forward pass.
        overlap_prompts: Prompts of each task on which the overlap of routings is measured; 0 for none.
        text: Text file whose perplexity is measured too, with the windows that `perplexity` has by default.
        dtype: Dtype of the weights; by default the checkpoint's own.
        loading: For `load`: `device_map`, `revision`, …
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
