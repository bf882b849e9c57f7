"""What families allow besides the tiny models of tests/support/layouts/: flags, padding, composites, prediction layers."""

import shutil

import pytest
import torch
from having import having
from layouts import EACH, LAYOUTS
from layouts.base import EXPERTS, HIDDEN
from reference import stored_tensors
from routed import ALL_TOKENS, TEXTS, decisions, embed, run, spread
from safetensors.torch import save_file
from tiny import TOP_C
from transformers import AutoModel

from ssmoe_embed import SpectralRouters, SpectralRouting, SSMoE, reroute
from ssmoe_embed.families import UnsupportedModelError, family_of, register_families
from ssmoe_embed.routing.sites import install_sites, recording

FLAGS = [
    ("olmoe", {"norm_topk_prob": True}),
    ("qwen2_moe", {"norm_topk_prob": True}),
    ("qwen3_moe", {"norm_topk_prob": False}),
    ("qwen3_next", {"norm_topk_prob": False}),
    ("flex_olmo", {"norm_topk_prob": True}),
    ("lfm2_moe", {"norm_topk_prob": False}),
    ("lfm2_moe", {"use_expert_bias": False}),
    ("deepseek_v2", {"topk_method": "greedy", "n_group": 1, "topk_group": 1}),
    ("deepseek_v3", {"norm_topk_prob": False}),
    ("glm4_moe", {"norm_topk_prob": False}),
    ("cohere2_moe", {"norm_topk_prob": False}),
    ("nemotron_h", {"norm_topk_prob": False}),
    ("dots1", {"norm_topk_prob": True}),
    ("granitemoeshared", {"shared_intermediate_size": 0}),
    ("granitemoe_swa", {"shared_intermediate_size": 0}),
]
"""The other value of what each description sets."""


@pytest.mark.parametrize(("model_type", "changes"), FLAGS, ids=str)
def test_the_other_value_of_a_flag_is_respected_too(model_type, changes, tmp_path):
    layout = LAYOUTS[model_type]
    model = layout.make(**changes)
    layout.save(model, tmp_path)
    tensors = stored_tensors(tmp_path)
    routers = SpectralRouters.from_model(model, top_c=TOP_C, scale="router", progress=False)
    with reroute(model, SpectralRouting(routers, alpha=0.5)):
        found = decisions(layout, model)
    assert sorted(found) == list(layout.sparse)
    for index, (x, output) in found.items():
        learned = x.double() @ layout.router(tensors, index).T
        p = 0.5 * layout.scores(learned) + 0.5 * layout.scores(x.double() @ routers.weights[index].double().T)
        expected = spread(*layout.route(p, learned, tensors, index, model.config))
        torch.testing.assert_close(spread(*layout.decided(output)), expected, rtol=0, atol=1e-5)


@pytest.fixture(scope="module", params=EACH)
def layout(request):
    return LAYOUTS[request.param]


@pytest.mark.slow
def test_a_texts_vector_depends_neither_on_the_padding_side_nor_on_a_much_longer_neighbour(layout, model_folder):
    """Nor do the states of convolutions, linear attention and Mamba, which are made in pieces of 64 or 256 tokens."""
    module = SSMoE.from_base(model_folder(layout.model_type), top_c=TOP_C, calibration="none", progress=False)
    texts = [*TEXTS, "The cook made a soup on Monday. " * 30]
    assert module.preprocess(texts)["input_ids"].shape[1] > 256
    alone = torch.cat([embed(module, [text]) for text in texts])
    for module.tokenizer.padding_side in ("left", "right"):
        torch.testing.assert_close(embed(module, texts), alone, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("model_type", ["hunyuan_v1_moe", "llama4"])
def test_the_states_of_tokens_stay_in_their_places_beside_padding_on_the_left(model_type, model_folder):
    module = SSMoE.from_base(model_folder(model_type), method="smoe", calibration="none", progress=False)
    module.tokenizer.padding_side = "left"
    with torch.inference_mode():
        features = module.forward(module.preprocess(TEXTS))
        for text, mask, tokens in zip(TEXTS, features["attention_mask"], features["token_embeddings"], strict=True):
            alone = module.forward(module.preprocess([text]))["token_embeddings"][0]
            assert mask.sum() == len(alone)
            torch.testing.assert_close(tokens[-len(alone) :], alone, rtol=1e-4, atol=2e-5)


@pytest.mark.slow
def test_layers_that_predict_tokens_further_ahead_are_left_out(layout, model_folder, tmp_path):
    folder = model_folder(layout.model_type)
    tensors = stored_tensors(folder)
    last = layout.sparse[-1]
    depth = family_of(layout.make_config()).text_config(layout.make_config()).num_hidden_layers
    start = layout.start(last)
    for name in [name for name in tensors if name.startswith(start)]:
        beyond = layout.start(depth) + name.removeprefix(start)
        beside = layout.start(0).replace(layout.prefix, "mtp.") + name.removeprefix(start)
        tensors |= {beyond: torch.zeros_like(tensors[name]), beside: torch.zeros_like(tensors[name])}
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copy(folder / "config.json", tmp_path)
    found = SpectralRouters.from_checkpoint(tmp_path, top_c=TOP_C, progress=False)
    expected = SpectralRouters.from_checkpoint(folder, top_c=TOP_C, progress=False)
    assert list(found.weights) == list(layout.sparse)
    assert all(torch.equal(found.weights[index], expected.weights[index]) for index in expected.weights)


@pytest.mark.parametrize("model_type", sorted(LAYOUTS.keys() - {"gpt_oss"}))
@torch.no_grad()
def test_gate_up_and_down_are_told_apart(model_type, model_folder):
    """An expert computed from its matrices equals the model's own. GPT-OSS, with its biases, is in `test_families.py`."""
    register_families()
    model = AutoModel.from_pretrained(model_folder(model_type), dtype=torch.float32).eval()
    layout, adapter = LAYOUTS[model_type], family_of(model)
    x = torch.randn(4, HIDDEN, generator=torch.Generator().manual_seed(1))
    for layer in adapter.layers(model):
        for expert in (0, EXPERTS - 1):
            matrices = (matrix.float() for matrix in adapter.expert_matrices(layer.block, expert))
            ours = layout.expert(layer.block, x, *matrices)
            theirs = layout.routed(layer.block, x, torch.ones(4, 1), torch.full((4, 1), expert))
            torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6)


# --- models that do more than read text -------------------------------------------------------------------------------


@torch.no_grad()
def test_a_vision_language_model_is_rerouted_as_its_text_part_is(model_folder):
    layout = LAYOUTS["qwen3_5_moe"]
    folder = model_folder("qwen3_5_moe")
    whole = AutoModel.from_pretrained(folder).eval()
    routers = SpectralRouters.from_checkpoint(folder, top_c=TOP_C, progress=False)
    assert hasattr(whole, "visual")
    found = SpectralRouters.from_model(whole, top_c=TOP_C, progress=False)
    assert all(torch.equal(found.weights[index], weight) for index, weight in routers.weights.items())
    ids = torch.tensor([[5, 6, 7, 8, 9, 3, 4]])
    untouched = whole(input_ids=ids).last_hidden_state
    with reroute(whole, SpectralRouting(routers, alpha=0.7)):
        mixed = whole(input_ids=ids).last_hidden_state
    assert not torch.equal(mixed, untouched)
    text = whole.language_model
    assert layout.decoder(text) is text
    with reroute(text, SpectralRouting(routers, alpha=0.7)):
        torch.testing.assert_close(text(input_ids=ids).last_hidden_state, mixed, rtol=0, atol=1e-5)


# --- a router in float32 ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_hunyuans_router_may_stay_in_float32_below_a_model_in_bfloat16():
    layout = LAYOUTS["hunyuan_v1_moe"]
    model = layout.make().to(torch.bfloat16)
    for router in layout.routers(model).values():
        router.wg.float()
    adapter = family_of(model)
    install_sites(model, adapter)
    with recording(ALL_TOKENS) as taken:
        found = decisions(layout, model)
    for index, (x, output) in found.items():
        assert x.dtype == torch.bfloat16
        assert torch.equal(taken.logits[index], output[0])
        assert output[0].dtype == torch.float32
    routers = SpectralRouters.from_model(model, top_c=TOP_C, progress=False)
    untouched = run(model)
    with reroute(model, SpectralRouting(routers, alpha=0)):
        assert torch.equal(run(model), untouched)


# --- layers without experts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["router", "moee", "ev", "ssmoe"])
@pytest.mark.parametrize("model_type", ["jamba", "lfm2_moe", "deepseek_v3"])
def test_a_layer_below_all_experts_has_no_routing_to_read(model_type, method, model_folder):
    folder = model_folder(model_type)
    with pytest.raises(ValueError, match=f"hidden_layer=1 lies below the first.*method='{method}'.*method='smoe'"):
        SSMoE.from_base(folder, method=method, hidden_layer=1, calibration="none", progress=False)
    module = SSMoE.from_base(folder, method="smoe", hidden_layer=1, calibration="none", progress=False)
    with pytest.raises(ValueError, match=f"hidden_layer=1 lies below the first.*method='{method}'"):
        having(module, method=method)
    assert embed(module, TEXTS).isfinite().all()


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "changes", "reason"),
    [
        ("granitemoehybrid", {"num_local_experts": 0}, "dense Granites.*num_local_experts=0.*granite-4.0-h-tiny"),
        ("jamba", {"num_experts": 1}, "dense Jambas.*num_experts=1.*Jamba-v0.1"),
        ("hunyuan_v1_moe", {"moe_layer_num_skipped": 1}, "moe_layer_num_skipped is 1.*Hunyuan-A13B"),
        ("hunyuan_v1_moe", {"num_shared_expert": [1, 2]}, r"num_shared_expert is \[1, 2\].*Hunyuan-A13B"),
        ("hunyuan_v1_moe", {"use_mixed_mlp_moe": False}, "use_mixed_mlp_moe is False"),
        ("hunyuan_v1_moe", {"use_cla": True}, "use_cla is True"),
        ("hunyuan_v1_moe", {"moe_intermediate_size": [16, 24]}, r"moe_intermediate_size is \[16, 24\]"),
    ],
)
def test_a_model_that_cannot_work_is_refused_with_the_reason_and_the_way_out(model_type, changes, reason):
    config = LAYOUTS[model_type].make_config(**changes)
    with pytest.raises(UnsupportedModelError, match=reason):
        family_of(config)
