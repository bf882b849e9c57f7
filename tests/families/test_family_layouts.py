"""What holds for every family: each promise, checked against the description of that family in tests/support/layouts/."""

import copy

import pytest
import torch
from having import having
from layouts import EACH, LAYOUTS
from layouts.base import EXPERTS, HIDDEN
from reference import spectral_weights, stored_tensors
from routed import ALL_TOKENS, TEXTS, decisions, embed, run, spread
from tiny import TOP_C
from transformers import AutoTokenizer

from ssmoe_embed import SpectralRouters, SpectralRouting, SSMoE, reroute
from ssmoe_embed.checkpoints import Checkpoint
from ssmoe_embed.families import family_of, load_config, register_families, supported_types
from ssmoe_embed.routing.sites import install_sites, recording

METHODS = ("router", "smoe", "moee", "ev", "ssmoe")


@pytest.fixture(scope="module", params=EACH)
def layout(request):
    return LAYOUTS[request.param]


@pytest.fixture(scope="module")
def folder(layout, model_folder):
    return model_folder(layout.model_type)


@pytest.fixture(scope="module")
def tensors(folder):
    return stored_tensors(folder)


@pytest.fixture(scope="module")
def model(layout, folder):
    """The language model, loaded from its checkpoint; never change it."""
    register_families()
    return layout.auto.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def adapter(model):
    return family_of(model)


@pytest.fixture(scope="module")
def routers(folder):
    return SpectralRouters.from_checkpoint(folder, top_c=TOP_C, scale="router", progress=False)


@pytest.fixture(scope="module")
def module(folder):
    return SSMoE.from_base(folder, top_c=TOP_C, calibration="none", progress=False)


# --- where things are -------------------------------------------------------------------------------------------------


def test_it_has_an_adapter_with_notes(layout):
    assert layout.model_type in supported_types()
    notes = family_of(layout.make_config()).notes
    assert all(isinstance(text, str) and text for text in vars(notes).values())


def test_the_sparse_layers_are_found_in_memory_and_on_disk(layout, adapter, model, folder):
    layers = adapter.layers(model)
    assert {layer.index: layer.router for layer in layers} == layout.routers(model)
    assert adapter.layers(layout.decoder(model)) == layers
    assert [layer.index for layer in layers] == list(layout.sparse)
    checkpoint, depth = Checkpoint.open(folder), len(layout.decoder(model).layers)
    for stored in (adapter.stored_layers(checkpoint), adapter.stored_expert_layers(checkpoint)):
        assert [index for index in sorted(stored) if index < depth] == list(layout.sparse)


def test_routers_and_experts_are_slices_of_the_checkpoint_with_rows_in_hidden_space(
    layout, adapter, model, tensors, folder
):
    checkpoint = Checkpoint.open(folder)
    prefixes = adapter.stored_layers(checkpoint)
    for layer in adapter.layers(model):
        expected = layout.router(tensors, layer.index)
        assert expected.shape == (EXPERTS, HIDDEN)
        assert adapter.expert_count(layer) == EXPERTS
        for found in (
            adapter.router_weight(layer.router),
            adapter.stored_router(checkpoint, prefixes[layer.index], layer.index),
        ):
            assert torch.equal(found.double(), expected)
        for expert in (0, 3, EXPERTS - 1):
            live = adapter.expert_matrices(layer.block, expert)
            stored = adapter.stored_matrices(checkpoint, prefixes[layer.index], layer.index, expert)
            for one, two, same in zip(live, stored, layout.matrices(tensors, layer.index, expert), strict=True):
                assert same.shape[1] == HIDDEN
                for found in (
                    one,
                    two,
                ):  # equal but for the rounding of a product of two matrices, which differs by CPU
                    torch.testing.assert_close(found.double(), same, rtol=1e-12, atol=1e-12)


def test_spectral_routers_equal_the_recomputation_from_memory_and_streamed_from_disk(layout, model, folder):
    expected = spectral_weights(folder, layout.model_type, TOP_C)
    assert list(expected) == list(layout.sparse)
    live = SpectralRouters.from_model(model, top_c=TOP_C, progress=False)
    streamed = SpectralRouters.from_checkpoint(folder, top_c=TOP_C, progress=False)
    for made in (live, streamed):
        assert list(made.weights) == list(expected)
        for index, weight in made.weights.items():
            torch.testing.assert_close(weight.double(), expected[index], rtol=0, atol=1e-5)
    for index, weight in live.weights.items():
        torch.testing.assert_close(weight, streamed.weights[index], rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def fused(layout, model, folder, tmp_path_factory):
    """The same weights under the names and in the shapes that transformers 5 has in memory, in several shards."""
    target = tmp_path_factory.mktemp("fused")
    model.save_pretrained(target, save_original_format=False, max_shard_size="30KB")
    layout.repair(target)
    AutoTokenizer.from_pretrained(folder).save_pretrained(target)
    return target


def test_a_checkpoint_in_the_models_own_layout_gives_the_same_spectral_routers(layout, adapter, fused, folder):
    checkpoint = Checkpoint.open(fused)
    assert len(set(checkpoint.shards.values())) > 1
    assert any(name.endswith(f".experts.{layout.fused[0]}") for name in checkpoint.shards)
    assert sorted(adapter.stored_layers(checkpoint)) == list(layout.sparse)
    assert sorted(adapter.stored_expert_layers(checkpoint)) == list(layout.sparse)
    expected = spectral_weights(folder, layout.model_type, TOP_C)
    found = SpectralRouters.from_checkpoint(fused, top_c=TOP_C, progress=False).weights
    assert list(found) == list(expected)
    for index, weight in found.items():
        torch.testing.assert_close(weight.double(), expected[index], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_model_of_that_layout_gives_the_same_vectors_in_4_bits_too(fused, folder, module, routers):
    def vectors(place, quantize):
        loaded = SSMoE.from_base(place, routers=routers, calibration="none", quantize=quantize, progress=False)
        return embed(having(loaded, method="moee"), TEXTS)

    torch.testing.assert_close(vectors(fused, None), embed(having(module, method="moee"), TEXTS), rtol=0, atol=1e-5)
    having(module, method="ssmoe")
    torch.testing.assert_close(vectors(fused, "nf4"), vectors(folder, "nf4"), rtol=0, atol=1e-5)


# --- routing ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def typed(request, model):
    """The language model in a dtype; never change it."""
    return model if request.param == torch.float32 else copy.deepcopy(model).to(request.param)


def test_inputs_and_logits_are_read_where_the_router_multiplies(layout, adapter, typed, tensors):
    install_sites(typed, adapter)
    with recording(ALL_TOKENS) as taken:
        found = decisions(layout, typed)
    assert list(found) == list(layout.sparse)
    for index, (x, output) in found.items():
        read, own = layout.recorded(taken.logits[index].float()), layout.live_logits(output).float()
        torch.testing.assert_close(read, own, rtol=0, atol=1e-6)
        if x.dtype == torch.float32:
            entered = layout.router_input(x.double(), tensors, index)
            torch.testing.assert_close(taken.inputs[index].double(), entered, rtol=0, atol=1e-5)


def test_alpha_zero_changes_no_bit(typed, routers):
    untouched = run(typed)
    with reroute(typed, SpectralRouting(routers, alpha=0)):
        assert torch.equal(run(typed), untouched)
    with reroute(typed, SpectralRouting(routers, alpha=0.9)):
        assert not torch.equal(run(typed), untouched)
    assert torch.equal(run(typed), untouched)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_mixed_scores_go_through_the_familys_own_rules(alpha, layout, model, tensors, routers):
    with reroute(model, SpectralRouting(routers, alpha=alpha)):
        found = decisions(layout, model)
    assert sorted(found) == list(layout.sparse)
    for index, (x, output) in found.items():
        x = layout.router_input(x.double(), tensors, index)
        learned = x @ layout.router(tensors, index).T + layout.router_bias(tensors, index)
        spectral = x @ routers.weights[index].double().T
        p = (1 - alpha) * layout.scores(learned) + alpha * layout.scores(spectral)
        logits = learned if alpha < 1 else spectral
        expected = spread(*layout.route(p, logits, tensors, index, layout.decoder(model).config))
        torch.testing.assert_close(spread(*layout.decided(output)), expected, rtol=0, atol=1e-5)


def test_the_mix_changes_the_choice_of_experts(layout, model, routers):
    before = decisions(layout, model)
    with reroute(model, SpectralRouting(routers, alpha=0.9)):
        after = decisions(layout, model)
    first = layout.sparse[0]
    chosen = [spread(*layout.decided(run_of[first][1])) > 0 for run_of in (before, after)]
    assert not torch.equal(*chosen)


@torch.no_grad()
def test_what_no_router_chooses_is_added_as_before(layout, adapter, model, routers):
    """A MoE block's output is that of the experts its router chose, and of shared experts, which re-routing leaves alone."""
    x = torch.randn(1, 9, HIDDEN, generator=torch.Generator().manual_seed(7))
    for layer in adapter.layers(model):
        block = layout.live(layout.decoder(model).layers[layer.index])
        beside = []
        for alpha in (0.0, 0.5):
            decided = []
            handle = layer.router.register_forward_hook(
                lambda _router, _args, output, seen=decided: seen.append(output)
            )
            with reroute(model, SpectralRouting(routers, alpha=alpha)):
                whole = layout.output(block, x.clone())
            handle.remove()
            whole = whole[0] if isinstance(whole, tuple) else whole
            routed = layout.routed(layer.block, x[0], *layout.decided(decided[0]))
            beside.append(whole.reshape(9, HIDDEN) - routed)
        torch.testing.assert_close(*beside, rtol=0, atol=1e-5)
        assert (beside[0].abs().max() > 1e-3) == layout.shared


# --- embedding --------------------------------------------------------------------------------------------------------


def test_every_representation_is_finite_and_of_the_documented_width(layout, module):
    routing = EXPERTS * len(layout.sparse)
    widths = {"router": routing, "smoe": HIDDEN, "moee": HIDDEN + routing, "ev": routing, "ssmoe": HIDDEN + routing}
    for method in METHODS:
        having(module, method=method)
        vectors = embed(module, TEXTS)
        assert vectors.shape == (len(TEXTS), widths[method])
        assert module.get_embedding_dimension() == widths[method]
        assert vectors.isfinite().all()
        alone = torch.cat([embed(module, [text]) for text in TEXTS])
        torch.testing.assert_close(vectors, alone, rtol=1e-4, atol=2e-5)
    having(module, method="ssmoe")


def test_a_saved_module_gives_the_same_vectors_when_loaded(module, tmp_path):
    module.save(str(tmp_path))
    again = SSMoE.load(str(tmp_path))
    assert torch.equal(embed(again, TEXTS), embed(module, TEXTS))


def test_a_module_saved_with_its_base_model_gives_the_same_vectors_when_loaded(folder, tmp_path):
    own = SSMoE.from_base(folder, top_c=TOP_C, calibration="none", include_base=True, progress=False)
    own.save(str(tmp_path))
    again = SSMoE.load(str(tmp_path))
    assert again.source.is_local
    torch.testing.assert_close(embed(again, TEXTS), embed(own, TEXTS), rtol=0, atol=1e-6)
    streamed = SpectralRouters.from_checkpoint(tmp_path / "base", top_c=TOP_C, progress=False)
    for index, weight in streamed.weights.items():
        torch.testing.assert_close(weight, own.routers.weights[index], rtol=0, atol=1e-5)


@pytest.mark.parametrize("hidden_layer", [1, -1])
def test_the_hidden_state_is_that_of_the_layer_asked_for(hidden_layer, layout, folder, model):
    options = {"method": "smoe", "calibration": "none", "hidden_layer": hidden_layer, "progress": False}
    if layout.streams and hidden_layer != -1:
        with pytest.raises(ValueError, match="several residual streams"):
            SSMoE.from_base(folder, **options)
        return
    module = SSMoE.from_base(folder, **options)
    features = module.preprocess(TEXTS)
    with torch.no_grad():
        states = layout.decoder(model)(**features, use_cache=False, output_hidden_states=True).hidden_states
    last = features["attention_mask"].sum(dim=1) - 1
    expected = states[hidden_layer][torch.arange(len(TEXTS)), last]
    torch.testing.assert_close(embed(module, TEXTS), expected, rtol=1e-4, atol=1e-5)
    assert len(module.model.layers) == (1 if hidden_layer == 1 else len(layout.decoder(model).layers))


def test_its_configuration_is_read_from_disk(layout, folder):
    assert load_config(folder).model_type == layout.model_type
