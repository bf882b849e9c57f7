"""The ablation's variants are what they say, and its controls change one thing only."""

import pytest
import torch
from torch.nn import functional as F

from ssmoe_embed.embedding.module import SSMoE
from ssmoe_embed.evaluation.ablation import variants
from ssmoe_embed.evaluation.ablation.variants import VARIANTS, Control, controlled, find_variants, routers_of
from ssmoe_embed.families import family_of
from ssmoe_embed.language_model.loading import load
from ssmoe_embed.routing import SpectralRouting, reroute
from ssmoe_embed.routing.mixing import mixed_scores, scores
from ssmoe_embed.spectral.routers import SpectralRouters
from ssmoe_embed.spectral.settings import SpectralSettings

SETTINGS = SpectralSettings(top_c=3)


@pytest.fixture(scope="module")
def module(olmoe):
    return SSMoE.from_base(olmoe, top_c=3, calibration="none", progress=False)


@pytest.fixture(scope="module")
def own(module):
    """The spectral rows of one layer."""
    return next(iter(module.routers.weights.values()))


def test_random_rows_are_orthonormal_up_to_the_spectral_rows_lengths(own):
    first, again, other = (variants.random_orthonormal(own, seed) for seed in (1, 1, 2))
    unit = F.normalize(first, dim=1)
    assert torch.allclose(unit @ unit.T, torch.eye(len(own)), atol=1e-5)
    assert torch.allclose(first.norm(dim=1), own.norm(dim=1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    many = variants.random_orthonormal(torch.ones(7, 3), 0)  # more experts than dimensions
    assert torch.allclose(many.norm(dim=1), torch.full((7,), 3**0.5))


def test_permuted_rows_are_the_same_ones_none_in_its_place(own):
    for seed in range(5):
        rows = variants.permuted(own, seed)
        equal = (rows[:, None] == own[None]).all(dim=2)  # [E,E]
        assert equal.sum() == len(own)
        assert not equal.diagonal().any()


def expert_of(seed):
    """Matrices of an expert, far from square."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(6, 16, generator=generator) for _ in range(3)]


def test_bottom_rows_average_the_eigenvectors_least_similar_to_the_router():
    router = torch.randn(2, 16, generator=torch.Generator().manual_seed(9))
    found = variants.least_similar(expert_of, router, SETTINGS)
    for expert in range(2):
        means = []
        for matrix in expert_of(expert):
            V = torch.linalg.svd(matrix.double(), full_matrices=False)[2]  # [6,16]
            similarity = V @ router[expert].double()
            kept = similarity.abs().argsort()[:3]
            means.append((V[kept] * similarity[kept].sign()[:, None]).mean(dim=0))
        assert torch.allclose(found[expert].double(), torch.stack(means).mean(dim=0), atol=1e-5)


def test_random_signs_keep_the_vectors_that_their_signs_make_similar():
    router = torch.randn(2, 16, generator=torch.Generator().manual_seed(9))

    def one_matrix(expert):
        return expert_of(expert)[:1]

    found = [variants.random_signs(one_matrix, router, SETTINGS, seed) for seed in range(20)]
    assert torch.equal(found[0], variants.random_signs(one_matrix, router, SETTINGS, 0))
    assert len({tuple(rows.flatten().tolist()) for rows in found}) > 10
    for expert in range(2):
        V = torch.linalg.svd(one_matrix(expert)[0].double(), full_matrices=False)[2]  # [6,16]
        similarity = V @ router[expert].double()
        for rows in found:
            share = V @ rows[expert].double()  # how much of each vector the row is made of
            kept = share.abs() > 1e-5
            assert int(kept.sum()) == SETTINGS.top_c
            assert torch.allclose(share[kept].abs(), torch.tensor(1 / 3, dtype=torch.float64), atol=1e-5)
            turned_away = kept & (share * similarity < 0)  # only for want of others
            assert int((kept & ~turned_away).sum()) < SETTINGS.top_c or not turned_away.any()


def test_mean_rows_and_flat_router_are_as_long_as_the_spectral_rows(own):
    rows = variants.mean_rows(expert_of, torch.full((2, 16), 0.5))
    mean = torch.stack([matrix.mean(dim=0) for matrix in expert_of(1)]).mean(dim=0)
    assert torch.allclose(F.normalize(mean, dim=0) * 2, rows[1], atol=1e-6)
    assert torch.allclose(variants.as_long_as(torch.rand(own.shape), own).norm(dim=1), own.norm(dim=1))


def test_every_variant_makes_routers_that_fit_the_model(module):
    for variant in VARIANTS:
        routers = routers_of(variant, module.model, module.routers, 0)
        routers.check(module.model)
        assert all(torch.isfinite(rows).all() for rows in routers.weights.values())
    with pytest.raises(ValueError, match="variant='spectrum' is not known"):
        find_variants(["spectrum"])


@pytest.mark.parametrize(
    "family_name", ["olmoe", "mixtral", "qwen2_moe", "deepseek_v2", "deepseek_v3", "gpt_oss", "jamba"]
)
def test_controls_take_choice_from_one_routing_and_weights_from_the_other(family_name, model_folder):
    model = load(model_folder(family_name), dtype="float32")
    adapter = family_of(model)
    policy = SpectralRouting(SpectralRouters.from_model(model, 3, scale="router", progress=False), 0.6)
    layer = adapter.layers(model)[0]
    x = torch.randn(1, 50, adapter.router_weight(layer.router).shape[1], generator=torch.Generator().manual_seed(0))
    seen = {}
    spy = layer.experts.register_forward_pre_hook(
        lambda _, args, kwargs: seen.update(zip("xiw", (*args, *kwargs.values()), strict=False)), with_kwargs=True
    )
    block = adapter.decoder(model).layers[layer.index]
    block = getattr(block, adapter.block_attribute)

    def routed(control, *, mixed):
        with torch.no_grad(), controlled(model, policy, control):
            if mixed:
                with reroute(model, policy):
                    block(x)
            else:
                block(x)
        order = seen["i"].argsort(dim=1)
        return seen["i"].gather(1, order), seen["w"].float().gather(1, order)

    (own_i, own_w), (mix_i, mix_w) = routed(None, mixed=False), routed(None, mixed=True)
    weights_i, weights_w = routed(Control.WEIGHTS, mixed=True)
    choice_i, choice_w = routed(Control.CHOICE, mixed=True)
    spy.remove()
    assert torch.equal(weights_i, own_i)
    assert torch.equal(choice_i, mix_i)
    assert not torch.equal(own_i, mix_i)
    same = (own_i == mix_i).all(dim=1)
    assert same.any()
    assert torch.allclose(weights_w[same], mix_w[same], atol=1e-5)  # where both choose alike, only weights are left
    assert torch.allclose(choice_w[same], own_w[same], atol=1e-5)
    learned = F.linear(x[0], adapter.router_weight(layer.router), getattr(layer.router, "bias", None)).float()
    p = mixed_scores(learned, policy.routers.logits(layer.index, x[0]), 0.6, policy.mix, adapter.score).gather(1, own_i)
    q = scores(learned, adapter.score).gather(1, mix_i)
    assert torch.allclose(F.normalize(weights_w, dim=1), F.normalize(p, dim=1), atol=1e-5)
    assert torch.allclose(F.normalize(choice_w, dim=1), F.normalize(q, dim=1), atol=1e-5)


def test_controls_are_refused_where_a_family_does_not_tell_its_choice(model_folder):
    model = load(model_folder("llama4"))
    policy = SpectralRouting(SpectralRouters.from_model(model, 3, progress=False), 0.5)
    refused = pytest.raises(ValueError, match="leave the variants weights-only and choice-only out")
    with refused, controlled(model, policy, Control.WEIGHTS):
        model(input_ids=torch.arange(3, 9)[None])
