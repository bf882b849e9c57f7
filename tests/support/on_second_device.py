"""Every family on one device, on two and beside the CPU, in the processes of `test_second_device.py`.

The families are dealt out to several runs, each with the variable `SHARE` (`0/2` is the first of two).
"""

import os

import pytest
import torch
from having import having
from layouts import LAYOUTS
from second_device import Moves
from tiny import TOP_C
from transformers import AutoModel

from ssmoe_embed import SpectralRouters, SSMoE
from ssmoe_embed.families import family_of, load_config, register_families
from ssmoe_embed.quantization.packed import is_packed
from ssmoe_embed.spectral import eigenvectors

FIRST, SECOND = "gpu:0", "gpu:1"
METHODS = ("moee", "ssmoe")  # between them every block and both forward passes
ALL_METHODS = ("router", "smoe", "moee", "ev", "ssmoe", "ssmoe-hidden")
SHARE, SHARES = map(int, os.environ.get("SHARE", "0/1").split("/"))
SETTINGS = {"top_c": TOP_C, "scale": "router", "calibration": "none", "alpha": 0.6, "progress": False}
PLAIN = {"attn_implementation": "eager", "experts_implementation": "eager"}
TEXTS = ["a", "How do I undo the last commit?", "She sold her old bicycle, and bought a newer one from the shop."]


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


@pytest.fixture(scope="module", params=sorted(LAYOUTS)[SHARE::SHARES])
def folder(request, model_folder):
    return model_folder(request.param)


@pytest.fixture(scope="module", params=[None, "paper-nf4"])
def quantize(request):
    return request.param


@pytest.fixture(scope="module")
def on_cpu(folder, quantize):
    """The model in one place; never change it but for its settings."""
    return embedding_model(folder, quantize)


def test_layers_spread_over_two_devices_make_the_same_vectors(folder, quantize, on_cpu):
    module = embedding_model(folder, quantize, spread(folder, FIRST, SECOND))
    layers = family_of(module.model).decoder(module.model).layers
    for index, layer in enumerate(layers):
        assert places(layer) == {(FIRST, SECOND)[index % 2]}
    assert is_packed(module) == (quantize is not None)
    for method in ALL_METHODS if folder.name == "olmoe" else METHODS:
        for each in (module, on_cpu):
            having(each, method=method)
        assert torch.allclose(embed(module, FIRST).cpu(), embed(on_cpu), atol=1e-5), method


@pytest.mark.parametrize("quantize", [None], indirect=True)
def test_layers_offloaded_to_the_cpu_beside_a_device_make_the_same_vectors(folder, on_cpu):
    module = embedding_model(folder, None, spread(folder, FIRST, "cpu"))
    assert "meta" in places(module.model)
    for method in METHODS:
        for each in (module, on_cpu):
            having(each, method=method)
        assert torch.allclose(embed(module, FIRST).cpu(), embed(on_cpu), atol=1e-5), method


def test_a_forward_pass_on_a_device_takes_nothing_from_it_and_brings_nothing(folder):
    module = embedding_model(folder, "paper-nf4", {"": FIRST})
    assert places(module.model) == {FIRST}
    features = {name: value.to(FIRST) for name, value in module.preprocess(TEXTS).items()}
    with torch.inference_mode():
        module.forward(features)  # places W_EV
        moved = [move for move in Moves.of(lambda: module.forward(features)) if move[-1].numel() > 0]
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
