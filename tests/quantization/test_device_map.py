"""Base models that accelerate has spread: device_map, and layers offloaded to disk (meta tensors and hooks)."""

import pytest
import torch
from having import having
from layouts import STORED
from sentence_transformers import SentenceTransformer
from tiny import TOP_C
from transformers import AutoModelForCausalLM

import ssmoe_embed
from ssmoe_embed import SpectralRouters, SpectralRouting, SSMoE, reroute
from ssmoe_embed.families import family_of, register_families
from ssmoe_embed.quantization import QuantizationSettings
from ssmoe_embed.quantization.quantizer import FourBitConfig, FourBitQuantizer

SETTINGS = {"top_c": TOP_C, "scale": "router", "calibration": "none", "progress": False}
METHODS = ("moee", "ssmoe")  # between them every block and both forward passes
ALL_METHODS = ("router", "smoe", "moee", "ev", "ssmoe", "ssmoe-hidden")
TEXTS = ["a", "How do I undo the last commit?", "She sold her old bicycle, and bought a newer one from the shop."]
IDS = torch.randint(3, 500, (3, 11), generator=torch.Generator().manual_seed(0))


LLAMA4 = {
    "vision_model": "cpu",
    "multi_modal_projector": "cpu",
    "language_model.lm_head": "cpu",
    "language_model.model.embed_tokens": "cpu",  # it sends ids to where its embedding is, so that cannot be on disk
    "language_model.model.layers": "disk",
    "language_model.model.norm": "disk",
    "language_model.model.rotary_emb": "cpu",
}


def layers_on_disk(model, prefix=""):
    """A device map that leaves everything but the layers in memory."""
    parts = {name: "cpu" for name, _ in model.named_children()}
    return {f"{prefix}{name}": "disk" if name == "layers" else place for name, place in parts.items()}


@pytest.fixture(scope="module", params=STORED)
def folder(request, model_folder):
    return model_folder(request.param)


@pytest.fixture(scope="module")
def plain(folder):
    """The embedding module in memory; never change it but for its settings."""
    return SSMoE.from_base(folder, model_kwargs={"dtype": "float32"}, **SETTINGS)


@pytest.fixture(scope="module")
def offloaded(folder, tmp_path_factory):
    """The same on disk."""
    kwargs = {
        "dtype": "float32",
        "device_map": LLAMA4 if folder.name == "llama4" else {"": "disk"},
        "offload_folder": str(tmp_path_factory.mktemp("offload")),
    }
    return SSMoE.from_base(folder, model_kwargs=kwargs, **SETTINGS)


def embed(module):
    with torch.inference_mode():
        return module.forward(module.preprocess(TEXTS))["sentence_embedding"]


# --- every family, its layers on disk ---------------------------------------------------------------------------------


def test_its_weights_really_are_on_disk(offloaded):
    layers = family_of(offloaded.model).layers(offloaded.model)
    assert layers
    assert all(weight.is_meta for layer in layers for weight in layer.experts.parameters())
    assert all(weight.is_meta for layer in layers for weight in layer.router.parameters())


def test_spectral_routers_come_from_the_checkpoint_and_belong_to_the_model(plain, offloaded):
    offloaded.routers.check(offloaded.model)
    offloaded.routers.check(plain.model)
    for index, weight in plain.routers.weights.items():
        assert torch.allclose(offloaded.routers.weights[index], weight, atol=1e-5)


def test_every_representation_is_what_it_is_in_memory(folder, plain, offloaded):
    for method in ALL_METHODS if folder.name == "olmoe" else METHODS:
        for module in (plain, offloaded):
            having(module, method=method, alpha=0.6)
        vectors = embed(offloaded)
        assert torch.allclose(vectors, embed(plain), atol=1e-5), method
    assert torch.equal(embed(offloaded), vectors)


def test_rerouting_ends_where_it_began(plain, offloaded):
    having(offloaded, method="smoe")
    before = embed(offloaded)
    having(offloaded, method="ssmoe", alpha=0.9)
    mixed = embed(offloaded)
    having(offloaded, method="smoe")
    assert torch.equal(embed(offloaded), before)
    assert not torch.allclose(mixed[:, : before.shape[1]], before, atol=1e-5)


# --- on one family ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
def test_device_maps_that_a_machine_without_a_gpu_takes(built, device_map, texts):
    model = SentenceTransformer(str(built), model_kwargs={"device_map": device_map})
    assert (model.encode(texts) == ssmoe_embed.load(built, progress=False).encode(texts)).all()


def test_auto_offloads_what_does_not_fit_and_the_vectors_stay(built, texts, tmp_path):
    expected = ssmoe_embed.load(built, progress=False)
    size = sum(weight.numel() * weight.element_size() for weight in expected[0].model.parameters())
    kwargs = {"device_map": "auto", "max_memory": {"cpu": int(size * 0.6)}, "offload_folder": str(tmp_path)}
    model = ssmoe_embed.load(built, model_kwargs=kwargs, progress=False)
    assert any(weight.is_meta for weight in model[0].model.parameters())
    assert torch.allclose(torch.tensor(model.encode(texts)), torch.tensor(expected.encode(texts)), atol=1e-5)


def test_auto_with_4_bits_keeps_all_in_memory(built):
    model = ssmoe_embed.load(built, load_in_4bit=True, model_kwargs={"device_map": "auto"}, progress=False)
    assert not any(weight.is_meta for weight in model[0].model.parameters())
    assert (model.encode(TEXTS) == ssmoe_embed.load(built, load_in_4bit=True, progress=False).encode(TEXTS)).all()


@pytest.mark.parametrize(("gpus", "place"), [(True, 3), (False, "cpu")])
def test_a_4_bit_model_without_a_wish_goes_to_the_current_gpu(monkeypatch, gpus, place):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    quantizer = FourBitQuantizer(FourBitConfig(QuantizationSettings()))
    assert quantizer.update_device_map(None) == {"": place}
    assert quantizer.update_device_map({"": 1}) == {"": 1}


@pytest.mark.parametrize("family", ["olmoe", "gpt_oss", "granitemoe"])
def test_alpha_0_changes_no_bit_of_an_offloaded_language_model_and_alpha_1_is_that_in_memory(
    model_folder, family, tmp_path
):
    register_families()
    folder = model_folder(family)
    routers = SpectralRouters.from_checkpoint(folder, top_c=TOP_C, scale="router", progress=False)
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    device_map = layers_on_disk(whole.model, "model.") | {"lm_head": "cpu"}
    spread = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, device_map=device_map, offload_folder=tmp_path
    ).eval()

    @torch.no_grad()
    def logits(model):
        return model(IDS, use_cache=False).logits

    untouched = logits(spread)
    with reroute(spread, SpectralRouting(routers, alpha=0.0)):
        assert torch.equal(logits(spread), untouched)
    with reroute(spread, SpectralRouting(routers, alpha=1.0)), reroute(whole, SpectralRouting(routers, alpha=1.0)):
        assert torch.allclose(logits(spread), logits(whole), atol=1e-5)
        assert not torch.allclose(logits(spread), untouched, atol=1e-3)
    assert torch.equal(logits(spread), untouched)
