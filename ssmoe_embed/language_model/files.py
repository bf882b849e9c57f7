"""A language model with fewer experts on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ssmoe_embed.common.folders import atomic_folder
from ssmoe_embed.language_model.routings import ROUTERS_FILE
from ssmoe_embed.spectral.routers import SpectralRouters

RECORD = "ssmoe_drop.json"


def save_model(
    output: str | Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    routers: SpectralRouters | None,
    record: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> None:
    """Write a model, its tokenizer, its spectral routers and how it was made, atomically.

    Args:
        output: Folder to make.
        model: The model.
        tokenizer: Its tokenizer.
        routers: Its spectral routers, if there are any.
        record: How it was made, as JSON values.
        overwrite: Replace the folder.

    Raises:
        FileExistsError: The folder exists and `overwrite` is false.
    """
    with atomic_folder(output, overwrite=overwrite) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if routers is not None:
            routers.save(folder / ROUTERS_FILE)
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
