"""The training of the bundled model: its fast forward pass, its held-out rule, its resuming."""

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[2] / "examples" / "train_tiny"
SMALL = {"vocab_size": 300, "num_hidden_layers": 2, "num_experts": 6, "num_experts_per_tok": 2}


@pytest.fixture(scope="module", autouse=True)
def training_modules():
    """Let the example's modules be imported by their names, as its scripts do."""
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))
    for name in set(sys.modules) - before:
        if (FOLDER / f"{name}.py").exists():
            del sys.modules[name]


def small_model():
    from architecture import make_model

    torch.manual_seed(0)
    model = make_model(**SMALL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0, 0.1) if parameter.dim() == 1 else parameter.normal_(std=0.05)
    return model


def test_the_fast_forward_pass_equals_the_library_also_for_packed_rows():
    from fast_model import Block, FastOlmoe

    model = small_model()
    texts = [torch.randint(2, 300, (length,)) for length in (24, 9, 15, 24, 7)]
    ids = torch.cat((texts[0], texts[1], texts[2], texts[3], texts[4], torch.full((9,), 1)))
    segments = torch.tensor([0] * 24 + [1] * 9 + [2] * 15 + [3] * 24 + [4] * 7 + [-1] * 9)
    out = FastOlmoe(model, torch.float32).forward(ids, segments, (Block(3, 24), Block(1, 16)))
    start = 0
    for text in texts:
        expected = model.model(text[None], output_router_logits=True)
        here = slice(start, start + len(text))
        torch.testing.assert_close(out.hidden[here], expected.last_hidden_state[0], atol=1e-5, rtol=1e-5)
        for mine, theirs in zip(out.router_logits, expected.router_logits, strict=True):
            torch.testing.assert_close(mine[here], theirs, atol=1e-5, rtol=1e-5)
        start += len(text)


def test_the_hand_written_gradients_of_the_experts_are_right():
    from experts import SortedExperts

    torch.manual_seed(0)
    make = lambda *shape: torch.randn(*shape, dtype=torch.float64, requires_grad=True)  # noqa: E731
    index = torch.tensor([[0, 2], [1, 2], [2, 0], [1, 0], [0, 1]])
    weight = torch.rand(5, 2, dtype=torch.float64, requires_grad=True)
    x, gate_up, down = make(5, 4), make(4, 6, 4), make(4, 4, 3)

    def run(x, gate_up, down, weight):
        return SortedExperts.apply(x, gate_up, down, index, weight)

    run(x, gate_up, down, weight).sum().backward()
    given = [t.grad.clone() for t in (x, gate_up, down, weight)]
    plain = sum(
        weight[n, k] * down[e] @ (torch.nn.functional.silu(gate_up[e, :3] @ x[n]) * (gate_up[e, 3:] @ x[n]))
        for n, row in enumerate(index.tolist())
        for k, e in enumerate(row)
    ).sum()
    expected = torch.autograd.grad(plain, (x, gate_up, down, weight))
    for mine, theirs in zip(given, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_the_held_out_rule_follows_the_hash_and_ignores_case_and_underscores():
    from holdout import is_held_out, is_held_out_synset

    words = [f"word {number}" for number in range(4000)]
    held = [word for word in words if is_held_out(word)]
    assert 0.03 < len(held) / len(words) < 0.07
    assert held == [w for w in words if int(hashlib.sha256(w.encode()).hexdigest()[:8], 16) % 20 == 0]
    assert all(is_held_out(f" {word.upper().replace(' ', '_')} ") for word in held)
    shown = next(word for word in words if not is_held_out(word))
    assert is_held_out_synset([shown, held[0]])
    assert not is_held_out_synset([shown])


def test_a_held_out_gloss_is_found_inside_other_texts():
    from corpus import Forbidden

    forbidden = Forbidden(["the act of folding a map badly", "a dog"])
    assert forbidden.contains('Misfolding: "The act of folding -- a map, badly"; as on holidays.')
    assert forbidden.contains("A DOG.")
    assert not forbidden.contains("the act of folding a letter")
    assert not forbidden.contains("a dog in the park")


def test_a_word_has_the_tokens_that_it_has_inside_a_sentence_but_for_quotation_marks():
    from packing import Templates
    from tokenizer import inside_quotes, train_tokenizer

    tokenizer = train_tokenizer(iter(["see the cat sleep", "the cat of the mat", 'a "cat"'] * 9), 300)
    ids = lambda text, one=tokenizer: one(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    (cat,) = ids("cat")
    assert cat in ids("see the cat")
    for template, pieces in ((0, ids("cat")), (1, ids("cat", inside_quotes(tokenizer)))):
        filled = ("cat<|endoftext|>", 'This sentence : "cat" means in one word:"')[template]
        assert Templates(tokenizer).apply(np.array(pieces), template, 99).tolist() == ids(filled)


def test_frequent_words_and_phrases_become_texts():
    from corpus import LEAST_PHRASE, LEAST_WORD, frequent_phrases

    stopwords = [f"{a}{b}" for a in "bcdfghjklmnpqrstvwxz" for b in "aeiou"] * 2
    texts = [*(" ".join(stopwords) for _ in range(40)), *["Boil the red kettle, twice"] * LEAST_PHRASE]
    found = set(frequent_phrases([*texts, *["kettle"] * (LEAST_WORD - LEAST_PHRASE)]))
    assert {"kettle", "red kettle"} <= found
    assert "kettle twice" not in found, "a comma is between them"
    assert "boil" not in found, f"it occurs {LEAST_PHRASE} times"
    assert not any(word in phrase.split()[:: len(phrase.split()) - 1 or 1] for phrase in found for word in stopwords)


@pytest.fixture
def toy_training():
    """Make a trainer on a toy corpus; called twice it makes the same one."""
    from fast_model import Block, FastOlmoe
    from packing import Sampler, Texts, TokenStore
    from train import Settings, Trainer

    class ToyTemplates:
        def apply(self, ids, template, limit):
            return np.append(ids[: limit - 1], 0).astype(np.int64)

    rng = np.random.default_rng(0)

    def store(count):
        made = TokenStore.__new__(TokenStore)
        lengths = rng.integers(3, 14, count)
        made.offsets = np.concatenate(([0], np.cumsum(lengths)))
        made.ids = rng.integers(2, 300, made.offsets[-1]).astype(np.uint16)
        return made

    texts, prose = store(60), store(20)
    targets = rng.normal(size=(60, 256)).astype(np.float32)
    targets /= np.linalg.norm(targets, axis=1, keepdims=True)
    settings = Settings(steps=10, warmup=2, layout=(Block(2, 32), Block(3, 16)), prose_rows=1, bank=16)

    def make():
        partners = np.arange(60) ^ 1
        forms = Texts(texts, texts, texts)
        sampler = Sampler(forms, prose, ToyTemplates(), partners=partners, layout=settings.layout, prose_rows=1, seed=1)
        return Trainer(FastOlmoe(small_model()), sampler, targets, settings)

    return make


@pytest.mark.slow
def test_a_training_that_was_interrupted_ends_with_the_same_bytes(toy_training, tmp_path):
    whole = toy_training()
    whole.advance()
    whole.save(tmp_path / "half.safetensors")
    whole.advance()
    whole.save(tmp_path / "whole.safetensors")

    resumed = toy_training()
    resumed.restore(tmp_path / "half.safetensors")
    resumed.advance()
    resumed.save(tmp_path / "resumed.safetensors")
    assert (tmp_path / "whole.safetensors").read_bytes() == (tmp_path / "resumed.safetensors").read_bytes()
