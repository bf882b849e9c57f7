"""What can be known to fail before the first cell of a grid is measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ssmoe_embed.common.hub import HubOptions
from ssmoe_embed.evaluation.harness.cells import Cell
from ssmoe_embed.evaluation.harness.options import Options
from ssmoe_embed.language_model.dropping import DropBy, Limits
from ssmoe_embed.language_model.loading import load_tokenizer, skeleton
from ssmoe_embed.language_model.perplexity import predicted_ids
from ssmoe_embed.language_model.texts import calibration_ids, read_text


def check_grid(base: str | Path, cells: Sequence[Cell], options: Options) -> None:
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
        calibration_ids(tokenizer, read_text(options.calibration))
    if options.text is not None:
        predicted_ids(tokenizer, read_text(options.text))
