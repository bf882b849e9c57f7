"""One family on one device, on two and beside the CPU, in a process of `test_second_device.py`."""

from functools import partial

import pytest
import torch
from mxfp4 import mxfp4_folders
from on_second_device import FIRST, PLAIN, SECOND, SETTINGS, TEXTS, embed, embedding_model, places, spread
from second_device import Moves
from sentence_transformers import SentenceTransformer
from tiny import TOP_C
from transformers import AutoModelForCausalLM

import ssmoe_embed
from ssmoe_embed import SpectralRouters, SpectralRouting, reroute
from ssmoe_embed.quantization import memory_by_component
from ssmoe_embed.quantization.packed import PackedMatrices, is_packed
from ssmoe_embed.routing import HashRouting

IDS = torch.randint(3, 500, (2, 9), generator=torch.Generator().manual_seed(0))


def test_the_device_refuses_what_a_gpu_refuses():
    first, second, cpu = (torch.ones(2, 2).to(place) for place in (FIRST, SECOND, "cpu"))
    for other in (second, cpu):
        with pytest.raises(RuntimeError, match=r"gpu:0"):
            first @ other
        with pytest.raises(RuntimeError, match=r"gpu:0"):
            first[0] = other[0] + first[0]
    assert ((first @ first).cpu() == cpu @ cpu).all()
    assert Moves.of(first.cpu) == [(torch.device(FIRST), torch.device("cpu"), first.shape)]


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
