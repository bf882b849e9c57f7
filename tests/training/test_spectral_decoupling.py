"""Experts divided into what they share and what is their own: the function stays, gradients are divided as it says."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from ssmoe_embed import UnsupportedModelError
from ssmoe_embed.training.reparametrization import DecouplingSettings, decouple

IDS = torch.tensor([[3, 14, 15, 92, 65, 35]])
Q = 3


@pytest.fixture
def model(olmoe):
    return AutoModelForCausalLM.from_pretrained(olmoe).eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def projectors(common):
    """`P_U` and `P_V` of a common part `[m,n]` in float64."""
    left, _, right = torch.linalg.svd(common.double(), full_matrices=False)
    return left[:, :Q] @ left[:, :Q].T, right[:Q].T @ right[:Q]


def test_decoupling_changes_no_output_and_merging_gives_an_ordinary_model_back(model):
    before, names = logits(model), sorted(model.state_dict())
    weight = model.model.layers[0].mlp.experts.gate_up_proj.detach().clone()
    handle = decouple(model, DecouplingSettings(q=Q))
    assert not isinstance(model.model.layers[0].mlp.experts.gate_up_proj, torch.nn.Parameter)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-5)
    handle.merge()
    assert sorted(model.state_dict()) == names
    assert isinstance(model.model.layers[0].mlp.experts.gate_up_proj, torch.nn.Parameter)
    torch.testing.assert_close(model.model.layers[0].mlp.experts.gate_up_proj.detach(), weight, rtol=0, atol=1e-6)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-5)


def parts_of(model, name):
    kept = model.model.layers[0].mlp.experts.parametrizations[name]
    return kept.original0, kept.original1


def test_the_common_part_is_the_mean_expert_of_low_rank(model):
    weight = model.model.layers[0].mlp.experts.gate_up_proj.detach().clone()
    decouple(model, DecouplingSettings(q=Q))
    common, own = parts_of(model, "gate_up_proj")
    size = common.shape[0] // 2
    for part in (slice(0, size), slice(size, None)):  # gate and up have bases of their own
        left, values, right = torch.linalg.svd(weight[:, part].double().mean(dim=0), full_matrices=False)
        expected = (left[:, :Q] * values[:Q]) @ right[:Q]
        torch.testing.assert_close(common[part].double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(own, weight - common, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("common_by", "share"), [("sum", 1), ("average", 8)])
def test_gradients_are_divided_by_the_projectors(common_by, share, model):
    model(input_ids=IDS, labels=IDS).loss.backward()
    whole = {
        name: getattr(model.model.layers[0].mlp.experts, name).grad.double() for name in ("gate_up_proj", "down_proj")
    }
    decouple(model, DecouplingSettings(q=Q, common=common_by))
    model(input_ids=IDS, labels=IDS).loss.backward()
    for name, gradient in whole.items():
        common, own = parts_of(model, name)
        stacked = 2 if name == "gate_up_proj" else 1
        for part in torch.arange(common.shape[0]).chunk(stacked):
            p_u, p_v = projectors(common.detach()[part])
            keep_u, keep_v = torch.eye(len(p_u)) - p_u, torch.eye(len(p_v)) - p_v
            total = gradient[:, part].sum(dim=0)
            expected = (p_u @ total + keep_u @ total @ p_v) / share
            torch.testing.assert_close(common.grad[part].double(), expected, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(
                own.grad[:, part].double(), keep_u @ gradient[:, part] @ keep_v, rtol=1e-4, atol=1e-6
            )


def test_strictly_the_own_parts_are_orthogonal_to_the_common_bases(model):
    weight = model.model.layers[0].mlp.experts.down_proj.detach().clone()
    before = logits(model)
    decouple(model, DecouplingSettings(q=Q, strict=True))
    common, own = parts_of(model, "down_proj")
    p_u, p_v = projectors(common.detach())
    assert (p_u @ own.double()).abs().max() < 1e-5
    assert (own.double() @ p_v).abs().max() < 1e-5
    keep = (torch.eye(len(p_u)) - p_u) @ weight.double() @ (torch.eye(len(p_v)) - p_v)
    torch.testing.assert_close(own.double(), keep, rtol=0, atol=1e-5)
    assert not torch.allclose(logits(model), before, atol=1e-4)


def test_refreshed_bases_are_those_of_the_common_part_as_it_is_now(model):
    handle = decouple(model, DecouplingSettings(q=Q))
    common, own = parts_of(model, "down_proj")
    with torch.no_grad():
        common.copy_(torch.randn(common.shape, generator=torch.Generator().manual_seed(0)))
    handle.refresh()
    model(input_ids=IDS, labels=IDS).loss.backward()
    p_u, p_v = projectors(common.detach())
    assert (p_u @ own.grad.double()).abs().max() < 1e-6
    assert (own.grad.double() @ p_v).abs().max() < 1e-6


def test_what_cannot_be_decoupled_is_refused_and_left_as_it_was(model, model_folder):
    names = sorted(model.state_dict())
    with pytest.raises(ValueError, match=r"q=500 is above the rank \d+ of the expert matrices"):
        decouple(model, DecouplingSettings(q=500))
    assert sorted(model.state_dict()) == names
    decouple(model, DecouplingSettings(q=Q))
    with pytest.raises(ValueError, match="decoupled already"):
        decouple(model, DecouplingSettings(q=Q))
    other = AutoModelForCausalLM.from_pretrained(model_folder("gpt_oss"))
    with pytest.raises(UnsupportedModelError, match="gate rows before up rows"):
        decouple(other)
    with pytest.raises(ValueError, match="'average', 'sum'"):
        DecouplingSettings(common="mean")
