"""Re-routing: the mix of two routers under each family's own top-k rules, and its undoing."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from reference import chosen_experts, mixed_probabilities, renormalises, routed_by_hand, routers_of, watched
from tiny import TOP_C, VOCABULARY
from transformers import AutoModel, AutoModelForCausalLM

from ssmoe_embed import SpectralRouters, SpectralRouting, reroute
from ssmoe_embed.families import Score
from ssmoe_embed.routing.mixing import Mix, mixed_logits, mixed_scores

ALPHAS = (0.3, 0.5, 0.9, 1.0)


@pytest.fixture(scope="module")
def routers_of_family(model_folder):
    made = {}

    def routers(family):
        if family not in made:
            folder = model_folder(family)
            made[family] = SpectralRouters.from_checkpoint(folder, top_c=TOP_C, scale="router", progress=False)
        return made[family]

    return routers


@pytest.fixture
def routers(routers_of_family, family):
    return routers_of_family(family)


@pytest.fixture
def model(model_folder, family):
    return AutoModel.from_pretrained(model_folder(family)).eval()


@pytest.fixture
def olmoe_model(olmoe):
    return AutoModel.from_pretrained(olmoe).eval()


@pytest.fixture
def olmoe_routers(routers_of_family):
    return routers_of_family("olmoe")


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, VOCABULARY, (3, 17), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0  # padded on the right
    mask[2, :5] = 0  # and on the left
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def run(model, batch):
    return model(**batch).last_hidden_state


def decisions(model, batch):
    """What each router got, and the logits, weights and indices that it gave, by layer."""
    with watched(model) as seen:
        run(model, batch)
    return {index: calls[0] for index, calls in seen.items()}


# --- α = 0 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", ["probs", "logits"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_alpha_zero_changes_no_bit(dtype, mix, model, routers, batch):
    model = model.to(dtype)
    untouched = run(model, batch)
    with reroute(model, SpectralRouting(routers, alpha=0, mix=mix)):
        assert torch.equal(run(model, batch), untouched)


@torch.no_grad()
def test_alpha_zero_changes_no_bit_of_a_language_models_logits(family, model_folder, routers, batch):
    model = AutoModelForCausalLM.from_pretrained(model_folder(family)).eval()
    untouched = model(**batch).logits
    with reroute(model, SpectralRouting(routers, alpha=0.0)):
        assert torch.equal(model(**batch).logits, untouched)


# --- the mix ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", ["probs", "logits"])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_each_token_goes_to_the_experts_of_the_formula_with_its_weights(alpha, mix, model, routers, batch):
    with reroute(model, SpectralRouting(routers, alpha=alpha, mix=mix)):
        found = decisions(model, batch)
    assert sorted(found) == sorted(routers.weights)
    for index, router in routers_of(model).items():
        x, (_, weights, experts) = found[index]
        x = x.reshape(-1, x.shape[-1]).double()  # [N,H]
        learned = x @ router.weight.double().T + (router.bias.double() if hasattr(router, "bias") else 0)
        p = mixed_probabilities(learned, x @ routers.weights[index].double().T, alpha, mix)
        expected, chosen = chosen_experts(p, router.top_k, renormalises(model.config))
        assert torch.equal(experts, chosen)
        torch.testing.assert_close(weights.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_hidden_states_equal_those_of_a_model_that_is_routed_by_hand(alpha, model, routers, batch):
    with routed_by_hand(model, routers.weights, alpha):
        expected = run(model, batch)
    with reroute(model, SpectralRouting(routers, alpha=alpha)):
        torch.testing.assert_close(run(model, batch), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_mix_really_changes_the_routing(alpha, model, routers, batch):
    before = decisions(model, batch)
    with reroute(model, SpectralRouting(routers, alpha=alpha)):
        after = decisions(model, batch)
    first = min(before)
    assert not torch.equal(before[first][1][1], after[first][1][1])


def test_mixing_logits_differs_from_mixing_scores(olmoe_model, olmoe_routers, batch):
    results = []
    for mix in ("probs", "logits"):
        with reroute(olmoe_model, SpectralRouting(olmoe_routers, alpha=0.5, mix=mix)):
            results.append(run(olmoe_model, batch))
    assert not torch.allclose(*results, atol=1e-3)


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
def test_every_way_to_run_the_experts_is_routed_alike(implementation, olmoe_model, olmoe_routers, batch):
    olmoe_model.set_experts_implementation("eager")
    with reroute(olmoe_model, SpectralRouting(olmoe_routers, alpha=0.5)):
        expected = run(olmoe_model, batch)
        olmoe_model.set_experts_implementation(implementation)
        torch.testing.assert_close(run(olmoe_model, batch), expected, rtol=0, atol=1e-5)


def test_a_gradient_flows_through_a_re_routed_model(olmoe_model, olmoe_routers, batch):
    with reroute(olmoe_model, SpectralRouting(olmoe_routers, alpha=0.5)):
        olmoe_model(**batch).last_hidden_state.square().sum().backward()
    gradient = olmoe_model.layers[0].mlp.gate.weight.grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


# --- undoing it -------------------------------------------------------------------------------------------------------


def test_after_the_block_the_model_is_as_it_was(model, routers, batch):
    untouched = run(model, batch)
    with reroute(model, SpectralRouting(routers, alpha=0.9)):
        assert not torch.equal(run(model, batch), untouched)
    assert torch.equal(run(model, batch), untouched)


def test_also_when_the_block_raises(model, routers, batch):
    untouched = run(model, batch)
    with pytest.raises(RuntimeError, match="boom"), reroute(model, SpectralRouting(routers, alpha=0.9)):
        raise RuntimeError("boom")
    assert torch.equal(run(model, batch), untouched)


def test_also_when_the_forward_pass_raises(olmoe_model, olmoe_routers, batch):
    untouched = run(olmoe_model, batch)
    with pytest.raises(IndexError), reroute(olmoe_model, SpectralRouting(olmoe_routers, alpha=0.9)):
        run(olmoe_model, {"input_ids": torch.tensor([[VOCABULARY]])})
    assert torch.equal(run(olmoe_model, batch), untouched)


def test_removing_twice_does_nothing(olmoe_model, olmoe_routers, batch):
    untouched = run(olmoe_model, batch)
    handle = reroute(olmoe_model, SpectralRouting(olmoe_routers, alpha=0.9))
    handle.remove()
    handle.remove()
    assert torch.equal(run(olmoe_model, batch), untouched)


def test_without_a_policy_a_model_stays_as_it_is(olmoe_model, olmoe_routers, batch):
    with reroute(olmoe_model, SpectralRouting(olmoe_routers, alpha=0.9)):
        routed = run(olmoe_model, batch)
        with reroute(olmoe_model, None):
            assert torch.equal(run(olmoe_model, batch), routed)
        assert torch.equal(run(olmoe_model, batch), routed)


def test_a_model_is_re_routed_only_once_at_a_time(olmoe_model, olmoe_routers, batch):
    with reroute(olmoe_model, SpectralRouting(olmoe_routers, alpha=0.5)):
        once = run(olmoe_model, batch)
        with pytest.raises(ValueError, match=r"re-routed already.*\.remove\(\)"):
            reroute(olmoe_model, SpectralRouting(olmoe_routers, alpha=0.5))
        assert torch.equal(run(olmoe_model, batch), once)
    with reroute(olmoe_model, SpectralRouting(olmoe_routers, alpha=0.5)):
        assert torch.equal(run(olmoe_model, batch), once)


def test_a_forward_that_someone_else_installed_is_kept(olmoe_model, olmoe_routers, batch):
    """As accelerate does to move a module's inputs."""
    router = olmoe_model.layers[0].mlp.gate
    calls = []
    original = router.forward
    router.forward = lambda hidden: calls.append(1) or original(hidden)
    with reroute(olmoe_model, SpectralRouting(olmoe_routers, alpha=0.5)):
        mixed = run(olmoe_model, batch)
    assert len(calls) == 1
    run(olmoe_model, batch)
    assert len(calls) == 2
    del router.forward
    with reroute(olmoe_model, SpectralRouting(olmoe_routers, alpha=0.5)):
        assert torch.equal(run(olmoe_model, batch), mixed)


# --- for good ---------------------------------------------------------------------------------------------------------


def test_a_permanent_policy_survives_pickling(model, routers, batch):
    reroute(model, SpectralRouting(routers, alpha=0.5))
    routed = run(model, batch)
    assert torch.equal(run(pickle.loads(pickle.dumps(model)), batch), routed)


def test_a_permanent_policy_survives_torch_save(olmoe_model, olmoe_routers, batch):
    reroute(olmoe_model, SpectralRouting(olmoe_routers, alpha=0.5))
    file = io.BytesIO()
    torch.save(olmoe_model, file)
    file.seek(0)
    assert torch.equal(run(torch.load(file, weights_only=False), batch), run(olmoe_model, batch))


def test_a_permanent_policy_survives_a_deep_copy_which_is_independent(model, routers, batch):
    untouched = run(model, batch)
    handle = reroute(model, SpectralRouting(routers, alpha=0.5))
    routed = run(model, batch)
    twin = copy.deepcopy(model)
    handle.remove()
    assert torch.equal(run(model, batch), untouched)
    assert torch.equal(run(twin, batch), routed)
    with torch.no_grad():
        for router in routers_of(model).values():
            router.weight.zero_()
    assert torch.equal(run(twin, batch), routed)


def test_a_permanent_policy_follows_a_change_of_dtype(olmoe_model, olmoe_routers, batch):
    reroute(olmoe_model, SpectralRouting(olmoe_routers, alpha=0.5))
    routed = run(olmoe_model, batch)
    halved = run(olmoe_model.to(torch.bfloat16), batch)
    assert halved.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(halved.float(), routed, dim=-1).median() > 0.98


def test_a_re_routed_model_is_saved_as_the_model_itself(olmoe_model, olmoe_routers, batch, tmp_path):
    untouched = run(olmoe_model, batch)
    with reroute(olmoe_model, SpectralRouting(olmoe_routers, alpha=0.5)):
        olmoe_model.save_pretrained(tmp_path)
    assert torch.equal(run(AutoModel.from_pretrained(tmp_path).eval(), batch), untouched)


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan"), float("inf"), "0.5", None, True, [0.5]])
def test_a_bad_alpha_is_named_with_what_is_allowed(alpha, olmoe_routers):
    with pytest.raises(ValueError, match=r"alpha=.*outside \[0, 1\]"):
        SpectralRouting(olmoe_routers, alpha=alpha)


@pytest.mark.parametrize("alpha", [np.float32(0.5), np.float64(0.5), np.int64(1)])
def test_numpys_numbers_are_numbers(alpha, olmoe_routers):
    assert SpectralRouting(olmoe_routers, alpha=alpha).alpha == float(alpha)


def test_a_bad_mix_is_named_with_what_is_allowed(olmoe_routers):
    with pytest.raises(ValueError, match=r"mix='prob' is not known.*'probs', 'logits'.*Did you mean 'probs'"):
        SpectralRouting(olmoe_routers, mix="prob")


# --- the replacement logits -------------------------------------------------------------------------------------------

SCORES = {
    Score.SOFTMAX: lambda x: torch.softmax(x.double(), -1),
    Score.SIGMOID: lambda x: torch.sigmoid(x.double()),
    Score.SQRTSOFTPLUS: lambda x: torch.log1p(torch.exp(x.double())).sqrt(),
}


def logits(elements):
    return arrays.arrays(np.float32, (3, 6), elements=st.floats(width=32, **elements))


@pytest.mark.parametrize("mix", Mix)
@pytest.mark.parametrize("score", Score)
@settings(max_examples=60, deadline=None)
@given(
    learned=logits({"min_value": -80, "max_value": 80}),
    spectral=logits({"min_value": -80, "max_value": 80}),
    alpha=st.floats(0, 1),
)
def test_the_replacement_logits_score_as_the_mixed_scores(score, mix, learned, spectral, alpha):
    r, e = torch.from_numpy(learned), torch.from_numpy(spectral)
    replaced = mixed_logits(r, e, alpha, mix, score)
    mixed = mixed_scores(r, e, alpha, mix, score)
    assert replaced.isfinite().all()
    assert mixed.isfinite().all()
    torch.testing.assert_close(SCORES[score](replaced), mixed.double(), rtol=0, atol=1e-5)
    if mix is Mix.PROBS:
        expected = (1 - alpha) * SCORES[score](r) + alpha * SCORES[score](e)
        torch.testing.assert_close(mixed.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mix", Mix)
@pytest.mark.parametrize("score", Score)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_ends_of_the_mix_are_exact_and_the_dtype_is_kept(dtype, score, mix):
    generator = torch.Generator().manual_seed(4)
    r, e = (torch.randn(5, 8, generator=generator).to(dtype) for _ in range(2))
    assert torch.equal(mixed_logits(r, e.float(), 0.0, mix, score), r)
    assert torch.equal(mixed_logits(r, e.float(), 1.0, mix, score), e)
    assert mixed_logits(r, e.float(), 0.5, mix, score).dtype == dtype


@pytest.mark.parametrize("score", Score)
@pytest.mark.parametrize("alpha", [1e-30, 1e-8, 1 - 1e-9, 0.5])
def test_probabilities_that_vanish_give_finite_logits(alpha, score):
    r = torch.tensor([[80.0, -80.0, 0.0]])
    assert mixed_logits(r, -r, alpha, Mix.PROBS, score).isfinite().all()
