"""mteb's result cache with files that are never half-written."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mteb import ResultCache
from mteb.models import ModelMeta
from mteb.results import TaskResult

from ssmoe_embed.common.files import atomic_file

_KEPT = ("model_meta.json", "run_settings.jsonl")


class AtomicResultCache(ResultCache):
    """Writes every file beside its place and renames it, the result itself last."""

    before_saving: Callable[[], None] | None = None
    """Called before a result is written: whatever must be on disk when the result is."""

    def save_to_cache(
        self, task_result: TaskResult, model_name: str | ModelMeta, model_revision: str | None = None, **kwargs: Any
    ) -> None:
        """See `mteb.ResultCache.save_to_cache`."""
        if self.before_saving is not None:
            self.before_saving()
        target = self.get_task_result_path(task_result.task_name, model_name, model_revision)
        with tempfile.TemporaryDirectory() as work:
            scratch = ResultCache(work)
            written = scratch.get_task_result_path(task_result.task_name, model_name, model_revision)
            written.parent.mkdir(parents=True)
            for name in _KEPT:
                if (target.parent / name).is_file():
                    shutil.copyfile(target.parent / name, written.parent / name)
            scratch.save_to_cache(task_result, model_name, model_revision, **kwargs)
            for name in (*_KEPT, target.name):
                if (written.parent / name).is_file():
                    publish(written.parent / name, target.parent / name)


def publish(source: Path, target: Path) -> None:
    """Copy a file to its place, where it appears whole or not at all."""
    with atomic_file(target) as file, source.open("rb") as content:
        shutil.copyfileobj(content, file)
