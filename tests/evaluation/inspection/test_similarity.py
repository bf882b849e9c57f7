"""How alike experts answer: the estimate against its definition, pairs against a loop over tokens."""

import itertools

import pytest
import torch
from transformers import AutoModelForCausalLM

from ssmoe_embed.evaluation.inspection.similarity import (
    COLLAPSED,
    LEAST,
    expert_similarities,
    linear_cka,
    shared_inputs,
    similarity_loss,
)
from ssmoe_embed.families import family_of


def by_definition(first, second):
    """The estimate as Song et al. write it, in float64 and by single entries."""
    K, L = first.double() @ first.double().T, second.double() @ second.double().T
    n = len(K)
    for kernel in (K, L):
        for i in range(n):
            kernel[i, i] = 0

    def hsic(A, B):
        trace = sum(A[i, j] * B[j, i] for i, j in itertools.product(range(n), repeat=2))
        return trace + A.sum() * B.sum() / ((n - 1) * (n - 2)) - 2 * (A @ B).sum() / (n - 2)

    return float(hsic(K, L) / (hsic(K, K) * hsic(L, L)).sqrt())


def test_cka_is_what_its_definition_says():
    draw = torch.Generator().manual_seed(0)
    first = torch.randn(20, 6, generator=draw)
    second = first @ torch.randn(6, 9, generator=draw) + torch.randn(20, 9, generator=draw)
    assert float(linear_cka(first.double(), second.double())) == pytest.approx(by_definition(first, second), abs=1e-6)
    turned = torch.linalg.qr(torch.randn(6, 6, generator=draw)).Q
    assert float(linear_cka(first, 3 * first @ turned)) == pytest.approx(1, abs=1e-5)
    many = [torch.randn(32, 512, generator=draw) for _ in range(2)]
    assert abs(float(linear_cka(*many))) < 0.1  # the usual estimate says 0.94 here, though they have nothing in common


@pytest.fixture
def model(olmoe):
    return AutoModelForCausalLM.from_pretrained(olmoe)


def read(model, ids):
    with shared_inputs(family_of(model).layers(model)) as given:
        model(ids)
    return given


def test_pairs_and_answers_are_those_of_the_tokens_that_both_experts_get(model):
    ids = torch.randint(3, 500, (4, 40), generator=torch.Generator().manual_seed(1))
    given = read(model, ids)[1]
    assert len(given.hidden) == 160
    pairs = given.pairs()
    assert pairs
    counts = [len(rows) for *_, rows in pairs]
    assert counts == sorted(counts, reverse=True)
    for first, second, rows in pairs:
        assert rows.tolist() == [t for t, chosen in enumerate(given.index.tolist()) if {first, second} <= set(chosen)]
        assert len(rows) >= LEAST
    first, _, rows = pairs[0]
    experts = model.model.layers[1].mlp.experts
    gate, up = (experts.gate_up_proj[first] @ given.hidden[rows].T).T.chunk(2, dim=-1)
    expected = (torch.nn.functional.silu(gate) * up) @ experts.down_proj[first].T
    torch.testing.assert_close(given.answers(first, rows), expected, rtol=0, atol=1e-5)


def test_copied_experts_are_named_as_collapsed(calibrated_module, texts):
    model = calibrated_module.model
    experts = family_of(model).layers(model)[0].experts
    before = expert_similarities(calibrated_module, texts)
    assert all(pair.cka > COLLAPSED for one in before.values() for pair in one.collapsed)
    with torch.no_grad():
        kept = {name: weight.clone() for name, weight in experts.named_parameters()}
        for weight in experts.parameters():
            weight[1] = weight[0]
    try:
        after = expert_similarities(calibrated_module, texts)
        alike = [pair for pair in after[0].collapsed if (pair.first, pair.second) == (0, 1)]
        assert len(alike) == 1
        assert alike[0].cka == pytest.approx(1, abs=1e-4)
        assert after[0].largest == pytest.approx(1, abs=1e-4)
    finally:
        with torch.no_grad():
            for name, weight in experts.named_parameters():
                weight.copy_(kept[name])


def test_the_loss_reaches_experts_only_and_counts_pairs_above_the_threshold(model):
    with torch.no_grad():
        for layer in family_of(model).layers(model):
            for weight in layer.experts.parameters():
                weight[1:] = weight[:1] + 0.1 * weight[:1].std() * torch.randn_like(weight[1:])
    given = read(model, torch.randint(3, 500, (4, 40), generator=torch.Generator().manual_seed(1)))
    loss = similarity_loss(list(given.values()))
    expected = [
        value
        if (value := by_definition(one.answers(i, rows).detach(), one.answers(j, rows).detach())) > COLLAPSED
        else 0
        for one in given.values()
        for i, j, rows in one.pairs()[:8]
    ]
    assert float(loss.detach()) == pytest.approx(sum(expected) / len(expected), abs=1e-4)
    loss.backward()
    touched = {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert touched
    assert all(".experts." in name for name in touched)
