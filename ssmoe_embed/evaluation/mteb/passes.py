"""One forward pass, read for several methods at once.

`router`, `smoe`, `moee` and `ev` differ only in what they take from the same forward pass. So all their features of a text
are read when the first of them asks for it, and kept for the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from tqdm.auto import tqdm

from ssmoe_embed.embedding.blocks import block_names, forward_pass
from ssmoe_embed.embedding.module import SSMoE
from ssmoe_embed.embedding.settings import Calibration, EmbeddingSettings
from ssmoe_embed.evaluation.mteb.feature_store import FeatureStore


def pass_key(settings: EmbeddingSettings) -> str:
    """What names the forward pass of settings: those of one name read the same tokens by the same routing."""
    return f"{forward_pass(settings)}/{settings.max_seq_length}"


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
        keys = sorted({pass_key(variant) for variant in variants})
        if len(keys) != 1:
            raise ValueError(f"These settings do not share a forward pass: {', '.join(keys)}.")
        self._model, self._variants, self._module = model, list(variants), module_of(model)
        self._slices = _slices(self._module, self._variants)
        self._store = FeatureStore(max(one.stop for one in self._slices.values()), **limits)
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
            batch_size: Texts a forward pass.
            progress: Show a progress bar.
        """
        self._model.eval()
        keys = [_key(prompt, text) for text in texts]
        self._read_new(texts, keys, prompt, batch_size, progress)
        # sentence-transformers' order: standardising by batch depends on it
        order = np.argsort([-len(text) for text in texts])
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
        """Read and keep the texts that are not known, longest first, as far as the store has room."""
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._store}
        waiting = list(new.items())
        order = np.argsort([-len(text) for _, text in waiting])
        for batch in tqdm(
            _batches(order, batch_size), desc="Reading", unit="batch", leave=False, disable=not (progress and waiting)
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
        adopt(self._module, self._variants[0])
        features = self._module.preprocess(texts, prompt=prompt)
        device = self._model.device
        reading = self._module.read({name: value.to(device) for name, value in features.items()})
        blocks: dict[str, torch.Tensor] = {}
        for variant in self._variants:
            names = _raw_names(variant)
            if not set(names.values()) <= set(blocks):
                blocks |= {names[name]: block for name, block in self._module.blocks(reading, variant).items()}
        self.texts_read += len(texts)
        self.batches_read += 1
        joined: NDArray[np.float32] = torch.cat([blocks[name].cpu() for name in self._slices], dim=1).numpy()
        return joined

    def _vectors(self, rows: NDArray[np.float32], settings: EmbeddingSettings) -> NDArray[np.float32]:
        """Features `[b,F]` → vectors `[b,D]`."""
        features = torch.from_numpy(rows).to(self._model.device)
        blocks = {name: features[:, self._slices[raw]].contiguous() for name, raw in _raw_names(settings).items()}
        output = {"sentence_embedding": self._module.vectors(blocks, settings)}
        for module in list(self._model)[1:]:
            output = module(output)
        vectors: NDArray[np.float32] = output["sentence_embedding"][:, : self._model.truncate_dim].float().cpu().numpy()
        return vectors


def _slices(module: SSMoE, variants: Sequence[EmbeddingSettings]) -> dict[str, slice]:
    """Where in a row of features each block is that a variant needs, before calibration."""
    sizes: dict[str, int] = {}
    for variant in variants:
        names = _raw_names(variant)
        sizes |= {names[block]: size for block, size in module.block_sizes(variant).items()}
    ends = np.cumsum(list(sizes.values())).tolist()
    return {name: slice(end - sizes[name], end) for name, end in zip(sizes, ends, strict=True)}


def adopt(module: SSMoE, settings: EmbeddingSettings) -> None:
    """Put settings into effect, unless they are."""
    if module.settings != settings:
        module.configure(**settings.as_dict())


@contextmanager
def adopted(module: SSMoE, settings: EmbeddingSettings) -> Iterator[None]:
    """Settings in effect within a `with` block."""
    before = module.settings
    try:
        adopt(module, settings)
        yield
    finally:
        adopt(module, before)


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


def _raw_names(settings: EmbeddingSettings) -> dict[str, str]:
    """For each block of the settings, a name that is the same for all settings with that block before calibration."""
    return block_names(settings.changed(calibration=Calibration.NONE))


def _key(prompt: str, text: str) -> bytes:
    content = f"{len(prompt)}:{prompt}{text}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(content, digest_size=16).digest()


def _batches(order: Iterable[int], size: int) -> list[list[int]]:
    indices = [int(i) for i in order]
    return [indices[start : start + size] for start in range(0, len(indices), size)]
