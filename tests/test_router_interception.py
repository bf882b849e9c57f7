"""Only the logits of the router itself are replaced, whatever else its forward computes."""

import pytest
import torch
from tiny import TOP_C
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel

from ssmoe_embed import SpectralRouters, SpectralRouting, reroute

IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture
def model(olmoe):
    return AutoModel.from_pretrained(olmoe).eval()


@pytest.fixture(scope="module")
def routers(olmoe):
    return SpectralRouters.from_checkpoint(olmoe, top_c=TOP_C, progress=False)


@torch.no_grad()
def run(model):
    return model(input_ids=IDS).last_hidden_state


def with_forward(model, change):
    """The model with another forward of its first router, made by `change` of the class's own."""
    router = model.layers[0].mlp.gate
    own = type(router)
    router.__class__ = type("Changed", (own,), {"forward": change(own.forward)})
    return model


def test_another_linear_map_of_the_same_shape_in_the_router_is_left_alone(model, routers):
    with reroute(model, SpectralRouting(routers, alpha=0.5)):
        expected = run(model)
    other = torch.randn_like(model.layers[0].mlp.gate.weight)
    seen = []

    def change(forward):
        def changed(router, hidden):
            before = F.linear(hidden.reshape(-1, hidden.shape[-1]), other)
            seen.append(torch.equal(before, hidden.reshape(-1, hidden.shape[-1]) @ other.T))
            return forward(router, hidden)

        return changed

    with reroute(with_forward(model, change), SpectralRouting(routers, alpha=0.5)):
        assert torch.equal(run(model), expected)
    assert seen == [True]


def test_a_copy_of_the_weight_that_the_router_makes_first_is_the_weight(model, routers):
    with reroute(model, SpectralRouting(routers, alpha=0.5)):
        expected = run(model)

    def change(forward):
        def changed(router, hidden):
            logits = F.linear(hidden.reshape(-1, hidden.shape[-1]).double(), router.weight.to(torch.float64))
            weights, index = logits.softmax(dim=-1).topk(router.top_k, dim=-1)
            return logits, weights.float(), index

        return changed

    with reroute(with_forward(model, change), SpectralRouting(routers, alpha=0.5)):
        torch.testing.assert_close(run(model), expected, rtol=0, atol=1e-5)


def test_a_router_that_does_without_a_linear_map_by_its_weight_is_an_error_not_a_silent_no(model, routers):
    def change(forward):
        def changed(router, hidden):
            logits = torch.einsum("nh,eh->ne", hidden.reshape(-1, hidden.shape[-1]), router.weight)
            weights, index = logits.softmax(dim=-1).topk(router.top_k, dim=-1)
            return logits, weights, index

        return changed

    untouched = run(with_forward(model, change))
    handle = reroute(model, SpectralRouting(routers, alpha=0.5))
    with pytest.raises(ValueError, match=r"router of layer 0 \(Changed\).*0 times"):
        run(model)
    handle.remove()
    assert torch.equal(run(model), untouched)


def test_a_weight_that_is_put_in_place_late_is_found(model, routers):
    """As offloading does: until the router runs, its weight is on the meta device."""
    with reroute(model, SpectralRouting(routers, alpha=0.5)):
        expected = run(model)
    router = model.layers[0].mlp.gate
    weight, forward = router.weight, router.forward
    handle = None

    def placed(hidden):
        router.weight = weight
        try:
            return forward(hidden)
        finally:
            router.weight = nn.Parameter(weight.to("meta"), requires_grad=False)

    router.forward = placed
    router.weight = nn.Parameter(weight.to("meta"), requires_grad=False)
    handle = reroute(model, SpectralRouting(routers, alpha=0.5))
    assert torch.equal(run(model), expected)
    handle.remove()
