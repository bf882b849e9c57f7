"""A place that is not there is an error before anything is read, and full memory is not taken for a broken checkpoint."""

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

import ssmoe_embed
from ssmoe_embed import SSMoE, language_model
from ssmoe_embed.common.loading import check_device, check_device_map

NOT_HERE = ("cuda:99", {"": "cuda:99"}, {"layers": 99, "": "cpu"}, 99)
HERE = (None, "cpu", "auto", "sequential", torch.device("cpu"), {"": "cpu", "layers": "disk"})


@pytest.fixture
def unread(monkeypatch):
    """Reading a checkpoint is an error."""

    def read(*args, **kwargs):
        raise AssertionError("something was read")

    for kind in (AutoModel, AutoModelForCausalLM):
        monkeypatch.setattr(kind, "from_pretrained", read)


@pytest.mark.parametrize("device", ["cuda:99", "mps:99", "gpu"])
def test_a_device_that_is_not_there_is_named_with_those_that_are(device, unread):
    with pytest.raises(ValueError, match=rf"device='{device}' cannot be used here; this machine has cpu"):
        ssmoe_embed.load(device=device)


@pytest.mark.parametrize("place", NOT_HERE, ids=str)
@pytest.mark.parametrize("load", [SSMoE.from_base, ssmoe_embed.load, language_model.load])
def test_a_device_map_of_devices_that_are_not_there_is_refused(load, place, olmoe, unread):
    places = {"device_map": place}
    with pytest.raises(ValueError, match=r"device_map='?(cuda:)?99'? "):
        load(olmoe, **(places if load is language_model.load else {"model_kwargs": places}))


@pytest.mark.parametrize("place", HERE, ids=str)
def test_other_device_maps_pass(place):
    check_device_map(place)
    check_device("cpu")


@pytest.mark.parametrize("load", [SSMoE.from_base, language_model.load])
def test_full_memory_is_not_taken_for_a_broken_checkpoint(load, olmoe, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    for kind in (AutoModel, AutoModelForCausalLM):
        monkeypatch.setattr(kind, "from_pretrained", full)
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        load(olmoe)
