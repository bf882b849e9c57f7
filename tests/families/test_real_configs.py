"""Published models' configurations, by their own field names: each loads through its adapter, as it is and made smaller."""

import json
from pathlib import Path

import pytest
import torch
from layouts import LAYOUTS, TWINS
from layouts.base import randomised
from tiny import TOP_C, make_tokenizer
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)

from ssmoe_embed import SSMoE
from ssmoe_embed.families import families, family_of, load_config

FOLDER = Path(__file__).parent / "real_configs"
NEMOTRON = [at for at, kind in enumerate("MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME") if kind == "E"]
PUBLISHED = {
    "DeepSeek-V2-Lite": (15.7, range(1, 27), 64),
    "DeepSeek-V3": (671, range(3, 61), 256),
    "ERNIE-4.5-21B-A3B-Base-PT": (21.8, range(1, 28), 64),
    "FlexOlmo-7x7B-1T": (33.3, range(32), 7),
    "GLM-4.5-Air": (106.9, range(1, 46), 128),
    "Hunyuan-A13B-Instruct": (80.4, range(32), 64),
    "Jamba-v0.1": (51.6, range(1, 32, 2), 16),
    "LFM2-8B-A1B": (8.34, range(2, 24), 32),
    "Llama-4-Scout-17B-16E": (107.8, range(48), 16),
    "MiniMax-M2": (228.7, range(62), 256),
    "Mixtral-8x7B-v0.1": (46.7, range(32), 8),
    "NVIDIA-Nemotron-3-Nano-30B-A3B": (31.6, NEMOTRON, 128),
    "OLMoE-1B-7B-0924": (6.92, range(16), 64),
    "Phi-3.5-MoE-instruct": (41.9, range(32), 16),
    "Phi-tiny-MoE-instruct": (3.76, range(32), 16),
    "Qwen1.5-MoE-A2.7B": (14.3, range(24), 60),
    "Qwen3-30B-A3B": (30.5, range(48), 128),
    "Qwen3-Next-80B-A3B-Instruct": (79.7, range(48), 512),
    "Qwen3.5-35B-A3B": (34.7, range(40), 256),
    "deepseek-moe-16b-base": (16.4, range(1, 28), 64),
    "dots.llm1.base": (142.8, range(1, 62), 128),
    "gemma-4-26B-A4B": (25.4, range(30), 128),
    "gpt-oss-120b": (116.8, range(36), 128),
    "gpt-oss-20b": (20.9, range(24), 32),
    "granite-3.1-3b-a800m-base": (3.3, range(32), 40),
    "granite-4.0-h-tiny": (6.94, range(40), 64),
    "moe-7b-1b-active-shared-experts": (None, range(40), 62),
    # --- those of DEFAULTS
    "DeepSeek-V3.2": (671.9, range(3, 61), 256),
    "GLM-4.7-Flash": (29.9, range(1, 47), 64),
    "GLM-5": (744, range(3, 78), 256),
    "Hy3-preview": (295, range(1, 80), 192),
    "Kimi-Linear-48B-A3B": (49.1, range(1, 27), 256),
    "Lara-4-Mini-Base": (7.28, range(34), 128),
    "Ling-3.0-Flash": (124.4, range(2, 42), 512),
    "Mellum2-12B-A2.5B-Base": (12.15, range(28), 64),
    "MiMo-V2-Flash": (309, range(1, 48), 256),
    "Solar-Open-100B": (102.6, range(48), 128),
    "afmoe": (None, range(1, 32), 64),
    "cohere2_moe": (None, range(40), 8),
    "minimax": (None, range(32), 8),
    "deepseek_v4": (None, range(3, 43), 256),
    "exaone_moe": (None, range(1, 32), 64),
    "glm4v_moe": (None, range(1, 46), 128),
    "minimax_m3_vl": (None, range(60), 128),
    "mistral4": (None, range(36), 128),
    "qwen3_vl_moe": (None, range(24), 60),
    "step3p7": (None, range(3, 45), 288),
    "sarvam-105b": (106, range(1, 32), 128),
    "sarvam-30b": (32.2, range(1, 19), 128),
}
"""Billions of parameters of the language model without layers of multi-token prediction (None: known too roughly; Gemma's
with its vision model of about 0.15), the sparse layers, and experts in each of them."""
DEFAULTS = {
    "DeepSeek-V3.2": "deepseek_v32",
    "GLM-4.7-Flash": "glm4_moe_lite",
    "GLM-5": "glm_moe_dsa",
    "Hy3-preview": "hy_v3",
    "Kimi-Linear-48B-A3B": "kimi_linear",
    "Lara-4-Mini-Base": "lara_mini",
    "Ling-3.0-Flash": "bailing_hybrid",
    "Mellum2-12B-A2.5B-Base": "mellum",
    "MiMo-V2-Flash": "mimo_v2_flash",
    "Solar-Open-100B": "solar_open",
    "afmoe": "afmoe",
    "cohere2_moe": "cohere2_moe",
    "deepseek_v4": "deepseek_v4",
    "exaone_moe": "exaone_moe",
    "glm4v_moe": "glm4v_moe",
    "minimax_m3_vl": "minimax_m3_vl",
    "mistral4": "mistral4",
    "qwen3_vl_moe": "qwen3_vl_moe",
    "step3p7": "step3p7",
    "minimax": "minimax",
    "sarvam-105b": "sarvam_mla",
    "sarvam-30b": "sarvam_moe",
}
"""Models whose configuration is transformers' default for their `model_type`, which its documentation says and their size
confirms. A name that is a `model_type` is of a family whose published configurations are others and not kept here."""
UNPUBLISHED = {"granitemoe_swa", "qwen4_exp", "qwen4_exp_text"}
"""Families that transformers has classes for and nobody a model of."""

LAYERS = 6
"""Of a reduced model: enough for each kind of layer that it has."""
EXPERTS = 16
SMALLER = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 24,
    "intermediate_size_mlp": 24,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "shared_intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "attention_head_dim": 32,
    "rotary_dim": 16,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_dt_rank": 4,
    "mamba_n_heads": 4,
    "global_head_dim": 32,
    "num_global_key_value_heads": 2,
    "top_k_experts": 4,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "ssm_state_size": 16,
    "n_groups": 2,
    "moe_shared_expert_intermediate_size": 24,
    "num_experts": EXPERTS,
    "num_local_experts": EXPERTS,
    "n_routed_experts": EXPERTS,
    "moe_num_experts": EXPERTS,
    "num_experts_per_tok": 4,
    "num_experts_per_token": 4,
    "index_topk": 64,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "sliding_window": 64,
    "moe_k": 4,
    "moe_topk": 4,
    "moe_layer_end_index": LAYERS - 1,
    "num_hidden_layers": LAYERS,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "mrope_section": [2, 1, 1],
}
"""Numbers that are made smaller where they are larger; lists with one entry a layer are cut, and their entries too."""


FITTING = {
    "glm4v_moe_text": {"rope_parameters": LAYOUTS["glm4v_moe"].config["rope_parameters"]},
    "mistral4": {"head_dim": 16},
    "step3p5": {"sliding_window": 64},
}
"""What goes with the smaller numbers, by the type of the text part, where its default does not."""


def smaller(name, value, limit, depth):
    """One field of a configuration with smaller numbers."""
    if name in ("long_factor", "short_factor"):
        return value[:4]  # one for each pair of rotated dimensions
    if isinstance(value, str) and len(value) == depth:
        return value[:LAYERS]  # one letter a layer
    if isinstance(value, list) and len(value) == depth:
        return [smaller(name, one, limit, None) for one in value[:LAYERS]]
    if isinstance(value, dict):
        return {inner: smaller(inner, one, SMALLER.get(inner), depth) for inner, one in value.items()}
    if limit is None or value is None:
        return value
    return limit if isinstance(value, list) else min(value, limit)


def reduced(config):
    """The same configuration with smaller numbers, in the dtype and without the quantisation of the tests' weights."""
    left_out = ("torch_dtype", "dtype", "quantization_config", "vision_config")
    depth = config.get("num_hidden_layers")
    made = {
        name: smaller(name, value, SMALLER.get(name), depth) for name, value in config.items() if name not in left_out
    }
    if config.get("num_key_value_heads") == config.get("num_attention_heads") and depth:
        made["num_key_value_heads"] = made["num_attention_heads"]
    made |= FITTING.get(config.get("model_type"), {})
    if "text_config" in config:
        vision = getattr(LAYOUTS[config["model_type"]], "vision", None)
        made |= {"text_config": reduced(config["text_config"]), "vision_config": vision}
    return made


def published(name):
    if name in DEFAULTS:
        return AutoConfig.for_model(DEFAULTS[name]).to_dict()
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(one, marks=pytest.mark.slow if DEFAULTS.get(one) in TWINS else ()) for one in sorted(PUBLISHED)
    ],
)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def folder(name, tmp_path_factory):
    """A model of that configuration with smaller numbers, saved with a tokenizer."""
    made = tmp_path_factory.mktemp("reduced") / name
    made.mkdir()
    (made / "config.json").write_text(json.dumps(reduced(published(name))), encoding="utf-8")
    config = load_config(made)
    build = AutoModelForImageTextToText if config.get_text_config() is not config else AutoModel
    randomised(build.from_config(config)).save_pretrained(made)
    make_tokenizer().save_pretrained(made)
    return made


def with_head(config):
    """How transformers makes the model, with its head where it has a class for that."""
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    return AutoModelForImageTextToText if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING else AutoModel


def test_every_family_has_a_published_configuration():
    covered = {config["model_type"] for config in map(published, PUBLISHED)}
    covered |= {config["text_config"]["model_type"] for config in map(published, PUBLISHED) if "text_config" in config}
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == sorted(PUBLISHED.keys() - DEFAULTS)
    assert covered | UNPUBLISHED == {model_type for family in families() for model_type in family.model_types}


def test_it_loads_through_its_adapter_as_the_model_that_was_published(name, tmp_path):
    billions, sparse, experts = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(published(name)), encoding="utf-8")
    config = load_config(tmp_path)
    family = family_of(config)
    with torch.device("meta"):
        model = with_head(config).from_config(config)
    layers = family.layers(model)
    assert [layer.index for layer in layers] == list(sparse)
    assert {family.router_weight(layer.router).shape for layer in layers} == {
        (experts, family.text_config(config).hidden_size)
    }
    assert {family.expert_count(layer) for layer in layers} == {experts}
    if billions is not None:
        assert sum(weight.numel() for weight in model.parameters()) / 1e9 == pytest.approx(billions, rel=0.005)


def test_with_smaller_numbers_it_makes_a_model_that_embeds(name, folder):
    module = SSMoE.from_base(folder, top_c=TOP_C, calibration="none", progress=False)
    sparse = [layer for layer in PUBLISHED[name][1] if layer < LAYERS]
    features = module.preprocess(["one text", "and a second one, which is longer"])
    with torch.inference_mode():
        vectors = module.forward(features)["sentence_embedding"]
    experts = min(EXPERTS, PUBLISHED[name][2])
    assert vectors.shape == (2, 32 + experts * len(sparse))
    assert vectors.isfinite().all()
    assert list(module.routers.weights) == sparse


@pytest.mark.slow
def test_the_hidden_state_of_any_layer_is_the_one_that_transformers_gives_out(folder):
    model = AutoModel.from_pretrained(folder).eval()
    model = getattr(model, "language_model", model)
    for hidden_layer in (-1,) if family_of(load_config(folder)).streams else (2, -2, -1):
        module = SSMoE.from_base(folder, method="smoe", calibration="none", hidden_layer=hidden_layer, progress=False)
        features = module.preprocess(["one text, so that no token is there for padding only"])
        with torch.inference_mode():
            found = module.encoder.read(features, module.settings.forward).tokens
            states = model(**features, output_hidden_states=True, use_cache=False).hidden_states
        assert len(states) == LAYERS + 1
        assert torch.equal(found, states[hidden_layer]), hidden_layer
