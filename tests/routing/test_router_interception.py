"""Only the logits of the router itself are replaced, whatever else its forward computes."""

from concurrent.futures import ThreadPoolExecutor

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


class Kind(torch.Tensor):
    """A kind of tensor of one's own, as fake and distributed tensors are."""


def routed(model, hidden):
    """What the first router answers."""
    return model.layers[0].mlp.gate(hidden)


@pytest.fixture
def hidden(model):
    return torch.randn(2, 3, model.config.hidden_size, generator=torch.Generator().manual_seed(5))


def test_what_the_router_makes_of_its_input_first_is_seen(model, routers, hidden):
    policy = SpectralRouting(routers, alpha=0.5)
    with reroute(model, policy):
        expected = routed(model, hidden)

    def change(forward):
        def changed(router, hidden):
            hidden = 2.0 * hidden.transpose(0, 1).double().contiguous()
            hidden *= 0.5
            return forward(router, hidden.transpose(0, 1).to(torch.float32))

        return changed

    with reroute(with_forward(model, change), policy):
        for own, found in zip(expected, routed(model, hidden), strict=True):
            torch.testing.assert_close(found, own)


def test_what_the_router_hands_out_are_plain_tensors(model, routers, hidden):
    def change(forward):
        def changed(router, hidden):
            logits, weights, index = forward(router, hidden)
            return logits, weights.to(hidden), index, hidden, hidden + logits.sum()

        return changed

    with reroute(with_forward(model, change), SpectralRouting(routers, alpha=0.5)):
        *_, same, summed = found = routed(model, hidden)
    assert {type(part) for part in found} == {torch.Tensor}
    assert torch.equal(same, hidden)
    assert torch.equal(summed, hidden + found[0].sum())


def test_another_kind_of_tensor_is_routed_alike(model, routers, hidden):
    with reroute(model, SpectralRouting(routers, alpha=0.5)):
        for plain, of_a_kind in zip(routed(model, hidden), routed(model, hidden.as_subclass(Kind)), strict=True):
            assert torch.equal(plain, of_a_kind.as_subclass(torch.Tensor))


def test_several_threads_run_one_model(model, routers):
    ids = [torch.tensor([[3 + i, 5, 7 + i, 8]]) for i in range(8)]

    @torch.no_grad()
    def embed(one):
        return model(input_ids=one).last_hidden_state

    with reroute(model, SpectralRouting(routers, alpha=0.5)), ThreadPoolExecutor(4) as threads:
        expected = [embed(one) for one in ids]
        for own, found in zip(expected * 4, threads.map(embed, ids * 4), strict=True):
            torch.testing.assert_close(found, own, rtol=0, atol=1e-6)  # threads may share work out otherwise


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
