"""USMoE, Expert Choice and competition: which pairs of token and expert are computed, from the equations by plain loops."""

import copy
import math
import pickle

import pytest
import torch
from layouts import LAYOUTS
from layouts.base import EXPERTS, HIDDEN
from reference import stored_tensors
from routed import BATCH, run
from tiny import VOCABULARY
from transformers import AutoModel, AutoModelForCausalLM

from ssmoe_embed import SSMoE, reroute
from ssmoe_embed.evaluation.inspection.activations import collect
from ssmoe_embed.families import Score, UnsupportedModelError, register_families
from ssmoe_embed.language_model.dropped import expert_scores
from ssmoe_embed.language_model.measures import expert_overlap
from ssmoe_embed.routing import EqualWeights
from ssmoe_embed.routing.controls import EqualShares
from ssmoe_embed.routing.experts import DecidesAtExperts
from ssmoe_embed.routing.mixing import scores
from ssmoe_embed.routing.pairs import Competition, ExpertChoice, UnifiedRouting, places

PLAIN = ("olmoe", "qwen2_moe", "qwen3_moe", "mixtral")
OWN_WEIGHTS = ("gemma4", "gemma4_text", "phimoe", "llama4")
"""Families whose weights follow from more than scores, or whose experts are told neither tokens nor weights."""
QUICK = ("deepseek_v3", "gpt_oss", "llama4", "nemotron_h", "qwen3_moe")
PAIRED = [UnifiedRouting(), UnifiedRouting(rate=0.2, budget=0.7, total="kept"), ExpertChoice()]
CAUSAL = [UnifiedRouting(causal=True), ExpertChoice(causal=True)]
ALL = [*PAIRED, *CAUSAL, UnifiedRouting(per_token=True), Competition(), Competition("norm"), EqualShares()]
LENGTHS = BATCH["attention_mask"].sum(dim=1).tolist()


@pytest.fixture(scope="module")
def olmoe_body(olmoe):
    return AutoModel.from_pretrained(olmoe).eval()


def blocks(model, layout, policy):
    """What entered and left the sparse blocks of a re-routed model, `[B,T,H]` each, by layer."""
    seen = {}

    def watch(index):
        def hook(_block, args, output):
            seen[index] = (args[0].detach().clone(), (output[0] if isinstance(output, tuple) else output).detach())

        return hook

    decoder = layout.decoder(model)
    handles = [layout.live(decoder.layers[index]).register_forward_hook(watch(index)) for index in layout.sparse]
    try:
        with reroute(model, policy):
            run(model)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def chosen_pairs(score, k, *, causal, by_expert, budget=1.0):
    """Which pairs of one text are computed, by the definition, from scores `[S,E]`."""
    S, E = score.shape
    kept = torch.zeros(S, E, dtype=torch.bool)
    for token in range(S):
        known = score[: token + 1] if causal else score
        for expert in range(E):
            if by_expert:
                count = max(1, round(len(known) * k / E))
                rivals = known[:, expert]
            else:
                count = max(1, math.floor(budget * len(known) * k))
                rivals = known.flatten()
            kept[token, expert] = (rivals > score[token, expert]).sum() < count
    return kept


def expected_weights(policy, z, k, normalised):
    """The weight of each pair `[S,E]` of one text by the equations, 0 where it is not computed."""
    p, E = z.softmax(dim=-1), z.shape[-1]
    if isinstance(policy, ExpertChoice):
        weights = p * chosen_pairs(p, k, causal=policy.causal, by_expert=True)
        return weights / weights.sum(dim=-1, keepdim=True).clamp_min(1e-30) if normalised else weights
    if isinstance(policy, EqualShares):
        kept = p >= p.topk(k, dim=-1).values[:, -1:]
        return kept.to(p) * (1 / k if normalised else (p * kept).sum(dim=-1, keepdim=True) / k)
    u = (1 - policy.rate) * p + policy.rate * (2 / E) * z.sigmoid()
    if policy.per_token:
        kept = u >= u.topk(k, dim=-1).values[:, -1:]
    else:
        kept = chosen_pairs(u, k, causal=policy.causal, by_expert=False, budget=policy.budget)
    total = u * kept if policy.total == "kept" else u
    return (u / total.sum(dim=-1, keepdim=True).clamp_min(1e-30) if normalised else u) * kept


@pytest.mark.parametrize("family", PLAIN)
@pytest.mark.parametrize("policy", [*PAIRED, *CAUSAL, UnifiedRouting(per_token=True), EqualShares()], ids=repr)
def test_the_pairs_and_their_weights_are_those_of_the_equations(policy, family, model_folder):
    layout, folder = LAYOUTS[family], model_folder(family)
    model, tensors = AutoModel.from_pretrained(folder).eval(), stored_tensors(folder)
    normalised = family == "mixtral" or model.config.norm_topk_prob
    with_shared = blocks(model, layout, UnifiedRouting(rate=0, per_token=True))  # what the shared experts add
    for layer, (x, found) in blocks(model, layout, policy).items():
        block, k = layout.live(layout.decoder(model).layers[layer]), model.config.num_experts_per_tok
        experts = [
            layout.expert(block, x.double(), *layout.matrices(tensors, layer, expert)) for expert in range(EXPERTS)
        ]
        answers = torch.stack(experts, dim=2)  # [B,T,E,H]
        z = x.double() @ layout.router(tensors, layer).T
        for text, length in enumerate(LENGTHS):
            weights = expected_weights(policy, z[text, :length], k, normalised)
            expected = torch.einsum("se,seh->sh", weights, answers[text, :length])
            if layout.shared:
                own = expected_weights(UnifiedRouting(rate=0, per_token=True), z[text, :length], k, normalised)
                original = torch.einsum("se,seh->sh", own, answers[text, :length])
                if layer == layout.sparse[0]:  # where both models saw the same
                    beside = with_shared[layer][1][text, :length].double() - original
                    torch.testing.assert_close(found[text, :length].double() - beside, expected, rtol=0, atol=1e-4)
            else:
                torch.testing.assert_close(found[text, :length].double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("response", ["softplus", "norm"])
def test_competition_chooses_and_weighs_by_the_experts_answers(response, olmoe, olmoe_body):
    layout, tensors, k = LAYOUTS["olmoe"], stored_tensors(olmoe), olmoe_body.config.num_experts_per_tok
    for layer, (x, found) in blocks(olmoe_body, layout, Competition(response)).items():
        for row, made in zip(x.double().reshape(-1, HIDDEN), found.reshape(-1, HIDDEN), strict=True):
            answers = [layout.expert(None, row, *layout.matrices(tensors, layer, expert)) for expert in range(EXPERTS)]
            if response == "softplus":
                strengths = [float(torch.log1p(answer.exp()).mean()) for answer in answers]
            else:
                strengths = [float(answer.square().sum().sqrt()) for answer in answers]
            best = sorted(range(EXPERTS), key=lambda expert: -strengths[expert])[:k]
            shares = [strengths[e] if response == "softplus" else math.exp(strengths[e]) for e in best]
            expected = sum(share / sum(shares) * answers[e] for share, e in zip(shares, best, strict=True))
            torch.testing.assert_close(made.double(), expected, rtol=0, atol=1e-4)


class OwnPairs(DecidesAtExperts):
    """The pairs and weights that the family's own router would choose, made of what a policy is told of it."""

    score = Score.SOFTMAX

    def logits(self, layer, hidden, logits, score):
        self.score = score
        return logits

    def assign(self, call):
        p, scale = scores(call.logits, self.score), call.weighting.scale
        kept = torch.zeros_like(p, dtype=torch.bool).scatter_(1, call.index, value=True)
        return kept, scale * (p / (p * kept).sum(dim=1, keepdim=True) if call.weighting.normalises else p)


@pytest.mark.parametrize(
    "family", [pytest.param(one, marks=[] if one in QUICK else pytest.mark.slow) for one in sorted(LAYOUTS)]
)
def test_asking_the_experts_pair_by_pair_changes_nothing(family):
    register_families()
    model = LAYOUTS[family].make()
    if family in OWN_WEIGHTS:
        with pytest.raises(UnsupportedModelError):
            reroute(model, OwnPairs())
        return
    before = run(model)
    with reroute(model, OwnPairs()):
        torch.testing.assert_close(run(model), before, rtol=1e-3, atol=1e-4)
    assert torch.equal(run(model), before)


@pytest.mark.parametrize("family", PLAIN)
def test_the_softmax_alone_with_each_tokens_own_choice_is_the_original_routing(family, model_folder):
    model = AutoModelForCausalLM.from_pretrained(model_folder(family)).eval()
    with reroute(model, UnifiedRouting(rate=0, per_token=True, total="kept")):
        found = run(model)
    torch.testing.assert_close(found, run(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", ALL, ids=repr)
def test_a_texts_vector_depends_neither_on_its_batch_nor_on_padding(policy, olmoe_body):
    ids, lengths = BATCH["input_ids"], LENGTHS
    with reroute(olmoe_body, policy), torch.no_grad():
        together = olmoe_body(**BATCH, use_cache=False).last_hidden_state
        for text, length in enumerate(lengths):
            alone = olmoe_body(ids[text : text + 1, :length], use_cache=False).last_hidden_state[0]
            torch.testing.assert_close(alone, together[text, :length], rtol=1e-4, atol=1e-5)
        left = torch.cat([torch.zeros(1, 4, dtype=torch.long), ids[:1]], dim=1)
        mask = (torch.arange(left.shape[1]) >= 4).long()[None]
        padded = olmoe_body(left, attention_mask=mask, use_cache=False).last_hidden_state[0, 4:]
    torch.testing.assert_close(padded, together[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", [*CAUSAL, UnifiedRouting(per_token=True), Competition(), EqualShares()], ids=repr)
def test_no_token_knows_of_later_ones(policy, olmoe):
    model = AutoModelForCausalLM.from_pretrained(olmoe).eval()
    ids = BATCH["input_ids"][:1]
    other = ids.clone()
    other[0, 9:] = torch.randint(3, VOCABULARY, (8,), generator=torch.Generator().manual_seed(8))
    with reroute(model, policy), torch.no_grad():
        torch.testing.assert_close(
            model(ids, use_cache=False).logits[:, :9], model(other, use_cache=False).logits[:, :9], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("policy", [UnifiedRouting(), ExpertChoice()], ids=repr)
def test_a_language_model_must_not_look_ahead(policy, olmoe):
    model = AutoModelForCausalLM.from_pretrained(olmoe).eval()
    with pytest.raises(ValueError, match="causal=true"):
        reroute(model, policy)
    with reroute(model, type(policy)(causal=True)), torch.no_grad():
        cache = model(BATCH["input_ids"][:, :5], use_cache=True).cache
        with pytest.raises(ValueError, match="use_cache=False"):
            model(BATCH["input_ids"][:, 5:], cache=cache)
        made = model.generate(BATCH["input_ids"][:1], max_new_tokens=2, use_cache=False, do_sample=False)
        assert made.shape[1] == BATCH["input_ids"].shape[1] + 2


@pytest.mark.parametrize("causal", [False, True])
def test_the_place_of_a_pair_is_counted(causal):
    generator = torch.Generator().manual_seed(4)
    values = torch.randint(6, (3, 7, 2), generator=generator).double()  # with ties: the earlier pair comes first
    real = torch.tensor([[1] * 7, [0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0]]).bool()
    found = places(values, real, causal=causal)
    for text in range(3):
        pairs = [(t, e) for t in range(7) for e in range(2) if real[text, t]]
        for t, e in pairs:
            rivals = [pair for pair in pairs if pair[0] <= t] if causal else pairs
            before = sum((-values[text, a, b], (a, b)) < (-values[text, t, e], (t, e)) for a, b in rivals)
            assert found[text, t, e] == before


@pytest.mark.parametrize("policy", [UnifiedRouting(causal=True), Competition()], ids=repr)
def test_copies_keep_the_policy_and_removing_it_gives_the_model_back(policy, olmoe):
    model = AutoModelForCausalLM.from_pretrained(olmoe).eval()
    before = run(model)
    handle = reroute(model, policy)
    routed = run(model)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    handle.remove()
    assert not torch.equal(routed, before)
    assert torch.equal(run(model), before)
    assert all(torch.equal(run(one), routed) for one in copies)


REFUSED = {
    "deepseek_v3": "sigmoid",
    "deepseek_v2": "groups",
    "ernie4_5_moe": "corrected",
    "phimoe": "more than their scores",
}
REFUSED |= {"gemma4_text": "more than their scores", "llama4": "tokens, experts"}


@pytest.mark.parametrize("family", REFUSED)
def test_families_whose_routers_are_no_plain_softmax_are_refused_with_the_reason(family):
    register_families()
    with pytest.raises(UnsupportedModelError, match=REFUSED[family]):
        reroute(LAYOUTS[family].make(), UnifiedRouting(causal=True))


@pytest.mark.parametrize("family", ["deepseek_v3", "minimax_m2", "dots1", "nemotron_h"])
def test_competition_gives_other_families_their_own_sum_of_weights(family):
    """The sum of a token's weights where the family normalises, its factor where it does not."""
    register_families()
    layout = LAYOUTS[family]
    model = layout.make()
    expected = {"deepseek_v3": 2.5, "minimax_m2": 1.0, "dots1": 2.5, "nemotron_h": 2.5}[family]
    seen = []
    router = next(iter(layout.routers(model).values()))
    block = layout.live(layout.decoder(model).layers[layout.sparse[0]])
    with reroute(model, Competition()):
        assert router.forward is not None
        own = block.experts.forward.own

        def spy(hidden, index, weights):
            seen.append(weights.detach())
            return own(hidden, index, weights)

        block.experts.forward.own = spy
        run(model)
    per_token = seen[-1].reshape(-1, model.config.num_experts_per_tok).sum(dim=1)
    torch.testing.assert_close(per_token, torch.full_like(per_token, expected), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["deepseek_v3", "dots1", "ernie4_5_moe"])
def test_equal_shares_keep_what_other_families_choose_and_the_sum_of_its_weights(family):
    register_families()
    layout = LAYOUTS[family]
    model = layout.make()
    experts = layout.live(layout.decoder(model).layers[layout.sparse[0]]).experts
    own, pairs = [], []
    handle = experts.register_forward_pre_hook(
        lambda _, args, kwargs: own.append((*args, *kwargs.values())), with_kwargs=True
    )
    run(model)
    handle.remove()
    _, index, weights = own[0]
    with reroute(model, EqualShares()):
        asked = experts.forward.own
        experts.forward.own = lambda *args: (pairs.append(args[1:]), asked(*args))[1]
        run(model)
    chosen, shares = (one.reshape(index.shape) for one in pairs[-1])
    assert torch.equal(chosen, index.sort(dim=-1).values)
    torch.testing.assert_close(shares, weights.mean(dim=-1, keepdim=True).expand_as(shares), rtol=1e-3, atol=1e-5)


def test_an_embedding_takes_them_by_name(olmoe, olmoe_body):
    module = SSMoE.from_base(olmoe, method="smoe", calibration="none", routing="usmoe:rate=0.2", progress=False)
    own = SSMoE.from_base(olmoe, method="smoe", calibration="none", progress=False)
    texts = ["a", "How do I undo the last commit?"]
    with torch.no_grad():
        found = module.forward(module.preprocess(texts))["sentence_embedding"]
        assert not torch.allclose(found, own.forward(own.preprocess(texts))["sentence_embedding"])
        ids = own.preprocess(texts[1:])["input_ids"]
        with reroute(olmoe_body, UnifiedRouting(rate=0.2)):
            expected = olmoe_body(ids, use_cache=False).last_hidden_state[0, -1]
    torch.testing.assert_close(found[1], expected, rtol=1e-4, atol=1e-5)


def test_the_load_under_them_counts_the_pairs_that_were_computed(calibrated_module, texts):
    settings = calibrated_module.settings.changed(method="smoe", routing_signal=None, calibration="none")
    k = calibrated_module.model.config.num_experts_per_tok
    whole = ("usmoe", "competition", "hash", "equal", "least-similar:top_c=2")
    for routing, share in (*((name, 1.0) for name in whole), ("usmoe:budget=0.5", 0.5)):
        found = collect(calibrated_module, texts[:6], settings.changed(routing=routing), batch_size=3)
        lengths = found.last.diff(prepend=torch.tensor([-1]))
        expected = sum(max(1, math.floor(share * k * length)) for length in lengths.tolist())
        assert [layer.chosen.numel() for layer in found.layers] == [expected] * len(found.layers)


def test_what_reads_choices_off_logits_refuses_them(olmoe):
    model = AutoModelForCausalLM.from_pretrained(olmoe).eval()
    for use in (
        lambda: reroute(model, EqualWeights(Competition(), model.config.num_experts_per_tok)),
        lambda: expert_scores(model, [BATCH["input_ids"]], Competition(), progress=False),
        lambda: expert_overlap(model, None, ["a"], Competition()),
    ):
        with pytest.raises(ValueError, match="decides at the experts"):
            use()
