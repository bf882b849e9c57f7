"""MoE families of transformers that have no adapter: why, and the way out.

A test walks all classes of transformers that record router logits, so a family that is neither covered nor listed here does
not go unnoticed.
"""

from __future__ import annotations

CHECKED_WITH = "5.24.0"
"""The version of transformers whose families were gone through; a newer one may have others."""

_CHOOSE = "Choose a model of a supported family"
_REASONS = {
    "axk1 axk2 beam flint hy_v4": (
        "its routing can be expressed by an adapter, but nobody has written and checked one. Put a class into "
        "ssmoe_embed/families/ beside the nearest family's, and a description into tests/support/layouts/ (see "
        "ARCHITECTURE.md)"
    ),
    "aria aria_text deepseek_ocr2 deepseek_ocr2_text dots3_note dots3_note_text glm5_next glm5_next_text hy_v4_vl "
    "hy_v4_vl_text mistral_large4 mistral_large4_text unlimited_ocr unlimited_ocr_text": (
        "it reads images, sound or video beside text, and nobody has written and checked an adapter for its text part. "
        "Choose a language model of the same maker, or write the adapter (Llama4 in fused.py shows how the text part is "
        "found)"
    ),
    "nllb-moe switch_transformers": (
        "it is an encoder-decoder, so no token at the end of a text has seen all of it, which the method relies on. Choose "
        "a decoder-only model"
    ),
    "dbrx": (
        "its router returns logits only, the choice of experts is made outside it, and its layers are not where the other "
        f"families keep them. {_CHOOSE}"
    ),
    "diffusion_gemma diffusion_gemma_text": f"it fills in text in any order, not from left to right. {_CHOOSE}",
    "doge": (
        f"each expert is a single vector found by product keys, without weight matrices to take eigenvectors of. {_CHOOSE}"
    ),
    "ernie4_5_vl_moe ernie4_5_vl_moe_text": (
        f"it has separate experts and routers for text and images. {_CHOOSE}, such as ernie4_5_moe"
    ),
    "inkling inkling_mm_model inkling_text inkling2 inkling2_text": (
        f"its router also weighs the shared experts, against each token's own. {_CHOOSE}"
    ),
    "inkling2_loop inkling2_loop_text": (
        f"it runs its middle layers several times for each token, so a layer has no single routing to read. {_CHOOSE}"
    ),
    "jetmoe": (
        "its attention layers choose among experts too, and its gates return a plan of computation in place of weights. "
        f"{_CHOOSE}"
    ),
    "kolibri1": (
        f"on a GPU it computes its logits by another function than the linear one that re-routing replaces. {_CHOOSE}"
    ),
    "laguna": (
        "its logits may be capped after the router's weight is applied, so logits that replace them would be distorted. "
        f"{_CHOOSE}"
    ),
    "longcat_flash": (
        "some of its experts pass their input on and have no weights, so they have no eigenvectors. "
        f"{_CHOOSE}, such as deepseek_v2"
    ),
    "muse_spark muse_spark_text": (
        "its logits are scaled after the router's weight is applied, so logits that replace them would be distorted. "
        f"{_CHOOSE}"
    ),
    "nemo_speechlm": (
        f"it transcribes speech, and its language model is kept in a layout of NeMo's own. {_CHOOSE}, such as nemotron_h"
    ),
    "nemotron_h_omni": (
        "transformers has no class for it without a head (AutoModel does not know it), so its text part cannot be loaded "
        f"alone. {_CHOOSE}, such as nemotron_h"
    ),
    "openai_privacy_filter": (
        "it is a tagger that looks in both directions, so no token at the end of a text stands for all of it. "
        f"{_CHOOSE}, such as gpt_oss"
    ),
    "qwen3_omni_moe qwen3_omni_moe_talker_text qwen3_omni_moe_text qwen3_omni_moe_thinker": (
        "transformers has no class for its text part (AutoModel does not know it), so that cannot be loaded alone. "
        f"{_CHOOSE}, such as qwen3_moe or qwen3_vl_moe"
    ),
    "zaya": (
        "its router is a network on a projection of the hidden state, carried from layer to layer, and has no row of hidden "
        f"size for each expert. {_CHOOSE}"
    ),
}

REFUSED: dict[str, str] = {name: reason for names, reason in _REASONS.items() for name in names.split()}
"""The reason for each family, by `config.model_type`, as the rest of a sentence."""
