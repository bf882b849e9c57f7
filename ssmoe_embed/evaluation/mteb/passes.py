"""One forward pass, read for several methods at once.

`router`, `smoe`, `moee` and `ev` differ only in what they take from the same forward pass. So all their features of a text
are read when the first of them asks for it, and kept for the others.
"""

from __future__ import annotations

import hashlib
import itertools
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from tqdm.auto import tqdm

from ssmoe_embed.embedding.module import SSMoE
from ssmoe_embed.embedding.settings import Calibration, EmbeddingSettings

GIB = 2**30
_CHUNK_BYTES = 2**24
"""Rows are kept in pieces of about this size, so that a small task takes little."""


class FeatureStore:
    """Rows of features by key: in memory up to a limit, then in a scratch file up to another, then not at all."""

    def __init__(
        self, width: int, *, memory: int = 2 * GIB, scratch: int = 16 * GIB, folder: str | Path | None = None
    ) -> None:
        """Make an empty store.

        Args:
            width: Numbers a row, float32.
            memory: Bytes of rows to keep in memory.
            scratch: Bytes of rows to keep on disk beyond that.
            folder: Where the scratch file is; by default the system's folder for temporary files.
        """
        self._width = width
        self._rows_a_chunk = max(1, _CHUNK_BYTES // (4 * width))
        size = 4 * width * self._rows_a_chunk
        self._in_memory = memory // size
        self._limit = (self._in_memory + scratch // size) * self._rows_a_chunk
        self._folder = folder
        self._file: Any = None
        self._chunks: list[NDArray[np.float32]] = []
        self._places: dict[bytes, int] = {}

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    @property
    def is_full(self) -> bool:
        """Whether no row more is kept."""
        return len(self._places) >= self._limit

    def put(self, keys: Sequence[bytes], rows: NDArray[np.float32]) -> None:
        """Keep rows `[n,width]`, or as many of them as fit."""
        for key, row in zip(keys, rows, strict=True):
            if key in self._places or self.is_full:
                continue
            chunk, place = divmod(len(self._places), self._rows_a_chunk)
            if chunk == len(self._chunks):
                self._chunks.append(self._new_chunk())
            self._chunks[chunk][place] = row
            self._places[key] = len(self._places)

    def get(self, key: bytes) -> NDArray[np.float32] | None:
        """A row `[width]`; None if it is not kept."""
        if key not in self._places:
            return None
        chunk, place = divmod(self._places[key], self._rows_a_chunk)
        row: NDArray[np.float32] = self._chunks[chunk][place]
        return row

    def _new_chunk(self) -> NDArray[np.float32]:
        shape, size = (self._rows_a_chunk, self._width), 4 * self._rows_a_chunk * self._width
        on_disk = len(self._chunks) - self._in_memory
        if on_disk < 0:
            return np.empty(shape, dtype=np.float32)
        if self._file is None:  # it has no name, so it goes when the process does, however that ends
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (lives as long as the store)
        self._file.truncate((on_disk + 1) * size)
        return np.memmap(self._file, dtype=np.float32, mode="r+", offset=on_disk * size, shape=shape)


class SharedPass:
    """Vectors of several settings of one model that share a forward pass; each text is read once.

    Equal to `model.encode` with the same settings: bit for bit where the texts are all different and none was read before,
    else up to float32 rounding, since a text's last bits depend on which texts share its batch.

    Attributes:
        texts_read: How many texts went through the model.
        batches_read: How many forward passes that took.
    """

    def __init__(self, model: SentenceTransformer, variants: Sequence[EmbeddingSettings], **limits: Any) -> None:
        """Bind a model to settings.

        Args:
            model: A model whose first module is `SSMoE`.
            variants: The settings; they must take the same forward pass.
            **limits: `memory`, `scratch` and `folder` of the `FeatureStore`.

        Raises:
            ValueError: They do not share a forward pass.
        """
        passes = dict.fromkeys(variant.forward for variant in variants)
        if len(passes) != 1:
            raise ValueError(f"These settings do not share a forward pass: {', '.join(map(repr, passes))}.")
        self._model, self._module, [self._forward] = model, module_of(model), passes
        self._views = {variant: self._module.using(variant) for variant in variants}
        blocks = dict.fromkeys(block for variant in variants for block in variant.blocks)
        ends = np.cumsum([0, *(self._module.encoder.block_size(block) for block in blocks)]).tolist()
        self._slices = {block: slice(*place) for block, place in zip(blocks, itertools.pairwise(ends), strict=True)}
        self._store = FeatureStore(ends[-1], **limits)
        self.texts_read = 0
        self.batches_read = 0

    @torch.inference_mode()
    def encode(
        self,
        texts: Sequence[str],
        settings: EmbeddingSettings,
        *,
        prompt: str = "",
        batch_size: int = 32,
        progress: bool = False,
    ) -> NDArray[np.float32]:
        """The vectors `[n,D]` of texts.

        Args:
            texts: `n` texts, at least one.
            settings: One of the variants.
            prompt: A sentence-transformers prompt, put before the template.
            batch_size: Texts per forward pass.
            progress: Show a progress bar.
        """
        self._model.eval()
        contents = [f"{len(prompt)}:{prompt}{text}".encode("utf-8", "surrogatepass") for text in texts]
        keys = [hashlib.blake2b(content, digest_size=16).digest() for content in contents]
        order = _order(texts, settings, batch_size)
        self._read_new([texts[i] for i in order], [keys[i] for i in order], prompt, batch_size, progress)
        vectors: NDArray[np.float32] | None = None
        for batch in _batches(order, batch_size):
            rows = self._rows([texts[i] for i in batch], [keys[i] for i in batch], prompt)
            made = self._vectors(rows, settings)
            if vectors is None:
                vectors = np.empty((len(texts), made.shape[1]), dtype=np.float32)
            vectors[batch] = made
        if vectors is None:
            raise ValueError("There are no texts to encode.")
        return vectors

    def _read_new(
        self, texts: Sequence[str], keys: Sequence[bytes], prompt: str, batch_size: int, progress: bool
    ) -> None:
        """Read and keep the texts that are not known, as far as the store has room."""
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._store}
        waiting = list(new.items())
        for batch in tqdm(
            _batches(range(len(waiting)), batch_size),
            desc="Reading",
            unit="batch",
            leave=False,
            disable=not (progress and waiting),
        ):
            if self._store.is_full:
                return
            rows = self._read([waiting[i][1] for i in batch], prompt)
            self._store.put([waiting[i][0] for i in batch], rows)

    def _rows(self, texts: Sequence[str], keys: Sequence[bytes], prompt: str) -> NDArray[np.float32]:
        """The features of one batch `[b,F]`: kept ones, and the others read again."""
        known = [self._store.get(key) for key in keys]
        missing = [i for i, row in enumerate(known) if row is None]
        again = iter(self._read([texts[i] for i in missing], prompt)) if missing else iter(())
        return np.stack([next(again) if row is None else row for row in known])

    def _read(self, texts: Sequence[str], prompt: str) -> NDArray[np.float32]:
        """One forward pass: every block that a variant needs, side by side, `[b,F]`."""
        encoder = self._module.encoder
        tokens = encoder.tokenize(texts, self._forward, prompt)
        reading = encoder.read({name: value.to(self._model.device) for name, value in tokens.items()}, self._forward)
        self.texts_read += len(texts)
        self.batches_read += 1
        parts = [encoder.features(reading, block).cpu() for block in self._slices]
        joined: NDArray[np.float32] = torch.cat(parts, dim=1).numpy()
        return joined

    def _vectors(self, rows: NDArray[np.float32], settings: EmbeddingSettings) -> NDArray[np.float32]:
        """Features `[b,F]` → vectors `[b,D]`."""
        features = torch.from_numpy(rows).to(self._model.device)
        blocks = {block: features[:, self._slices[block]].contiguous() for block in settings.blocks}
        output = {"sentence_embedding": self._views[settings].vectors(blocks)}
        for module in list(self._model)[1:]:
            output = module(output)
        vectors: NDArray[np.float32] = output["sentence_embedding"][:, : self._model.truncate_dim].float().cpu().numpy()
        return vectors


def module_of(model: SentenceTransformer) -> SSMoE:
    """The model's first module, which does all of its work.

    Raises:
        ValueError: It is none of this package's.
    """
    module = model[0]
    if not isinstance(module, SSMoE):
        raise ValueError(
            f"This is not a model of this package: its first module is {type(module).__name__}. Evaluate it with mteb's own "
            "command, or give evaluate(…, baselines=[…]) an mteb encoder of it."
        )
    return module


def _order(texts: Sequence[str], settings: EmbeddingSettings, batch_size: int) -> list[int]:
    """The order in which `EmbeddingModel.encode` reads texts: longest first, or so within batches of texts as they come."""
    lengths = np.array([-len(text) for text in texts])
    if settings.calibration is not Calibration.BATCH:
        return [int(i) for i in np.argsort(lengths)]
    starts = range(0, len(texts), batch_size)
    return [start + int(i) for start in starts for i in np.argsort(lengths[start : start + batch_size])]


def _batches(order: Iterable[int], size: int) -> list[list[int]]:
    indices = [int(i) for i in order]
    return [indices[start : start + size] for start in range(0, len(indices), size)]
