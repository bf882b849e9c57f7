"""What is said of a model that is not supported, and what an expert's matrices are."""

import shutil

import pytest
import torch
from layouts import LAYOUTS
from reference import stored_tensors
from safetensors.torch import save_file
from tiny import EXPERTS, FAMILIES, HIDDEN
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PretrainedConfig

import ssmoe_embed
from ssmoe_embed import SpectralRouting, reroute
from ssmoe_embed.families import family_of, supported_types


@pytest.fixture
def language_model(model_folder, family):
    return AutoModelForCausalLM.from_pretrained(model_folder(family)).eval()


@pytest.fixture(scope="module")
def dense():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes))


def assert_lists_what_is_supported(refusal, model_type):
    message = str(refusal.value)
    assert repr(model_type) in message
    for name in FAMILIES:
        assert name in message


def test_every_family_of_the_first_release_is_supported():
    assert set(FAMILIES) <= set(supported_types())


def test_spectral_routers_of_a_dense_model_are_refused(dense):
    with pytest.raises(ssmoe_embed.UnsupportedModelError) as refusal:
        ssmoe_embed.SpectralRouters.from_model(dense, progress=False)
    assert_lists_what_is_supported(refusal, "llama")


def test_a_dense_checkpoint_is_refused(dense, tmp_path):
    dense.save_pretrained(tmp_path)
    for make in (ssmoe_embed.SpectralRouters.from_checkpoint, ssmoe_embed.SSMoE.from_base):
        with pytest.raises(ssmoe_embed.UnsupportedModelError) as refusal:
            make(tmp_path, progress=False)
        assert_lists_what_is_supported(refusal, "llama")


def test_re_routing_a_dense_model_is_refused(dense, olmoe):
    routers = ssmoe_embed.SpectralRouters.from_checkpoint(olmoe, top_c=5, progress=False)
    with pytest.raises(ssmoe_embed.UnsupportedModelError) as refusal:
        ssmoe_embed.reroute(dense, ssmoe_embed.SpectralRouting(routers))
    assert_lists_what_is_supported(refusal, "llama")


@pytest.mark.parametrize("model_type", ["made_up_moe", "", None])
def test_an_unknown_model_type_is_refused(model_type):
    config = PretrainedConfig()
    config.model_type = model_type
    with pytest.raises(ssmoe_embed.UnsupportedModelError) as refusal:
        family_of(config)
    assert_lists_what_is_supported(refusal, model_type)


@torch.no_grad()
def test_an_expert_computed_from_its_matrices_equals_the_models_own(family, language_model):
    adapter = family_of(language_model.config)
    x = torch.randn(4, HIDDEN, generator=torch.Generator().manual_seed(1))
    for layer in adapter.layers(language_model):
        for expert in (0, EXPERTS - 1):
            gate, up, down = adapter.expert_matrices(layer.block, expert)
            chosen, weights = torch.full((4, 1), expert), torch.ones(4, 1)
            if family == "gpt_oss":
                bias = layer.experts.gate_up_proj_bias[expert]
                g, u = x @ gate.T + bias[0::2], x @ up.T + bias[1::2]
                g, u = g.clamp(max=7.0), u.clamp(-7.0, 7.0)
                ours = (u + 1) * g * torch.sigmoid(1.702 * g) @ down + layer.experts.down_proj_bias[expert]
            else:
                ours = torch.nn.functional.silu(x @ gate.T) * (x @ up.T) @ down
            torch.testing.assert_close(layer.experts(x, chosen, weights), ours, rtol=1e-5, atol=1e-6)


# --- what an adapter refuses of its own family ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "changes", "reason"),
    [
        ("deepseek_v2", {"norm_topk_prob": True}, r"norm_topk_prob=True.*norm_topk_prob=False.*Choose a checkpoint"),
        ("deepseek_v2", {"moe_layer_freq": 2}, r"moe_layer_freq=2.*Choose a checkpoint"),
        ("deepseek_v2", {"scoring_func": "sigmoid"}, r"scoring_func='sigmoid'"),
        ("deepseek_v3", {"moe_layer_freq": 2}, r"moe_layer_freq=2"),
        ("deepseek_v3", {"scoring_func": "softmax"}, r"scoring_func='softmax'.*scoring_func='sigmoid'"),
        ("mimo_v2_flash", {"moe_layer_freq": [1, 1, 1]}, r"moe_layer_freq=\[1, 1, 1\]"),
        ("sarvam_moe", {"score_function": "softmax"}, r"score_function='softmax'"),
        ("minimax_m2", {"scoring_func": "softmax"}, r"scoring_func='softmax'"),
        ("minimax_m2", {"shared_intermediate_size": 64}, r"shared_intermediate_size=64"),
        (
            "phimoe",
            {"num_experts_per_tok": 3},
            r"num_experts_per_tok=3.*always chooses two.*Set num_experts_per_tok to 2",
        ),
    ],
)
def test_settings_that_the_librarys_model_would_ignore_are_refused(model_type, changes, reason, tmp_path):
    LAYOUTS[model_type].make_config(**changes).save_pretrained(tmp_path)
    for make in (ssmoe_embed.SpectralRouters.from_checkpoint, ssmoe_embed.SSMoE.from_base):
        with pytest.raises(ssmoe_embed.UnsupportedModelError, match=reason):
            make(tmp_path, progress=False)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("deepseek_v2", {"norm_topk_prob": False, "moe_layer_freq": 1, "scoring_func": "softmax"}),
        ("deepseek_v3", {"moe_layer_freq": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc"}),
        ("mimo_v2_flash", {"moe_layer_freq": [0, 1, 1], "scoring_func": "sigmoid"}),
        ("minimax_m2", {"scoring_func": "sigmoid", "shared_intermediate_size": 0}),
    ],
)
def test_the_same_settings_as_published_are_not(model_type, changes):
    assert model_type in family_of(LAYOUTS[model_type].make_config(**changes)).model_types


def test_a_checkpoint_with_two_decoders_is_refused(olmoe, tmp_path):
    tensors = stored_tensors(olmoe)
    save_file(
        tensors | {f"second.{name}": tensor.clone() for name, tensor in tensors.items()}, tmp_path / "model.safetensors"
    )
    shutil.copy(olmoe / "config.json", tmp_path)
    with pytest.raises(ValueError, match=r"several decoders, below \['model\.', 'second\.model\.'\].*from_model"):
        ssmoe_embed.SpectralRouters.from_checkpoint(tmp_path, progress=False)


# --- a model that also sees -------------------------------------------------------------------------------------------


def test_of_a_model_that_also_sees_only_the_text_part_is_kept(model_folder):
    folder = model_folder("llama4")
    whole = AutoModel.from_pretrained(folder)
    module = ssmoe_embed.SSMoE.from_base(folder, top_c=5, calibration="none", progress=False)
    assert type(whole).__name__ == "Llama4ForConditionalGeneration"
    assert type(module.model).__name__ == "Llama4TextModel"
    assert module.model.config.name_or_path == str(folder)
    assert sum(p.numel() for p in module.model.parameters()) < sum(p.numel() for p in whole.parameters())
    with reroute(whole, SpectralRouting(module.routers, alpha=0.5)):
        pass


def test_a_model_without_decoder_layers_is_refused():
    with pytest.raises(ValueError, match="Linear has no decoder layers; pass the language model itself"):
        family_of(LAYOUTS["olmoe"].make_config()).layers(torch.nn.Linear(2, 2))
