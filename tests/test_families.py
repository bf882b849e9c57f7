"""What is said of a model that is not supported, and what an expert's matrices are."""

import pytest
import torch
from tiny import EXPERTS, FAMILIES, HIDDEN
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PretrainedConfig

import ssmoe_embed
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
            gate, up, down = adapter.expert_matrices(layer.experts, expert)
            chosen, weights = torch.full((4, 1), expert), torch.ones(4, 1)
            if family == "gpt_oss":
                bias = layer.experts.gate_up_proj_bias[expert]
                g, u = x @ gate.T + bias[0::2], x @ up.T + bias[1::2]
                g, u = g.clamp(max=7.0), u.clamp(-7.0, 7.0)
                ours = (u + 1) * g * torch.sigmoid(1.702 * g) @ down + layer.experts.down_proj_bias[expert]
            else:
                ours = torch.nn.functional.silu(x @ gate.T) * (x @ up.T) @ down
            torch.testing.assert_close(layer.experts(x, chosen, weights), ours, rtol=1e-5, atol=1e-6)
