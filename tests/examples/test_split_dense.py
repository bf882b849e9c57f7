"""A dense model that is divided into experts, as examples/split_dense does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

FOLDER = Path(__file__).parents[2] / "examples"
EXPERTS, SHARED, INNER, HIDDEN = 4, 16, 48, 16


@pytest.fixture
def split(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    import split_dense.__main__
    import split_dense.activations
    import split_dense.checkpoint
    import split_dense.distil
    import split_dense.layers
    import split_dense.masked
    import split_dense.neurons
    import split_dense.routers

    yield split_dense
    for name in set(sys.modules) - before:
        if name.startswith("split_dense"):
            del sys.modules[name]


@pytest.fixture
def dense() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=64,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    model = Qwen2ForCausalLM(config).eval().requires_grad_(False)
    for parameter in model.model.layers.parameters():
        parameter.mul_(4)  # or the feed-forward part would hardly matter
    return model


@pytest.fixture
def rows():
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(64, (length,), generator=draw).tolist() for length in (9, 30, 12, 17) * 8]


@pytest.fixture
def layers(split, dense, rows, tmp_path):
    files = split.activations.record(dense.model, rows, tmp_path / "activations", part=200)
    division = split.layers.Division(SHARED, EXPERTS, k=2, sharpness=0.5)
    return split.__main__.divided_layers(dense, files, division, tmp_path / "layers")


def test_clusters_are_equally_large_and_hold_what_is_alike(split):
    draw = torch.Generator().manual_seed(0)
    truth = torch.arange(60) % 5
    features = torch.eye(5)[truth] + 0.05 * torch.randn(60, 5, generator=draw)
    clusters = split.neurons.balanced_clusters(features, 5, seed=3)
    assert clusters.flatten().sort().values.tolist() == list(range(60))
    assert all(len(set(truth[one].tolist())) == 1 for one in clusters)


def test_a_number_of_experts_that_does_not_divide_is_refused(split):
    with pytest.raises(ValueError, match="10 neurons cannot be divided into 3"):
        split.neurons.balanced_clusters(torch.ones(10, 2), 3, seed=0)


def test_what_is_missing_is_the_distance_of_the_outputs(split):
    draw = torch.Generator().manual_seed(0)
    outputs, weights = torch.randn(7, 5, 9, generator=draw), torch.rand(7, 5, generator=draw)
    gram = outputs @ outputs.transpose(1, 2)
    whole, given = outputs.sum(1), (weights[..., None] * outputs).sum(1)
    torch.testing.assert_close(split.routers.missing(weights, gram), (whole - given).pow(2).sum(1))


def test_a_fitted_router_finds_the_experts_that_matter(split):
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(4000, 12, generator=draw)
    truth = torch.randn(6, 12, generator=draw)
    gram = torch.diag_embed((inputs @ truth.T).exp())
    fitted = split.routers.fit_router(
        inputs, gram, gram.diagonal(dim1=1, dim2=2).sum(1), k=2, sharpness=0.1, seed=0, steps=100, batch=512
    )
    best = (inputs @ truth.T).topk(2).indices.sort().values
    found = (inputs @ fitted.weight.T).topk(2).indices.sort().values
    assert (best == found).float().mean() > 0.9
    assert float((inputs @ fitted.weight.T).std(1).mean()) == pytest.approx(0.1, rel=0.05)
    torch.testing.assert_close(fitted.load.sum(), torch.tensor(2.0))


def test_recorded_inputs_are_what_enters_each_layer(split, dense, rows, tmp_path):
    files = split.activations.record(dense.model, rows, tmp_path, part=200)
    assert len(files) > 2
    entered = []
    handle = dense.model.layers[1].mlp.register_forward_pre_hook(lambda _module, given: entered.append(given[0][0]))
    hidden = torch.cat([dense.model(torch.tensor([row])).last_hidden_state[0] for row in rows])
    handle.remove()
    torch.testing.assert_close(split.activations.layer_inputs(files, 1), torch.cat(entered), atol=1e-4, rtol=1e-4)
    parts = [pair for file in files for pair in split.distil.rows_of(file)]
    assert [ids.tolist() for ids, _ in parts] == rows
    torch.testing.assert_close(torch.cat([states for _, states in parts]), hidden, atol=1e-4, rtol=1e-4)


def test_interrupted_work_goes_on_and_gives_the_same(split, dense, rows, tmp_path, layers):
    folder = tmp_path / "layers"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    kept = sorted(folder.iterdir())[0]
    stamp = kept.stat().st_mtime_ns
    sorted(folder.iterdir())[1].unlink()
    files = split.activations.record(dense.model, rows, tmp_path / "activations", part=200)
    split.__main__.divided_layers(dense, files, split.layers.Division(SHARED, EXPERTS, 2, 0.5), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert kept.stat().st_mtime_ns == stamp


@pytest.mark.parametrize("case", [(EXPERTS, True), (2, False), (1, False)])
def test_the_checkpoint_computes_what_the_division_says(split, dense, layers, tmp_path, case):
    k, flat = case
    split.checkpoint.sparse_model(dense, layers, k, flat=flat).save_pretrained(tmp_path / "sparse")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "sparse").eval()
    assert loaded.config.model_type == "qwen2_moe"
    ids = torch.arange(40).view(2, 20)
    found = loaded(ids).logits
    if flat:  # all experts, equally: the dense model itself
        expected = dense(ids).logits
    else:
        with split.masked.divided(dense.model, layers, k):
            expected = dense(ids).logits
        assert not torch.allclose(found, dense(ids).logits, atol=1e-2)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)


def test_after_the_block_the_model_is_dense_again(split, dense, layers):
    ids = torch.arange(20)[None]
    before = dense(ids).logits
    with split.masked.divided(dense.model, layers, 1) as parts:
        dense(ids)
        assert [float(part.load().sum()) for part in parts] == pytest.approx([1, 1])
    assert torch.equal(dense(ids).logits, before)


def test_distillation_brings_hidden_states_closer(split, dense, rows, tmp_path, layers):
    files = split.activations.record(dense.model, rows, tmp_path / "activations", part=200)
    trained = split.distil.distil(dense.model, layers, files, 2, steps=30, seed=0, rate=0.05)
    texts = split.distil.rows_of(files[0])

    def distance(chosen) -> float:
        with split.masked.divided(dense.model, chosen, 2), torch.no_grad():
            return float(split.distil.distance(dense.model, texts))

    assert distance(trained) < distance(layers)
    assert all(torch.equal(one.experts, other.experts) for one, other in zip(trained, layers, strict=True))
