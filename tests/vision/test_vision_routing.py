"""Both towers are routed as the paper's release does, by the machinery that routes language models."""

from dataclasses import asdict

import pytest
import torch
from clip_moe import PUBLISHED, TINY, Release, block_names, published, release_ev

from ssmoe_embed import SpectralRouters, SpectralRouting, UnsupportedModelError, reroute
from ssmoe_embed.families import families, family_of
from ssmoe_embed.routing import EqualWeights, HashRouting, LeastSimilar, RandomRouting
from ssmoe_embed.routing.sites import recording
from ssmoe_embed.routing.tokens import patch_ids
from ssmoe_embed.spectral.eigenvectors import spectral_embeddings
from ssmoe_embed.spectral.settings import SpectralSettings
from ssmoe_embed.vision import (
    PAPER,
    ClipMoeConfig,
    ClipMoeTower,
    Tower,
    VisionRouting,
    reroute_towers,
    spectral_policies,
    spectral_routers,
)
from ssmoe_embed.vision.checkpoint import from_published
from ssmoe_embed.vision.modeling import ClipMoeBlock

PREFIX = {Tower.TEXT: "", Tower.VISION: "visual."}
EOT = TINY["vocabulary"] - 1


@pytest.fixture(scope="module")
def tensors():
    return published()


@pytest.fixture
def model(tensors):
    return from_published(tensors)


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, EOT, (3, 9), generator=generator)
    ids[:, -1] = EOT
    return {"input_ids": ids, "pixel_values": torch.randn(3, 3, 12, 12, generator=generator)}


@torch.no_grad()
def vectors(model, inputs):
    image = model.get_image_features(inputs["pixel_values"]).pooler_output
    return {Tower.VISION: image, Tower.TEXT: model.get_text_features(inputs["input_ids"]).pooler_output}


def of_release(release, inputs):
    return {Tower.VISION: release.image(inputs["pixel_values"]), Tower.TEXT: release.text(inputs["input_ids"])}


def assert_close(found, expected):
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-4, atol=1e-5)


# --- the paper's release ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("towers", "alpha"), [(("vision",), 0.5), (("text",), 0.2), (("vision", "text"), 1.0)])
def test_vectors_equal_the_releases_under_its_routing(model, tensors, inputs, towers, alpha):
    settings = VisionRouting(**asdict(PAPER) | {"alpha": alpha, "towers": towers})
    evs = {name: release_ev(tensors, name) for name in block_names()}
    routed, plain = (of_release(Release(tensors, evs, c), inputs) for c in (alpha, 0))
    before = vectors(model, inputs)
    with reroute_towers(model, spectral_policies(spectral_routers(model, settings, progress=False), settings)):
        found = vectors(model, inputs)
    for tower in Tower:
        assert_close(found[tower], (routed if tower in towers else plain)[tower])
        assert torch.equal(vectors(model, inputs)[tower], before[tower])
        if tower in towers:
            assert not torch.allclose(found[tower], before[tower], atol=1e-3)


def test_the_preset_is_what_the_release_has_in_its_code():
    assert (PAPER.alpha, PAPER.top_c, str(PAPER.sign), str(PAPER.layout)) == (1.0, 5, "raw", "reshape")
    assert PAPER.towers == (Tower.VISION, Tower.TEXT)


def test_spectral_routers_equal_the_releases(model, tensors):
    routers = spectral_routers(model, PAPER, progress=False)
    for tower, prefix in PREFIX.items():
        for n, name in enumerate(block_names(prefixes=(prefix,))):
            torch.testing.assert_close(routers[tower].weights[n], release_ev(tensors, name), rtol=0, atol=1e-5)
        assert len(routers[tower].weights) == TINY["towers"][prefix][1]


def test_the_reshaped_projection_is_another_router_than_the_transposed_one(model, tensors):
    transposed = spectral_routers(model, VisionRouting(**asdict(PAPER) | {"layout": "transpose"}), progress=False)
    for tower, prefix in PREFIX.items():
        name = block_names(prefixes=(prefix,))[0]
        right = {
            key: value.T.reshape(value.shape) if "c_proj.weight" in key else value for key, value in tensors.items()
        }  # what the release would have to reshape to get the transpose
        torch.testing.assert_close(transposed[tower].weights[0], release_ev(right, name), rtol=0, atol=1e-5)
        cosine = torch.cosine_similarity(transposed[tower].weights[0], release_ev(tensors, name), dim=-1)
        assert (cosine < 0.95).all()


def test_a_block_of_the_published_size_gives_the_releases_spectral_router():
    config = ClipMoeConfig(text_config={"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12})
    assert PUBLISHED["towers"][""][0] == 768
    block = ClipMoeBlock(config.text_config)
    generator = torch.Generator().manual_seed(5)
    for parameter in block.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / 28)
    names = {f"x.{name}".replace("fc1", "c_fc").replace("fc2", "c_proj"): p for name, p in block.named_parameters()}
    names["x.gate.weight"] = names["x.gate.weight"][:1]  # one expert says it
    family = ClipMoeTower(PAPER.layout)
    found = spectral_embeddings(
        lambda expert: family.expert_matrices(block, expert),
        names["x.gate.weight"],
        SpectralSettings(PAPER.top_c, sign=PAPER.sign),
    )
    with torch.no_grad():
        torch.testing.assert_close(found, release_ev(names, "x"), rtol=0, atol=1e-5)


# --- what all re-routing promises -------------------------------------------------------------------------------------


def test_alpha_zero_changes_no_bit(model, inputs):
    settings = VisionRouting(alpha=0)
    before = vectors(model, inputs)
    with reroute_towers(model, spectral_policies(spectral_routers(model, settings, progress=False), settings)):
        assert all(torch.equal(found, before[tower]) for tower, found in vectors(model, inputs).items())


def test_a_vector_does_not_depend_on_its_batch(model, inputs):
    routers = spectral_routers(model, progress=False)
    for policies in (
        spectral_policies(routers),
        dict.fromkeys(Tower, EqualWeights(RandomRouting())),
        dict.fromkeys(Tower, HashRouting()),
        {tower: LeastSimilar(routers[tower]) for tower in Tower},
    ):
        with reroute_towers(model, policies):
            together = vectors(model, inputs)
            alone = vectors(model, {name: value[1:2] for name, value in inputs.items()})
        for tower in Tower:
            torch.testing.assert_close(alone[tower], together[tower][1:2], rtol=1e-4, atol=1e-5)


def test_a_policy_that_does_not_fit_leaves_the_other_tower_alone(model, inputs):
    routers = spectral_routers(model, progress=False)
    before = vectors(model, inputs)
    with pytest.raises(ValueError, match="spectral routers were made from"):
        reroute_towers(model, dict.fromkeys((Tower.TEXT, Tower.VISION), SpectralRouting(routers[Tower.TEXT])))
    assert all(torch.equal(found, before[tower]) for tower, found in vectors(model, inputs).items())


def test_without_a_block_the_policies_stay_until_closed(model, inputs):
    before = vectors(model, inputs)
    handle = reroute_towers(model, {"vision": EqualWeights()})
    assert not torch.equal(vectors(model, inputs)[Tower.VISION], before[Tower.VISION])
    handle.close()
    assert torch.equal(vectors(model, inputs)[Tower.VISION], before[Tower.VISION])


def test_one_policy_of_one_tower_is_the_same_reroute(model, tensors, inputs):
    routers = SpectralRouters.from_model(model.vision_model, top_c=5, progress=False)
    ours = spectral_routers(model, VisionRouting(towers="vision"), progress=False)
    assert set(ours) == {Tower.VISION}
    assert all(torch.equal(routers.weights[n], ours[Tower.VISION].weights[n]) for n in routers.weights)
    with reroute(model.vision_model, SpectralRouting(routers, alpha=0.5)):
        found = vectors(model, inputs)
    with reroute_towers(model, spectral_policies(ours, VisionRouting(towers="vision"))):
        assert torch.equal(vectors(model, inputs)[Tower.VISION], found[Tower.VISION])


def test_routers_are_recorded_in_both_towers(model, tensors, inputs):
    with reroute_towers(model, dict.fromkeys(Tower, HashRouting())):
        pass  # puts the sites in place
    release = Release(tensors)
    of_release(release, inputs)
    for tower, name in ((Tower.VISION, "pixel_values"), (Tower.TEXT, "input_ids")):
        with recording(torch.tensor([0])) as taken:
            tower.of(model)(inputs[name])
        for n, block in enumerate(block_names(prefixes=(PREFIX[tower],))):
            two = torch.zeros(4).scatter(0, *(x[0] for x in reversed(taken.logits[n].softmax(-1).topk(2))))
            assert_close(two / two.sum(), release.weights[block].reshape(-1, 4)[0])


# --- controls ---------------------------------------------------------------------------------------------------------


class Watched:
    """A policy, and the weights that the model makes of its logits."""

    def __init__(self, policy):
        self.policy, self.weights, self.learned, self.hidden = policy, {}, {}, {}

    def __getattr__(self, name):
        return getattr(self.policy, name)

    def logits(self, layer, hidden, logits, score):
        made = self.policy.logits(layer, hidden, logits, score)
        top, chosen = made.float().softmax(dim=-1).topk(2, dim=-1)
        self.weights[layer] = torch.zeros(made.shape).scatter(-1, chosen, top / top.sum(dim=-1, keepdim=True))
        self.learned[layer], self.hidden[layer] = logits, hidden
        return made


def watched(model, inputs, make):
    policies = {tower: Watched(make(tower)) for tower in Tower}
    with reroute_towers(model, policies):
        vectors(model, inputs)
    return [(tower, layer, policy) for tower, policy in policies.items() for layer in policy.weights]


def test_equal_weights_keep_the_learned_choice(model, inputs):
    for _, layer, seen in watched(model, inputs, lambda _: EqualWeights()):
        halves = torch.zeros(seen.weights[layer].shape).scatter(-1, seen.learned[layer].topk(2).indices, 0.5)
        assert torch.equal(seen.weights[layer], halves)


def test_random_pairs_are_even_and_reach_all_pairs(model, inputs):
    for tower, layer, seen in watched(model, inputs, lambda _: EqualWeights(RandomRouting(seed=3))):
        assert set(seen.weights[layer].unique().tolist()) == {0.0, 0.5}
        assert (seen.weights[layer].sum(dim=0) > 0).all(), (tower, layer)
        agree = (seen.weights[layer] > 0) & (seen.learned[layer] >= seen.learned[layer].topk(2).values[:, 1:])
        assert agree.sum() < 2 * len(agree)


def test_the_least_similar_are_those_with_the_smallest_spectral_logits(model, inputs):
    routers = spectral_routers(model, progress=False)
    for tower, layer, seen in watched(model, inputs, lambda tower: LeastSimilar(routers[tower])):
        similar = seen.hidden[layer] @ routers[tower].weights[layer].T
        expected = similar.topk(2, largest=False).indices
        weights = torch.zeros(similar.shape).scatter(-1, expected, (-similar).gather(-1, expected).softmax(dim=-1))
        torch.testing.assert_close(seen.weights[layer], weights)


def test_patches_are_told_apart_by_their_pixels_alone():
    pixels = torch.randn(2, 3, 12, 12)
    ids = patch_ids(pixels, 4)
    assert ids.shape == (2, 10)
    assert (ids[:, 0] == 0).all()
    assert len(ids.unique()) == 19
    changed = pixels.clone()
    changed[1, 2, 11, 4] += 1e-3  # in the last row of patches, the second of three
    assert (patch_ids(changed, 4) != ids).nonzero().tolist() == [[1, 8]]
    assert torch.equal(patch_ids(pixels[1:].clone(), 4), ids[1:])


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"towers": ()}, r"towers=\(\) routes nothing"),
        ({"towers": ("image",)}, "towers='image' is not known; choose one of 'vision', 'text'"),
        ({"alpha": 2}, "alpha=2 is outside"),
        ({"layout": "transposed"}, "layout='transposed' is not known.*Did you mean 'transpose'"),
        ({"sign": "none"}, "sign='none' is not known"),
        ({"top_c": 0}, "top_c=0 keeps no eigenvector"),
    ],
)
def test_settings_that_are_not_allowed(wrong, message):
    with pytest.raises(ValueError, match=message):
        VisionRouting(**wrong)


def test_a_whole_model_is_told_to_be_routed_by_towers(model):
    with pytest.raises(ValueError, match=r"ClipMoeModel is routed tower by tower.*reroute_towers"):
        reroute(model, EqualWeights())


def test_a_tower_without_spectral_routers_is_named(model):
    routers = spectral_routers(model, VisionRouting(towers="text"), progress=False)
    with pytest.raises(ValueError, match=r"The towers \['vision'\] have no spectral routers"):
        spectral_policies(routers)


@pytest.mark.parametrize(("wrong", "message"), [(0, "top_k=0 chooses no expert"), (3, "top_k=3, but .* 2 experts")])
def test_equal_weights_of_another_number_of_experts_are_refused(model, wrong, message):
    with pytest.raises(ValueError, match=message):
        reroute(model.text_model, EqualWeights(top_k=wrong))


def test_a_dense_clip_is_refused_and_the_table_of_families_is_of_language_models():
    assert not any("clip" in name for family in families() for name in family.model_types)
    assert type(family_of(ClipMoeConfig().vision_config)) is ClipMoeTower
    from transformers import CLIPVisionConfig

    with pytest.raises(UnsupportedModelError):
        family_of(CLIPVisionConfig())
