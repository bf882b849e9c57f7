"""GPT-OSS checkpoints as they are on the hub: experts packed in MXFP4."""

import pytest
import torch
from layouts import LAYOUTS
from mxfp4 import by_hand, mxfp4_folders
from reference import spectral_row
from safetensors.torch import load_file, save_file
from tiny import TOP_C
from transformers import AutoModel, AutoModelForCausalLM, Mxfp4Config
from transformers.integrations.mxfp4 import Mxfp4GptOssExperts, convert_moe_packed_tensors

import ssmoe_embed
from ssmoe_embed import SpectralRouters, SSMoE, UnsupportedModelError, language_model
from ssmoe_embed.checkpoints import unpack_mxfp4
from ssmoe_embed.embedding.base_model import BaseModelSource
from ssmoe_embed.families import family_of
from ssmoe_embed.language_model import RoutingSettings, drop, drop_experts
from ssmoe_embed.quantization import Component, memory_by_component
from ssmoe_embed.quantization.packed import Mxfp4Matrices, is_packed

EXPERTS = 8
IDS = torch.randint(3, 500, (3, 11), generator=torch.Generator().manual_seed(0))
SETTINGS = {"calibration": "none", "progress": False, "top_c": TOP_C}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A GPT-OSS model as the hub has it and with its experts unpacked."""
    return mxfp4_folders(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def folder(folders):
    """The model as the hub has it: experts as blocks and scales, everything else in bfloat16."""
    return folders[0]


@pytest.fixture(scope="module")
def plain_folder(folders):
    """The same model in bfloat16, unpacked."""
    return folders[1]


def load(folder, **changes):
    return BaseModelSource(str(folder), **changes).load()[0]


@torch.no_grad()
def hidden(model):
    return model(IDS, use_cache=False).last_hidden_state


# --- the format -------------------------------------------------------------------------------------------------------


def test_every_byte_and_exponent_unpacks_to_what_the_standard_says():
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(1, 12, 1, 1)
    scales = torch.arange(60, 252, dtype=torch.uint8).view(1, 12, 16)
    assert torch.equal(unpack_mxfp4(blocks, scales, torch.float64), by_hand(blocks, scales))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unpacking_equals_that_of_transformers(dtype):
    blocks = torch.randint(0, 256, (3, 40, 2, 16), dtype=torch.uint8)
    scales = torch.randint(110, 135, (3, 40, 2), dtype=torch.uint8)
    ours = unpack_mxfp4(blocks, scales, dtype).transpose(1, 2)
    assert ours.dtype == dtype
    assert torch.equal(ours, convert_moe_packed_tensors(blocks, scales, dtype=dtype))


def test_scales_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="do not belong together"):
        unpack_mxfp4(torch.zeros(2, 4, 1, 16, dtype=torch.uint8), torch.zeros(2, 4, 2, dtype=torch.uint8))


# --- spectral routers from disk ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["none", "router"])
def test_spectral_routers_from_blocks_equal_the_recomputation_in_float64(folder, plain_folder, scale):
    made = SpectralRouters.from_checkpoint(folder, top_c=TOP_C, scale=scale, progress=False)
    packed, plain, layout = (
        load_file(folder / "model.safetensors"),
        load_file(plain_folder / "model.safetensors"),
        LAYOUTS["gpt_oss"],
    )
    for layer in layout.sparse:
        prefix = f"model.layers.{layer}.mlp.experts."
        gate_up, down = (
            by_hand(packed[f"{prefix}{name}_blocks"], packed[f"{prefix}{name}_scales"])
            for name in ("gate_up_proj", "down_proj")
        )
        router = layout.router(plain, layer)
        rows = [
            # as stored: gate_up [2I,H] with gate and up rows taking turns, down [H,I]
            spectral_row((gate_up[expert][0::2], gate_up[expert][1::2], down[expert].T), row, TOP_C)
            for expert, row in enumerate(router)
        ]
        expected = torch.stack(rows)
        if scale == "router":
            expected = expected / expected.norm(dim=1, keepdim=True) * router.norm(dim=1).mean()
        assert torch.allclose(made.weights[layer].double(), expected, atol=1e-5)


def test_an_incomplete_packed_checkpoint_is_refused(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.router.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((folder / "config.json").read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"experts but no router in layers \[1\]"):
        SpectralRouters.from_checkpoint(tmp_path, top_c=TOP_C, progress=False)


# --- live models ------------------------------------------------------------------------------------------------------


def test_it_is_loaded_unpacked_and_computes_what_the_unpacked_checkpoint_does(folder, plain_folder):
    model = load(folder)
    assert model.dtype == torch.bfloat16
    assert torch.equal(hidden(model), hidden(load(plain_folder)))


def test_an_embedding_model_of_it_reads_the_routers(folder, plain_folder):
    ours, plain = (SSMoE.from_base(place, scale="router", **SETTINGS) for place in (folder, plain_folder))
    batch = ours.preprocess(["a text", "and another one"])
    with torch.inference_mode():
        assert torch.equal(ours.forward(batch)["sentence_embedding"], plain.forward(batch)["sentence_embedding"])
    ours.routers.check(plain.model)


@torch.no_grad()
def test_a_language_model_of_it_loses_experts_and_loads_again_as_it_was(folder, plain_folder, tmp_path):
    drop(folder, tmp_path / "part", 0.75, "random", settings=RoutingSettings(top_c=TOP_C), progress=False)
    expected = language_model.load(plain_folder)
    drop_experts(expected, 0.75, "random", with_routers=False)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "part")
    assert torch.equal(found(IDS).logits, expected(IDS).logits)


def test_a_trained_model_of_it_is_saved_as_it_was_trained(folder, tmp_path):
    module = SSMoE.from_base(folder, method="smoe", **SETTINGS)
    with torch.no_grad():
        module.model.layers[0].self_attn.q_proj.weight.add_(0.01)
    before = hidden(module.model)
    module.save(str(tmp_path / "trained"))
    assert torch.equal(hidden(AutoModel.from_pretrained(tmp_path / "trained" / "base")), before)


def test_a_user_may_ask_for_unpacking_herself(folder, plain_folder):
    model = load(folder, model_kwargs={"quantization_config": Mxfp4Config(dequantize=True)})
    assert torch.equal(hidden(model), hidden(load(plain_folder)))


def test_kernels_that_bypass_the_router_are_refused_with_the_way_out(folder):
    with pytest.raises(ValueError, match=r"never runs.*load_in_4bit=True"):
        load(folder, model_kwargs={"quantization_config": Mxfp4Config(dequantize=False)})


def test_a_model_with_kernels_from_elsewhere_is_refused(plain_folder):
    model = AutoModel.from_pretrained(plain_folder)
    with torch.device("meta"):
        model.layers[0].mlp.experts = Mxfp4GptOssExperts(model.config)
    with pytest.raises(UnsupportedModelError, match=r"never run the router.*dequantize=True"):
        family_of(model)


# --- staying packed ---------------------------------------------------------------------------------------------------


def test_in_4_bits_the_experts_stay_as_they_are_on_disk(folder, plain_folder):
    model, plain = load(folder, quantization="nf4"), load(plain_folder)
    for layer, reference in zip(model.layers, plain.layers, strict=True):
        for name in ("gate_up_proj", "down_proj"):
            stack = getattr(layer.mlp.experts, name)
            assert isinstance(stack, Mxfp4Matrices)
            assert torch.equal(stack.unpacked(), getattr(reference.mlp.experts, name))
            assert torch.equal(layer.mlp.experts.gate_up_proj_bias, reference.mlp.experts.gate_up_proj_bias)
    assert memory_by_component(model)[Component.EXPERTS] < memory_by_component(plain)[Component.EXPERTS] * 0.4


def test_with_attention_left_alone_a_packed_model_computes_what_the_unpacked_one_does(folder, plain_folder):
    packed = load(folder, quantization="nf4-experts", model_kwargs={"dtype": "float32"})
    plain = load(plain_folder, model_kwargs={"dtype": "float32"})
    assert is_packed(packed)
    assert torch.allclose(hidden(packed), hidden(plain), atol=1e-5)


def test_a_built_model_stays_packed_and_gives_the_same_vectors_again(folder, texts, tmp_path):
    output = ssmoe_embed.build(
        folder, tmp_path / "m", quantize="nf4", top_c=TOP_C, calibration_texts=texts, progress=False
    )
    first, second = (ssmoe_embed.load(output, progress=False) for _ in range(2))
    assert isinstance(first[0].model.layers[0].mlp.experts.down_proj, Mxfp4Matrices)
    assert (first.encode(texts) == second.encode(texts)).all()
