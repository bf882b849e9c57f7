"""Hash and random routing: what a token's experts depend on, and what they do not."""

import copy
import pickle

import pytest
import torch
from reference import routers_of, watched
from tiny import EXPERTS, VOCABULARY
from transformers import AutoModelForCausalLM

from ssmoe_embed import SpectralRouters, SpectralRouting, reroute
from ssmoe_embed.routing import HashRouting, RandomRouting
from ssmoe_embed.routing.tokens import dealt, expert_order

POLICIES = [HashRouting(seed=1), RandomRouting(seed=1)]


@pytest.fixture(scope="module")
def model(olmoe):
    return AutoModelForCausalLM.from_pretrained(olmoe).eval()


@pytest.fixture(scope="module")
def ids():
    return torch.randint(3, VOCABULARY, (2, 11), generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def chosen(model, **inputs):
    """The experts of every token, `[B,T,k]`, by layer."""
    rows = len(next(iter(inputs.values())))
    with watched(model) as seen:
        model(**inputs)
    return {layer: calls[-1][1][2].reshape(rows, -1, calls[-1][1][2].shape[-1]) for layer, calls in seen.items()}


def sets(experts):
    return experts.sort(dim=-1).values


def test_the_weights_stay_the_routers_own():
    logits = torch.randn(6, EXPERTS, generator=torch.Generator().manual_seed(0))
    order = expert_order(3, 0, (torch.arange(6),), EXPERTS)
    found = dealt(logits, order)
    for row, experts, values in zip(logits, order, found, strict=True):
        assert sorted(experts.tolist()) == list(range(EXPERTS))
        assert values[experts].tolist() == sorted(row.tolist(), reverse=True)


def test_hashed_experts_follow_from_the_token_alone(model, ids):
    ids = ids.clone()
    ids[1, 7] = ids[0, 2]
    with reroute(model, HashRouting(seed=1)):
        for experts in chosen(model, input_ids=ids).values():
            assert torch.equal(sets(experts[1, 7]), sets(experts[0, 2]))


def test_random_experts_differ_from_place_to_place(model):
    same = torch.full((1, 40), 17)
    with reroute(model, RandomRouting(seed=1)):
        for experts in chosen(model, input_ids=same).values():
            assert len({tuple(row) for row in sets(experts[0]).tolist()}) > 10


def test_random_experts_are_used_about_equally_often():
    order = expert_order(0, 2, (torch.arange(4000), torch.arange(4000) % 7), EXPERTS)
    for place in range(EXPERTS):
        counts = torch.bincount(order[:, place], minlength=EXPERTS).double()
        chi_squared = float(((counts - 4000 / EXPERTS) ** 2 / (4000 / EXPERTS)).sum())
        assert chi_squared < 24.3  # 99.9 % of a chi-squared with 7 degrees of freedom


@pytest.mark.parametrize("policy", POLICIES, ids=["hash", "random"])
def test_layers_and_seeds_choose_differently(policy, model, ids):
    with reroute(model, policy):
        first = chosen(model, input_ids=ids)
    with reroute(model, type(policy)(seed=2)):
        other = chosen(model, input_ids=ids)
    layers = sorted(first)
    assert not torch.equal(sets(first[layers[0]]), sets(first[layers[1]]))
    assert not torch.equal(sets(first[layers[0]]), sets(other[layers[0]]))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("policy", POLICIES, ids=["hash", "random"])
def test_padding_changes_no_choice(policy, side, model, ids):
    padding = torch.zeros(1, 4, dtype=torch.long)
    text, ones = ids[:1], torch.ones_like(ids[:1])
    parts = (padding, text) if side == "left" else (text, padding)
    masks = (padding, ones) if side == "left" else (ones, padding)
    real = slice(4, None) if side == "left" else slice(0, -4)
    with reroute(model, policy):
        alone = chosen(model, input_ids=text, attention_mask=ones)
        padded = chosen(model, input_ids=torch.cat(parts, dim=1), attention_mask=torch.cat(masks, dim=1))
    for layer, experts in alone.items():
        assert torch.equal(sets(experts[0]), sets(padded[layer][0, real]))


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("policy", POLICIES, ids=["hash", "random"])
@torch.no_grad()
def test_a_cache_changes_no_choice(policy, masked, model, ids):
    ones = torch.ones_like(ids)
    with reroute(model, policy):
        whole = chosen(model, input_ids=ids)
        cache = model(ids[:, :6], use_cache=True).cache
        mask = {"attention_mask": ones} if masked else {}
        rest = chosen(model, input_ids=ids[:, 6:], cache=cache, **mask)
    for layer, experts in whole.items():
        assert torch.equal(sets(experts[:, 6:]), sets(rest[layer]))


@pytest.mark.parametrize("policy", POLICIES, ids=["hash", "random"])
@torch.no_grad()
def test_it_does_not_matter_how_the_model_is_given_its_arguments(policy, model, ids):
    """By position or by name, the cache by its name of today or by that of earlier versions."""
    mask = torch.ones_like(ids)
    mask[:, :2] = 0
    with reroute(model, policy):
        named = model(input_ids=ids, attention_mask=mask, use_cache=True)
        placed = model(ids, mask)
        caches = [model(ids[:, :6], use_cache=True).cache for _ in range(3)]
        later = [
            model(ids[:, 6:], cache=caches[0]).logits,
            model(ids[:, 6:], past_key_values=caches[1]).logits,
            model(ids[:, 6:], None, None, caches[2]).logits,
        ]
    assert torch.equal(named.logits, placed.logits)
    assert torch.equal(later[0], later[1])
    assert torch.equal(later[0], later[2])


@pytest.mark.parametrize("policy", POLICIES, ids=["hash", "random"])
@torch.no_grad()
def test_removing_gives_the_model_back_and_copies_keep_the_policy(policy, olmoe, ids):
    model = AutoModelForCausalLM.from_pretrained(olmoe).eval()
    untouched = model(ids).logits
    handle = reroute(model, policy)
    routed = model(ids).logits
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    handle.remove()
    assert not torch.equal(routed, untouched)
    assert torch.equal(model(ids).logits, untouched)
    assert not model._forward_pre_hooks
    for other in copies:
        assert torch.equal(other(ids).logits, routed)


def test_without_token_ids_it_says_what_is_missing(model, ids):
    embedded = model.get_input_embeddings()(ids)
    with reroute(model, HashRouting()), pytest.raises(ValueError, match="input_ids"):
        model(ids) and model(inputs_embeds=embedded)


@pytest.mark.parametrize("policy", POLICIES, ids=["hash", "random"])
@torch.no_grad()
def test_every_family_can_be_routed_by_token(policy, family, model_folder, ids):
    model = AutoModelForCausalLM.from_pretrained(model_folder(family)).eval()
    with reroute(model, policy):
        found = chosen(model, input_ids=ids)
    assert sorted(found) == sorted(routers_of(model))
    for layer, experts in found.items():
        keys = (ids.reshape(-1),) if type(policy) is HashRouting else (ids.reshape(-1), torch.arange(11).repeat(2))
        order = expert_order(1, layer, keys, EXPERTS)
        assert torch.equal(sets(experts.reshape(22, -1)), sets(order[:, : experts.shape[-1]]))


def test_the_average_eigenvector_routers_do_not_need_the_learned_one(model, ids):
    routers = SpectralRouters.from_model(model, select="average", sign="canonical", progress=False)
    other = copy.deepcopy(model)
    for router in routers_of(other).values():
        router.weight.data.mul_(-1)
    again = SpectralRouters.from_model(other, select="average", sign="canonical", progress=False)
    for layer, weight in routers.weights.items():
        torch.testing.assert_close(again.weights[layer], weight)
    with reroute(model, SpectralRouting(routers, alpha=1)):
        assert chosen(model, input_ids=ids)
