"""One loaded model with other spectral routers, each made once and kept on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ssmoe_embed.embedding.module import SSMoE
from ssmoe_embed.evaluation.mteb.models import EvaluatedModel
from ssmoe_embed.spectral.routers import SpectralRouters
from ssmoe_embed.spectral.settings import SpectralSettings

ROUTERS = "routers"
"""Folder, among the results, of the spectral routers that were made for them."""


class SpectralVariants:
    """A model's variants with other spectral routers: views of one loaded base model.

    Results of a variant are kept under the model's own name, told apart by the settings that differ from those of its own
    spectral routers.
    """

    def __init__(self, model: EvaluatedModel, folder: str | Path, *, progress: bool = True) -> None:
        """Start with a model as it is.

        Args:
            model: The model.
            folder: Where made spectral routers are kept.
            progress: Show a progress bar while they are made.
        """
        self.model, self.progress = model, progress
        self.folder = Path(folder) / model.name.replace("/", "__") / model.revision
        self._module: SSMoE = model.model[0]

    def select(self, spectral: Mapping[str, Any]) -> EvaluatedModel:
        """A variant.

        Args:
            spectral: Fields of `SpectralSettings`; the others are those of the model's own spectral routers.

        Raises:
            ValueError: A value is not allowed, or routers on disk are broken or another model's.
        """
        routers = self._module.routers
        own = routers.settings if routers else None
        wanted = replace(own or SpectralSettings(), **spectral)
        before = own.as_dict() if own else {}
        deviations = {name: value for name, value in wanted.as_dict().items() if value != before.get(name)}
        if not spectral or not deviations:
            return self.model
        view = self.model.model.using(routers=self._made(wanted, deviations))
        return replace(self.model, model=view, loading=self.model.loading | deviations)

    def _made(self, settings: SpectralSettings, deviations: Mapping[str, Any]) -> SpectralRouters:
        """Spectral routers of these settings, from disk or made now."""
        path = self.folder / f"{','.join(f'{name}={value}' for name, value in deviations.items())}.safetensors"
        if not path.is_file():
            source = self._module.source
            made = SpectralRouters.from_checkpoint(
                source.name_or_path,
                **settings.as_dict(),
                progress=self.progress,
                **source.hub.keywords,
            )
            made.save(path)
        routers = SpectralRouters.load(path)
        routers.check(self._module.model)
        return routers
