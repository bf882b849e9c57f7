"""The bundled model in NumPy: the same vectors for a few short texts, within a second.

Importing PyTorch, Transformers and Sentence Transformers takes most of the time of a first search. This is the forward pass
of `OlmoeForCausalLM` up to its last hidden state, as the bundled model's own settings read it (method `smoe`, not
calibrated); tests compare it with the libraries'. Rotary positions: https://arxiv.org/abs/2104.09864.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ssmoe_embed.data import tiny_folder

Array = np.ndarray[Any, Any]
_LONGEST = 8_192
"""Characters of a text that are read; the model reads 256 tokens."""
_NO_SETTINGS = {"quantization", "base_license", "base_model_name_or_path", "base_revision", "dtype"}


class BundledEncoder:
    """The part of a `SentenceTransformer` that searching needs, for `ssmoe/tiny` with its own settings."""

    def __init__(self, folder: Path | None = None) -> None:
        """Read the weights and the tokenizer.

        Raises:
            ValueError: It has other settings than this forward pass computes.
        """
        from tokenizers import Tokenizer

        folder = tiny_folder() if folder is None else folder
        self._name = folder.name
        self._settings = json.loads((folder / "ssmoe_config.json").read_text(encoding="utf-8"))
        if [self._settings[name] for name in ("method", "calibration", "hidden_layer")] != ["smoe", "none", -1]:
            raise ValueError(
                f"{folder} has other settings than method 'smoe' without calibration; use ssmoe_embed.load."
            )
        self._config = json.loads((folder / "base" / "config.json").read_text(encoding="utf-8"))
        self._weights = _read(folder / "base" / "model.safetensors")
        self._tokenizer = Tokenizer.from_file(str(folder / "base" / "tokenizer.json"))
        self._tokenizer.encode_special_tokens = True  # their names in a text are text

    @property
    def identity(self) -> dict[str, Any]:
        """What `model_identity` says of the model that `load` gives."""
        settings = {name: value for name, value in self._settings.items() if name not in _NO_SETTINGS}
        return {"name": f"{self._name}/base", "revision": None, "prompts": {}, "settings": settings}

    def get_embedding_dimension(self) -> int:
        """The length of a vector."""
        return int(self._config["hidden_size"])

    def encode_document(self, texts: Sequence[str], **_: Any) -> Array:
        """Vectors `[n,D]` of texts, float32; how to show progress and the like is not asked."""
        rows = [self._ids(text) for text in texts]
        ends = np.cumsum([len(row) for row in rows])
        return self._forward(np.concatenate(rows), np.concatenate([[0], ends]))[ends - 1]

    encode_query = encode_document

    def _ids(self, text: str) -> list[int]:
        """The tokens of a text, at most as many as the model reads, and the end-of-text token, where it is read."""
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")[:_LONGEST]
        before, after = self._settings["prompt"].split("{text}")
        assert (before, after) == ("", "<|endoftext|>")
        found, keep = self._tokenizer.encode(text), int(self._settings["max_seq_length"]) - 1
        if len(found.ids) > keep:
            found = self._tokenizer.encode(text[: found.offsets[keep - 1][1]])
        return [*found.ids[:keep], int(self._config["eos_token_id"])]

    def _forward(self, ids: Array, bounds: Array) -> Array:
        """Last hidden states `[N,H]` of texts one after the other, which begin and end at `bounds`."""
        x = self._weights["model.embed_tokens.weight"][ids]
        for layer in range(self._config["num_hidden_layers"]):
            prefix = f"model.layers.{layer}."
            x = x + self._attention(self._norm(x, f"{prefix}input_layernorm"), f"{prefix}self_attn.", bounds)
            x = x + self._experts(self._norm(x, f"{prefix}post_attention_layernorm"), f"{prefix}mlp.")
        return self._norm(x, "model.norm")

    def _linear(self, x: Array, name: str) -> Array:
        return x @ self._weights[f"{name}.weight"].T

    def _norm(self, x: Array, name: str) -> Array:
        """Root-mean-square norm."""
        scale = np.sqrt((x**2).mean(axis=1, keepdims=True) + np.float32(self._config["rms_norm_eps"]))
        return x / scale * self._weights[f"{name}.weight"]

    def _attention(self, h: Array, prefix: str, bounds: Array) -> Array:
        """Causal attention within each text: `[N,H]` → `[N,H]`."""
        heads = self._config["num_attention_heads"]
        q = self._norm(self._linear(h, f"{prefix}q_proj"), f"{prefix}q_norm")
        k = self._norm(self._linear(h, f"{prefix}k_proj"), f"{prefix}k_norm")
        v = self._linear(h, f"{prefix}v_proj")
        width = h.shape[1] // heads  # d
        q, k, v = (part.reshape(len(h), heads, width) for part in (q, k, v))  # [N,heads,d]
        mixed = np.empty_like(h)
        for start, end in pairwise(bounds):
            mine, theirs = self._rotated(np.stack([q[start:end], k[start:end]]))
            scores = np.einsum("ihd,jhd->hij", mine, theirs, optimize=True)  # [heads,T,T]
            scores /= np.float32(np.sqrt(width))
            scores[:, ~np.tri(end - start, dtype=bool)] = -np.inf
            together = np.einsum("hij,jhd->ihd", _softmax(scores), v[start:end], optimize=True)
            mixed[start:end] = together.reshape(end - start, -1)
        return self._linear(mixed, f"{prefix}o_proj")

    def _rotated(self, x: Array) -> Array:
        """Rotary positions of `[…,T,heads,d]`."""
        length, _, width = x.shape[-3:]
        base = self._config["rope_parameters"]["rope_theta"]
        frequencies = 1.0 / base ** (np.arange(0, width, 2, dtype=np.float32) / width)
        angles = np.tile(np.arange(length, dtype=np.float32)[:, None] * frequencies, 2)[:, None].astype(np.float32)
        first, second = np.split(x, 2, axis=-1)
        return np.asarray(x * np.cos(angles) + np.concatenate([-second, first], axis=-1) * np.sin(angles))

    def _experts(self, h: Array, prefix: str) -> Array:
        """The chosen experts of every token, weighted: `[N,H]` → `[N,H]`."""
        probabilities = _softmax(self._linear(h, f"{prefix}gate"))  # [N,E]
        chosen = np.argsort(-probabilities, axis=1, kind="stable")[:, : self._config["num_experts_per_tok"]]  # [N,k]
        weights = np.zeros_like(probabilities)
        np.put_along_axis(weights, chosen, np.take_along_axis(probabilities, chosen, 1), 1)
        if self._config["norm_topk_prob"]:
            weights /= weights.sum(axis=1, keepdims=True)
        out = np.zeros_like(h)
        for expert in range(weights.shape[1]):
            [tokens] = np.nonzero(weights[:, expert])
            own = f"{prefix}experts.{expert}."
            gate, up = (self._linear(h[tokens], own + name) for name in ("gate_proj", "up_proj"))
            inner = gate / (1 + np.exp(-gate)) * up
            out[tokens] += self._linear(inner, f"{own}down_proj") * weights[tokens, expert, None]
        return out


def _read(path: Path) -> dict[str, Array]:
    """The tensors of a safetensors file as float32; NumPy itself has no bfloat16, which is the upper half of one."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    tensors = {}
    for name, entry in json.loads(content[8 : 8 + size]).items():
        if name != "__metadata__":
            start, end = (8 + size + offset for offset in entry["data_offsets"])
            raw = np.frombuffer(content[start:end], np.dtype("<u2" if entry["dtype"] == "BF16" else "<f4"))
            whole = (raw.astype(np.uint32) << 16).view(np.float32) if entry["dtype"] == "BF16" else raw
            tensors[name] = whole.reshape(entry["shape"])
    return tensors


def _softmax(x: Array) -> Array:
    """Along the last axis."""
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
