"""Models on one device, on two and beside the CPU: run by `test_second_device.py`, on the device of `second_device.py`."""

from functools import partial

import pytest
import torch
from having import having
from layouts import LAYOUTS
from mxfp4 import mxfp4_folders
from second_device import Moves
from sentence_transformers import SentenceTransformer
from tiny import TOP_C
from transformers import AutoModel, AutoModelForCausalLM

import ssmoe_embed
from ssmoe_embed import SpectralRouters, SpectralRouting, SSMoE, reroute
from ssmoe_embed.families import family_of, load_config, register_families
from ssmoe_embed.quantization import memory_by_component
from ssmoe_embed.quantization.packed import PackedMatrices, is_packed
from ssmoe_embed.routing import HashRouting
from ssmoe_embed.spectral import eigenvectors

FIRST, SECOND = "gpu:0", "gpu:1"
METHODS = ("router", "smoe", "moee", "ev", "ssmoe", "ssmoe-hidden")
SETTINGS = {"top_c": TOP_C, "scale": "router", "calibration": "none", "alpha": 0.6, "progress": False}
PLAIN = {"attn_implementation": "eager", "experts_implementation": "eager"}
TEXTS = ["a", "How do I undo the last commit?", "She sold her old bicycle, and bought a newer one from the shop."]
IDS = torch.randint(3, 500, (2, 9), generator=torch.Generator().manual_seed(0))


def embedding_model(folder, quantize=None, device_map=None, **kwargs):
    dtype = {} if quantize == "paper-nf4" else {"dtype": "float32"}
    places = {} if device_map is None else {"device_map": device_map}
    return SSMoE.from_base(folder, quantize=quantize, model_kwargs=PLAIN | dtype | places | kwargs, **SETTINGS)


def embed(module, device="cpu"):
    features = {name: value.to(device) for name, value in module.preprocess(TEXTS).items()}
    with torch.inference_mode():
        return module.forward(features)["sentence_embedding"]


def spread(folder, first, second, kind=AutoModel):
    """A device map: one layer here and the next there, norms there, everything else here."""
    register_families()
    config = load_config(folder)
    with torch.device("meta"):
        model = kind.from_config(config)
    names = {id(module): name for name, module in model.named_modules()}
    layers = family_of(config).decoder(model).layers
    found = {names[id(layer)]: (first, second)[index % 2] for index, layer in enumerate(layers)}

    def walk(module):
        for name, child in module.named_children():
            if any(part is layers for part in child.modules()):
                walk(child)
            elif module is not layers:
                found[names[id(child)]] = second if "norm" in name else first

    walk(model)
    return found


def places(module):
    return {str(tensor.device) for tensor in (*module.parameters(), *module.buffers())}


@pytest.fixture(scope="module", params=sorted(LAYOUTS))
def folder(request, model_folder):
    return model_folder(request.param)


@pytest.fixture(scope="module", params=[None, "paper-nf4"])
def quantize(request):
    return request.param


@pytest.fixture(scope="module")
def on_cpu(folder, quantize):
    """The model in one place; never change it but for its settings."""
    return embedding_model(folder, quantize)


def test_the_device_refuses_what_a_gpu_refuses():
    first, second, cpu = (torch.ones(2, 2).to(place) for place in (FIRST, SECOND, "cpu"))
    for other in (second, cpu):
        with pytest.raises(RuntimeError, match=r"gpu:0"):
            first @ other
        with pytest.raises(RuntimeError, match=r"gpu:0"):
            first[0] = other[0] + first[0]
    assert ((first @ first).cpu() == cpu @ cpu).all()
    assert Moves.of(first.cpu) == [(torch.device(FIRST), torch.device("cpu"), first.shape)]


# --- every family -----------------------------------------------------------------------------------------------------


def test_layers_spread_over_two_devices_make_the_same_vectors(folder, quantize, on_cpu):
    module = embedding_model(folder, quantize, spread(folder, FIRST, SECOND))
    layers = family_of(module.model).decoder(module.model).layers
    for index, layer in enumerate(layers):
        assert places(layer) == {(FIRST, SECOND)[index % 2]}
    assert is_packed(module) == (quantize is not None)
    for method in METHODS:
        for each in (module, on_cpu):
            having(each, method=method)
        assert torch.allclose(embed(module, FIRST).cpu(), embed(on_cpu), atol=1e-5), method


def test_layers_offloaded_to_the_cpu_beside_a_device_make_the_same_vectors(folder):
    whole = embedding_model(folder)
    module = embedding_model(folder, None, spread(folder, FIRST, "cpu"))
    assert "meta" in places(module.model)
    for method in METHODS:
        for each in (module, whole):
            having(each, method=method)
        assert torch.allclose(embed(module, FIRST).cpu(), embed(whole), atol=1e-5), method


def test_a_forward_pass_on_a_device_takes_nothing_from_it_and_brings_nothing(folder):
    module = embedding_model(folder, "paper-nf4", {"": FIRST})
    assert places(module.model) == {FIRST}
    features = {name: value.to(FIRST) for name, value in module.preprocess(TEXTS).items()}
    with torch.inference_mode():
        module.forward(features)  # places W_EV
        moved = Moves.of(lambda: module.forward(features))
    own = 1 if folder.name == "phimoe" else 0  # its rotary factors are computed on the CPU, anew for every batch
    assert len(moved) == own


def test_spectral_routers_of_a_model_on_a_device_are_those_of_the_checkpoint(folder, monkeypatch):
    model = embedding_model(folder, None, spread(folder, FIRST, SECOND)).model
    expected = SpectralRouters.from_checkpoint(folder, top_c=TOP_C, progress=False)
    for on_device in (False, True):
        if on_device:
            monkeypatch.setattr(eigenvectors, "_DECOMPOSE_THERE", ("gpu",))
        made = SpectralRouters.from_model(model, top_c=TOP_C, progress=False)
        made.check(model)
        for index, weight in expected.weights.items():
            assert torch.allclose(made.weights[index], weight, atol=1e-5)


# --- on one family ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["cpu", FIRST])
@pytest.mark.parametrize("preset", ["nf4", "paper-nf4"])
def test_a_4_bit_model_can_be_moved(olmoe, start, preset):
    expected = embed(embedding_model(olmoe, preset))
    module = embedding_model(olmoe, preset, {"": start})
    for place in (SECOND, "cpu", FIRST):
        module.to(place)
        assert places(module.model) == {place}
        assert torch.equal(embed(module, place).cpu(), expected)


@pytest.mark.parametrize("family", ["olmoe", "llama4"])
@pytest.mark.parametrize("bits", [4, 32])
@pytest.mark.parametrize("maker", [ssmoe_embed.load, SentenceTransformer])
def test_a_device_map_holds_however_a_built_model_is_loaded(model_folder, tmp_path, family, bits, maker):
    settings = {name: value for name, value in SETTINGS.items() if name != "progress"}
    kwargs = PLAIN | {"dtype": "float32", "load_in_4bit": bits == 4}
    on_cpu = ssmoe_embed.load(model_folder(family), model_kwargs=kwargs, progress=False, **settings)
    on_cpu.save(str(tmp_path))
    for device_map in ({"": SECOND}, spread(model_folder(family), FIRST, SECOND)):
        model = maker(str(tmp_path), model_kwargs=kwargs | {"device_map": device_map})
        assert torch.allclose(torch.tensor(model.encode(TEXTS)), torch.tensor(on_cpu.encode(TEXTS)), atol=1e-5)
        assert places(model[0].model) == set(device_map.values())
        assert is_packed(model) == (bits == 4)


def test_a_language_model_stays_where_the_device_map_puts_it_when_it_becomes_an_embedding_model(olmoe):
    load = partial(ssmoe_embed.load, olmoe, progress=False, **{n: v for n, v in SETTINGS.items() if n != "progress"})
    model = load(model_kwargs=PLAIN | {"dtype": "float32", "device_map": SECOND})
    assert places(model[0].model) == {SECOND}
    on_cpu = load(model_kwargs=PLAIN | {"dtype": "float32"}, device="cpu")
    assert torch.allclose(torch.tensor(model.encode(TEXTS)), torch.tensor(on_cpu.encode(TEXTS)), atol=1e-5)


@pytest.mark.parametrize("experts", ["eager", "grouped_mm", "batched_mm"])
def test_every_backend_of_the_experts_computes_the_same_on_a_device(olmoe, experts):
    module = embedding_model(olmoe, None, {"": FIRST}, experts_implementation=experts)
    assert torch.allclose(embed(module, FIRST).cpu(), embed(embedding_model(olmoe)), atol=1e-5)


@pytest.mark.parametrize("policy", ["ssmoe", "hash"])
def test_a_language_model_on_two_devices_is_rerouted(olmoe, policy):
    routers = SpectralRouters.from_checkpoint(olmoe, top_c=TOP_C, scale="router", progress=False)
    load = partial(AutoModelForCausalLM.from_pretrained, olmoe, dtype=torch.float32, **PLAIN)
    made = HashRouting() if policy == "hash" else SpectralRouting(routers, alpha=0.7)
    found = []
    for model, place in (
        (load(), "cpu"),
        (load(device_map=spread(olmoe, FIRST, SECOND, AutoModelForCausalLM)), FIRST),
    ):
        with reroute(model.eval(), made), torch.no_grad():
            found.append(model.generate(IDS.to(place), max_new_tokens=4, do_sample=False).cpu())
    assert torch.equal(*found)


def test_auto_fills_one_device_after_the_other_by_the_packed_size(olmoe, monkeypatch):
    monkeypatch.setattr("transformers.integrations.accelerate.get_max_memory", dict)  # it knows real devices only
    room = sum(memory_by_component(embedding_model(olmoe, "nf4").model).values()) * 9 // 10
    module = embedding_model(olmoe, "nf4", "sequential", max_memory={FIRST: room, SECOND: room})
    assert places(module.model) == {FIRST, SECOND}
    assert torch.equal(embed(module, FIRST).cpu(), embed(embedding_model(olmoe, "nf4")))


def test_experts_in_mxfp4_stay_packed_on_their_device(tmp_path):
    mxfp4_folder, _ = mxfp4_folders(tmp_path)
    module = embedding_model(mxfp4_folder, "nf4", spread(mxfp4_folder, FIRST, SECOND))
    stacks = [stack for stack in module.model.modules() if isinstance(stack, PackedMatrices)]
    assert {str(stack.device) for stack in stacks} == {FIRST, SECOND}
    assert torch.allclose(embed(module, FIRST).cpu(), embed(embedding_model(mxfp4_folder, "nf4")), atol=1e-5)
