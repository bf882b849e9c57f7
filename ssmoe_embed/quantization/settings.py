"""How a base model's weights are kept in 4 bits, and what users' keywords ask for."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import BitsAndBytesConfig

from ssmoe_embed.common.choices import Choice


class Quantization(Choice):
    """Named settings for keeping a base model's weights in 4 bits."""

    NF4 = "nf4"
    """NF4 with one float32 scale for each 64 weights (4.5 bits a weight), in attention for each 32 (5 bits), in the
    checkpoint's own dtype."""
    NF4_EXPERTS = "nf4-experts"
    """NF4 for experts and other MLPs, 4.13 bits a weight; attention, a few per cent of most models, stays as it is."""
    PAPER_NF4 = "paper-nf4"
    """What the paper runs: the scales are quantised too (4.13 bits a weight), bfloat16, batches of 128 texts."""


class FourBit(Choice):
    """The sixteen values that a weight can have, times its block's scale."""

    NF4 = "nf4"
    """Quantiles of a normal distribution (arXiv 2305.14314)."""
    FP4 = "fp4"
    """Floating-point numbers of four bits."""


@dataclass(frozen=True)
class QuantizationSettings:
    """How weights are kept in 4 bits.

    Attributes:
        values: The sixteen values.
        double: Quantise the blocks' scales to 8 bits as well.
        attention: Pack attention too, and what stands in its place; experts, shared experts and dense MLPs always are.
        block_size: Weights that share a scale.
        attention_block_size: The same in attention, where a rounding costs most and weights are few.
        dtype: The dtype to load the base model in, in which it also computes; None for the checkpoint's own.
        batch_size: Texts per forward pass where the caller names no number; None for the library's default.
    """

    values: FourBit = FourBit.NF4
    double: bool = False
    attention: bool = True
    block_size: int = 64
    attention_block_size: int = 64
    dtype: str | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", FourBit.parse(self.values, "values"))
        allowed = (32, 64, 128, 256, 512, 1024, 2048, 4096)
        for name in ("block_size", "attention_block_size"):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is not possible; choose one of {', '.join(map(str, allowed))}."
                )

    @classmethod
    def of(cls, name: str) -> QuantizationSettings:
        """The settings of that name.

        Raises:
            ValueError: There are none; the message lists the names.
        """
        return PRESETS[Quantization.parse(name, "quantize")]


PRESETS: dict[Quantization, QuantizationSettings] = {
    Quantization.NF4: QuantizationSettings(attention_block_size=32),
    Quantization.NF4_EXPERTS: QuantizationSettings(double=True, attention=False),
    Quantization.PAPER_NF4: QuantizationSettings(double=True, dtype="bfloat16", batch_size=128),
}


def requested(
    model_kwargs: Mapping[str, Any] | None, recorded: str | None
) -> tuple[QuantizationSettings | None, dict[str, Any]]:
    """What 4-bit settings a model is to be loaded with, and the keywords that are left for transformers.

    A user's own 4-bit `BitsAndBytesConfig` is taken over, values and double quantisation, and applied to the experts too:
    bitsandbytes by itself leaves them, most of the model, as they are without a word, which nobody who asks for 4 bits
    wants. Its 8-bit form and other methods are left to transformers, with a warning that experts stay as they are.

    Args:
        model_kwargs: What the user gave for the base model; `load_in_4bit` and `quantization_config` win over `recorded`.
        recorded: A name of `Quantization` that the model was built with, or None.

    Raises:
        ValueError: The keywords contradict each other, or ask for what is not done here.
    """
    rest = dict(model_kwargs or {})
    wanted = rest.pop("load_in_4bit", None)
    if wanted is not None and not isinstance(wanted, bool):
        raise ValueError(
            f"load_in_4bit={wanted!r} is neither True nor False; True is {str(Quantization.NF4)!r}, and other presets are "
            "chosen when a model is made: SSMoE.from_base(…, quantize=…) or `ssmoe build --quantize`."
        )
    config = rest.get("quantization_config")
    if isinstance(config, dict) and config.get("quant_method") in (None, "bitsandbytes"):
        config = BitsAndBytesConfig.from_dict(config)
    four_bit = isinstance(config, BitsAndBytesConfig) and config.load_in_4bit
    if config is not None and wanted is (not four_bit):
        raise ValueError(f"load_in_4bit={wanted} contradicts the quantization_config; pass one of the two.")
    if isinstance(config, BitsAndBytesConfig) and four_bit:
        del rest["quantization_config"]
        return _taken_over(config, rest), rest
    if config is not None:
        if isinstance(config, BitsAndBytesConfig):
            warnings.warn(
                "8-bit bitsandbytes does not reach the experts, which are most of the model and stay as they are; "
                "model_kwargs={'load_in_4bit': True} quantises them too.",
                stacklevel=2,
            )
        return None, rest
    if wanted is False:
        return None, rest
    if recorded is not None:
        return QuantizationSettings.of(recorded), rest
    return (PRESETS[Quantization.NF4] if wanted else None), rest


def _taken_over(config: BitsAndBytesConfig, rest: dict[str, Any]) -> QuantizationSettings:
    """The settings that a configuration of bitsandbytes stands for; weights are unpacked to the dtype it computes in."""
    if config.llm_int8_skip_modules:
        raise ValueError(
            f"llm_int8_skip_modules={config.llm_int8_skip_modules!r} cannot be chosen here: embeddings, norms, routers and "
            f"gates are never packed, and quantize={str(Quantization.NF4_EXPERTS)!r} leaves attention alone too."
        )
    compute = str(config.bnb_4bit_compute_dtype).removeprefix("torch.")
    return QuantizationSettings(
        values=config.bnb_4bit_quant_type,
        double=config.bnb_4bit_use_double_quant,
        # float32 is what the configuration says when its author said nothing
        dtype=None if compute == "float32" or "dtype" in rest else compute,
    )
