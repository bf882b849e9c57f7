"""One model, many routings: policies belong to a call, a thread, a checkpoint; compiled graphs ask for them as well."""

import threading

import pytest
import torch
from tiny import TOP_C, VOCABULARY
from transformers import AutoModelForCausalLM

from ssmoe_embed import SpectralRouters, SpectralRouting, SSMoE, reroute
from ssmoe_embed.embedding.settings import ForwardSettings
from ssmoe_embed.routing import HashRouting, RandomRouting

METHODS = ("router", "smoe", "moee", "ev", "ssmoe", "ssmoe-hidden")


@pytest.fixture
def model(olmoe):
    return AutoModelForCausalLM.from_pretrained(olmoe).eval()


@pytest.fixture(scope="module")
def routers(olmoe):
    return SpectralRouters.from_model(AutoModelForCausalLM.from_pretrained(olmoe), top_c=TOP_C, progress=False)


@pytest.fixture(scope="module")
def ids():
    return torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def module(olmoe):
    return SSMoE.from_base(olmoe, top_c=TOP_C, calibration="none", progress=False)


@torch.inference_mode()
def embed(module, texts):
    return module.forward(module.preprocess(texts))["sentence_embedding"]


def test_threads_with_different_settings_on_one_model_give_what_each_gives_alone(module, texts):
    views = [module.using(method=method, alpha=alpha) for method in METHODS for alpha in (0.3, 0.9)]
    alone = [embed(view, texts[:6]) for view in views]
    start, wrong = threading.Barrier(len(views)), []

    def run(view, expected):
        start.wait()
        for _ in range(3):
            if not torch.equal(embed(view, texts[:6]), expected):
                wrong.append(view.settings)

    threads = [threading.Thread(target=run, args=pair) for pair in zip(views, alone, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_view_leaves_the_module_as_it_is_and_shares_its_base_model(module, texts):
    before, settings = embed(module, texts[:4]), module.settings
    view = module.using(method="ev", alpha=0.1)
    embed(view, texts[:4])
    assert view.model is module.model
    assert not view.model.training
    assert module.settings == settings
    assert torch.equal(embed(module, texts[:4]), before)


@pytest.mark.parametrize("policy", [HashRouting(seed=4), RandomRouting(seed=4)], ids=["hash", "random"])
def test_an_encoder_reads_under_any_policy_as_reroute_would(policy, module, texts):
    encoder, forward = module.encoder, ForwardSettings(routing=policy)
    with torch.inference_mode():
        read = encoder.read(encoder.tokenize(texts[:5], forward), forward).hidden
        with reroute(module.model, policy):
            expected = module.model(**encoder.tokenize(texts[:5], forward), use_cache=False).last_hidden_state
    mask = encoder.tokenize(texts[:5], forward)["attention_mask"]
    rows = [row[int(real.nonzero().max())] for row, real in zip(expected, mask, strict=True)]
    torch.testing.assert_close(read, torch.stack(rows), rtol=0, atol=1e-5)


def test_reading_by_the_models_own_routing_means_that_also_on_a_model_that_is_rerouted(module, texts):
    view = module.using(method="smoe")
    expected = embed(view, texts[:4])
    with reroute(module.model, HashRouting(seed=4)):
        assert torch.equal(embed(view, texts[:4]), expected)


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
@pytest.mark.parametrize("late", [True, False], ids=["backward after the block", "within it"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_gradient_checkpointing_runs_every_layer_again_by_the_policy_of_its_first_run(
    reentrant, late, when, *, model, routers, ids
):
    def gradients(checkpointed):
        model.train().zero_grad()
        model.enable_input_require_grads()
        options = {"gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
        if checkpointed and when == "before":
            model.gradient_checkpointing_enable(**options)
        handle = reroute(model, SpectralRouting(routers, alpha=0.7))
        if checkpointed and when == "after":
            model.gradient_checkpointing_enable(**options)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        if late:
            handle.remove()
        loss.backward()
        handle.remove()
        return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]

    plain, again = gradients(False), gradients(True)
    assert len(plain) == len(again) > 0
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_training_with_checkpoints_gives_the_gradients_of_training_without(method, olmoe, texts):
    def gradients(checkpointed):
        module = SSMoE.from_base(olmoe, top_c=TOP_C, calibration="none", method=method, progress=False).train()
        module.model.requires_grad_()
        if checkpointed:
            module.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        module.forward(module.preprocess(texts[:4]))["sentence_embedding"].square().sum().backward()
        return {name: weight.grad for name, weight in module.model.named_parameters() if weight.grad is not None}

    plain, again = gradients(False), gradients(True)
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_compiled_model_is_routed_as_it_is_when_it_is_not_compiled(mode, model, routers, ids):
    compiled = torch.compile(model, backend="eager")
    with mode():
        own = model(input_ids=ids, use_cache=False).logits
        for alpha in (0.0, 0.6):
            with reroute(model, SpectralRouting(routers, alpha=alpha)):
                expected = model(input_ids=ids, use_cache=False).logits
                torch.testing.assert_close(compiled(input_ids=ids, use_cache=False).logits, expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(compiled(input_ids=ids, use_cache=False).logits, own, rtol=0, atol=1e-6)
