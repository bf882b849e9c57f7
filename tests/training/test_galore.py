"""GaLore with experts: the steps of galore-torch for matrices, and the same expert by expert in a fused tensor."""

import copy

import pytest
import torch
from galore_torch import GaLoreAdamW as Reference
from torch import nn
from transformers import AutoModelForCausalLM

from ssmoe_embed.training.galore import GaLoreAdamW, GaLoreSettings, galore_groups

SHAPES = [(12, 7), (7, 12), (9, 9)]


def gradients(shape, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(steps)]


def trained(optimizer, parameter, given):
    for gradient in given:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


def start(shape, seed=9):
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", ["std", "reverse_std", "left", "right"])
def test_a_matrix_makes_the_steps_of_galore_torch(shape, side):
    ours, theirs = start(shape), start(shape)
    low = {"rank": 3, "update_proj_gap": 4, "scale": 0.5, "proj_type": side}
    reference = Reference([{"params": [theirs], **low}], lr=0.01, weight_decay=0.1, no_deprecation_warning=True)
    settings = {"rank": 3, "update_gap": 4, "scale": 0.5, "side": side}
    made = GaLoreAdamW([{"params": [ours], **settings}], lr=0.01, weight_decay=0.1)
    given = gradients(shape, 10)
    torch.testing.assert_close(trained(made, ours, given), trained(reference, theirs, given), rtol=0, atol=1e-6)


@pytest.mark.parametrize("changes", [{}, {"carry_moments": True}, {"side": "left"}, {"bits": 8}], ids=str)
def test_experts_in_one_tensor_are_treated_one_by_one(changes):
    settings = {"rank": 3, "update_gap": 4} | changes
    fused = start((5, 12, 8))
    alone = [nn.Parameter(expert.clone()) for expert in fused.detach()]
    given = gradients((5, 12, 8), 9)
    made = trained(GaLoreAdamW([{"params": [fused], **settings}]), fused, given)
    for number, expert in enumerate(alone):
        optimizer = GaLoreAdamW([{"params": [expert], **settings}])
        found = trained(optimizer, expert, [gradient[number] for gradient in given])
        close = {"rtol": 0, "atol": 2e-3 if "bits" in changes else 1e-5}  # blocks of 256 share a scale in 8 bits
        torch.testing.assert_close(made[number], found, **close)


def test_a_group_without_a_rank_makes_the_steps_of_adamw():
    ours, theirs = start((6, 4)), start((6, 4))
    given = gradients((6, 4), 8)
    made = GaLoreAdamW([ours], lr=0.01)
    reference = torch.optim.AdamW([theirs], lr=0.01, eps=1e-6, weight_decay=0)
    torch.testing.assert_close(trained(made, ours, given), trained(reference, theirs, given), rtol=0, atol=1e-5)


def test_carried_moments_are_those_of_the_gradients_in_the_new_subspace():
    """With a full-rank basis nothing is lost: a change of it must not change the first moment in the matrix's own space."""
    parameter = start((6, 4))
    settings = {"rank": 4, "update_gap": 3, "carry_moments": True}
    optimizer = GaLoreAdamW([{"params": [parameter], **settings}])
    given, moment = gradients((6, 4), 7), torch.zeros(6, 4)
    for gradient in given:
        parameter.grad = gradient.clone()
        optimizer.step()
        moment = 0.9 * moment + 0.1 * gradient
    state = optimizer.state[parameter]
    torch.testing.assert_close(state["exp_avg"] @ state["basis"], moment, rtol=0, atol=1e-6)


@pytest.mark.parametrize("changes", [{}, {"bits": 8}, {"basis": "random", "seed": 3}], ids=str)
def test_training_goes_on_from_a_saved_state_with_the_same_steps(changes):
    settings = {"rank": 3, "update_gap": 4} | changes
    whole, parts = start((5, 12, 8)), start((5, 12, 8))
    given = gradients((5, 12, 8), 9)
    expected = trained(GaLoreAdamW([{"params": [whole], **settings}]), whole, given)
    first = GaLoreAdamW([{"params": [parts], **settings}])
    trained(first, parts, given[:6])
    second = GaLoreAdamW([{"params": [parts], **settings}])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert torch.equal(trained(second, parts, given[6:]), expected)


def test_updates_as_gradients_arrive_are_the_same_and_leave_no_gradient():
    layers = [nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8)) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(2))
    optimizers = [GaLoreAdamW(galore_groups(layer, GaLoreSettings(rank=3, update_gap=2))) for layer in layers]
    optimizers[1].update_as_gradients_arrive()
    for _ in range(5):
        for layer, optimizer in zip(layers, optimizers, strict=True):
            layer(x).square().sum().backward()
            if layer is layers[1]:
                assert all(parameter.grad is None for parameter in layer.parameters())
            optimizer.step()
            optimizer.zero_grad()
    for one, two in zip(layers[0].parameters(), layers[1].parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


def test_experts_are_projected_and_embeddings_norms_and_routers_are_not(olmoe):
    model = AutoModelForCausalLM.from_pretrained(olmoe)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    low, full = (
        {names[id(p)] for p in group["params"]}
        for group in galore_groups(model, GaLoreSettings(rank=8), weight_decay=0.1)
    )
    assert {name for name in names.values() if ".experts." in name or "_proj.weight" in name} <= low
    assert not [name for name in low if "norm" in name or "embed" in name or "lm_head" in name or "gate.weight" in name]
    assert low | full == set(names.values())
    optimizer = GaLoreAdamW(galore_groups(model, GaLoreSettings(rank=2)), lr=1e-3)
    before = model.model.layers[0].mlp.experts.gate_up_proj.clone()
    model(input_ids=torch.tensor([[3, 4, 5, 6]]), labels=torch.tensor([[3, 4, 5, 6]])).loss.backward()
    optimizer.step()
    assert not torch.equal(model.model.layers[0].mlp.experts.gate_up_proj, before)
    moments = optimizer.state[model.model.layers[0].mlp.experts.gate_up_proj]["exp_avg"]
    assert moments.shape[-1] == 2 or moments.shape[-2] == 2


def test_a_rank_above_the_matrices_is_refused_before_the_first_step(olmoe):
    model = AutoModelForCausalLM.from_pretrained(olmoe)
    with pytest.raises(ValueError, match="rank=500 is not below the shorter side of any matrix"):
        galore_groups(model, GaLoreSettings(rank=500))
    with pytest.raises(ValueError, match=r"rank=9 does not fit a parameter of shape \(12, 8\)"):
        GaLoreAdamW([{"params": [start((12, 8))], "rank": 9}])
    with pytest.raises(ValueError, match="bits=4"):
        GaLoreSettings(bits=4)
    with pytest.raises(ValueError, match="'svd', 'random'"):
        GaLoreSettings(basis="pca")


def test_moments_of_experts_take_a_fraction_of_adams():
    parameter = start((4, 64, 32))
    optimizer = GaLoreAdamW([{"params": [parameter], "rank": 4}])
    trained(optimizer, parameter, gradients((4, 64, 32), 1))
    full = 2 * parameter.numel() * 4
    assert optimizer.state_bytes() == 4 * 4 * (2 * 64 * 4 + 4 * 32)
    assert optimizer.state_bytes() < 0.2 * full
