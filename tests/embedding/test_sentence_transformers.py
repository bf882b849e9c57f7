"""An SSMoE model is a `SentenceTransformer` in every way that users rely on."""

import json
import pickle
import re
import shutil
import threading
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from having import having
from reference import stored_tensors
from sentence_transformers import SentenceTransformer
from tiny import TOP_C

import ssmoe_embed
from ssmoe_embed import SSMoE
from ssmoe_embed.common.loading import HubKeywords, HubOptions
from ssmoe_embed.data import tiny_folder
from ssmoe_embed.embedding.keywords import EmbeddingKeywords
from ssmoe_embed.embedding.settings import EmbeddingSettings
from ssmoe_embed.spectral.settings import SpectralKeywords, SpectralSettings

QUIET = {"show_progress_bar": False}
PROBES = ["How do I undo the last commit?", "x", "The cook made a soup on Monday.", "", "東京は晴れです"]
SMALL_REPOSITORY = {
    "README.md",
    "config_sentence_transformers.json",
    "modules.json",
    "ssmoe.safetensors",
    "ssmoe_config.json",
}


@pytest.fixture(scope="module")
def model(built):
    """A model through `load`; never change it."""
    return ssmoe_embed.load(built, device="cpu", progress=False)


@pytest.fixture(scope="module")
def vectors(model):
    return model.encode(PROBES, **QUIET)


def files(folder):
    """Every file below a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


# --- saving and loading -----------------------------------------------------------------------------------------------


def test_a_saved_and_loaded_model_gives_the_same_vectors(model, vectors, tmp_path):
    model.save_pretrained(str(tmp_path))
    for again in (ssmoe_embed.load(tmp_path, progress=False), SentenceTransformer(str(tmp_path))):
        np.testing.assert_allclose(again.encode(PROBES, **QUIET), vectors, rtol=0, atol=1e-6)


def test_the_settings_survive_saving(built, tmp_path):
    changes = {
        "method": "moee",
        "alpha": 0.9,
        "mix": "logits",
        "routing_signal": "ev_logits",
        "combination": "sum",
        "routing_weight": 0.3,
        "calibration": "none",
        "prompt": "Topic: {text} Answer:",
        "max_seq_length": 33,
    }
    model = ssmoe_embed.load(built, progress=False, **changes)
    model.save_pretrained(str(tmp_path))
    again = SentenceTransformer(str(tmp_path))
    assert again[0].settings == model[0].settings
    assert again.max_seq_length == 33
    np.testing.assert_allclose(again.encode(PROBES, **QUIET), model.encode(PROBES, **QUIET), rtol=0, atol=1e-6)


def test_the_hidden_layer_survives_saving(built, tmp_path):
    model = ssmoe_embed.load(built, method="moee", calibration="none", hidden_layer=2, progress=False)
    model.save_pretrained(str(tmp_path))
    again = SentenceTransformer(str(tmp_path))
    np.testing.assert_allclose(again.encode(PROBES, **QUIET), model.encode(PROBES, **QUIET), rtol=0, atol=1e-6)


def test_two_saves_give_the_same_bytes(model, built, tmp_path):
    for name in ("first", "second"):
        model.save_pretrained(str(tmp_path / name))
    ssmoe_embed.load(tmp_path / "first", progress=False).save_pretrained(str(tmp_path / "third"))
    assert files(tmp_path / "first") == files(tmp_path / "second")
    assert files(tmp_path / "first") == files(tmp_path / "third")


def test_the_saved_model_is_a_small_repository(model, built, tmp_path):
    model.save_pretrained(str(tmp_path))
    assert set(files(tmp_path)) == SMALL_REPOSITORY
    assert set(files(built)) == SMALL_REPOSITORY


def test_a_hand_made_module_can_be_wrapped_saved_and_loaded(olmoe, texts, tmp_path):
    module = SSMoE.from_base(olmoe, top_c=TOP_C, calibration_texts=texts, prompt="prompteol", progress=False)
    model = SentenceTransformer(modules=[module], device="cpu")
    model.save_pretrained(str(tmp_path))
    again = SentenceTransformer(str(tmp_path), device="cpu")
    np.testing.assert_allclose(again.encode(PROBES, **QUIET), model.encode(PROBES, **QUIET), rtol=0, atol=1e-6)


def test_a_normalize_module_can_follow(model, vectors, tmp_path):
    from sentence_transformers.sentence_transformer.modules import Normalize

    longer = SentenceTransformer(modules=[model[0], Normalize()])
    longer.save_pretrained(str(tmp_path))
    again = SentenceTransformer(str(tmp_path)).encode(PROBES, **QUIET)
    np.testing.assert_allclose(again, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), rtol=0, atol=1e-6)


def test_pickled_weights_are_refused(model, tmp_path):
    with pytest.raises(ValueError, match="safetensors only"):
        model.save_pretrained(str(tmp_path), safe_serialization=False)


def test_the_model_survives_pickling_and_copying(model, vectors):
    for twin in (pickle.loads(pickle.dumps(model)), deepcopy(model)):
        np.testing.assert_array_equal(twin.encode(PROBES, **QUIET), vectors)


def test_a_copy_can_be_configured_without_touching_the_original(model, vectors):
    twin = deepcopy(model)
    having(twin[0], method="ssmoe", alpha=0.9, calibration="none")
    changed = twin.encode(PROBES, **QUIET)
    np.testing.assert_array_equal(model.encode(PROBES, **QUIET), vectors)
    assert not np.allclose(changed, vectors, atol=1e-3)
    fresh = deepcopy(model)
    having(fresh[0], method="ssmoe", alpha=0.9, calibration="none")
    np.testing.assert_array_equal(fresh.encode(PROBES, **QUIET), changed)


BROKEN = [
    ("ssmoe.safetensors", lambda content: content[: len(content) // 2], ValueError, "truncated or corrupted"),
    ("ssmoe.safetensors", lambda content: b"", ValueError, "truncated or corrupted"),
    ("ssmoe.safetensors", None, FileNotFoundError, r"ssmoe\.safetensors"),
    ("ssmoe_config.json", None, FileNotFoundError, r"ssmoe_config\.json"),
    ("ssmoe_config.json", lambda content: b"{", ValueError, r"ssmoe_config\.json|JSON"),
    ("ssmoe_config.json", lambda content: content.replace(b"method", b"metod"), ValueError, "setting='metod'"),
    ("ssmoe_config.json", lambda content: b"{}", (ValueError, FileNotFoundError), r"ssmoe_config\.json"),
    (
        "ssmoe_config.json",
        lambda content: content.replace(b"base_model_name_or_path", b"something_else_entirely"),
        ValueError,
        "base_model_name_or_path|something_else",
    ),
]


@pytest.mark.parametrize(("name", "change", "error", "message"), BROKEN)
def test_a_broken_file_is_named(name, change, error, message, *, built, tmp_path):
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    if change is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(change((tmp_path / name).read_bytes()))
    with pytest.raises(error, match=message):
        SentenceTransformer(str(tmp_path))


def test_a_base_model_that_changed_since_is_refused(olmoe, built, tmp_path):
    shutil.copytree(olmoe, tmp_path / "base")
    shutil.copytree(built, tmp_path / "model")
    config = json.loads((tmp_path / "model/ssmoe_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = str(tmp_path / "base")
    (tmp_path / "model/ssmoe_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert len(SentenceTransformer(str(tmp_path / "model")).encode(PROBES, **QUIET)) == len(PROBES)

    from safetensors.torch import save_file

    tensors = stored_tensors(tmp_path / "base")
    tensors["model.layers.2.mlp.gate.weight"] *= -1
    save_file(tensors, tmp_path / "base/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="the learned routers of layer 2 differ"):
        SentenceTransformer(str(tmp_path / "model"))


def test_a_base_model_that_is_gone_is_named(built, tmp_path):
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "ssmoe_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = "/nowhere/my-base"
    (tmp_path / "ssmoe_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises((OSError, ValueError), match="/nowhere/my-base"):
        SentenceTransformer(str(tmp_path))


# --- plain SentenceTransformer ----------------------------------------------------------------------------------------


def test_after_the_import_a_plain_sentence_transformer_loads_it(built, vectors):
    plain = SentenceTransformer(str(built), device="cpu")
    assert type(plain[0]) is SSMoE
    np.testing.assert_array_equal(plain.encode(PROBES, **QUIET), vectors)


def test_the_import_trusts_no_other_class(built, tmp_path):
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    modules = json.loads((tmp_path / "modules.json").read_text(encoding="utf-8"))
    modules[0]["type"] = "ssmoe_embed.embedding.module.SomethingElse"
    (tmp_path / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    with pytest.raises((ValueError, ImportError), match="trust_remote_code"):
        SentenceTransformer(str(tmp_path))


def test_stock_models_load_as_before(olmoe):
    """The class is made known without hiding those that sentence-transformers knows itself."""
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    stock = SentenceTransformer(modules=[Transformer(str(olmoe)), Pooling(32, "mean")], device="cpu")
    assert stock.encode(["a"], **QUIET).shape == (1, 32)


# --- encode and its options -------------------------------------------------------------------------------------------


def test_queries_and_documents_are_encoded_alike_unless_prompts_differ(built, vectors):
    model = ssmoe_embed.load(built, progress=False)
    np.testing.assert_array_equal(model.encode_query(PROBES, **QUIET), vectors)
    np.testing.assert_array_equal(model.encode_document(PROBES, **QUIET), vectors)
    model.prompts = {"query": "query: ", "document": "passage: ", "other": "other: "}
    prefixed = [f"query: {text}" for text in PROBES]
    np.testing.assert_array_equal(model.encode_query(PROBES, **QUIET), model.encode(prefixed, **QUIET))
    passages = [f"passage: {text}" for text in PROBES]
    np.testing.assert_array_equal(model.encode_document(PROBES, **QUIET), model.encode(passages, **QUIET))
    others = model.encode([f"other: {text}" for text in PROBES], **QUIET)
    np.testing.assert_array_equal(model.encode(PROBES, prompt_name="other", **QUIET), others)
    np.testing.assert_array_equal(model.encode(PROBES, prompt="other: ", **QUIET), others)


def test_prompts_survive_saving(built, tmp_path):
    model = ssmoe_embed.load(built, progress=False)
    model.prompts = {"query": "query: ", "document": ""}
    model.save_pretrained(str(tmp_path))
    again = SentenceTransformer(str(tmp_path))
    np.testing.assert_array_equal(again.encode_query(PROBES, **QUIET), model.encode_query(PROBES, **QUIET))


def test_vectors_can_be_cut_normalised_and_given_as_tensors(model, vectors):
    np.testing.assert_array_equal(model.encode(PROBES, truncate_dim=7, **QUIET), vectors[:, :7])
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(model.encode(PROBES, normalize_embeddings=True, **QUIET), units, rtol=0, atol=1e-6)
    tensors = model.encode(PROBES, convert_to_tensor=True, **QUIET)
    assert isinstance(tensors, torch.Tensor)
    assert tensors.dtype == torch.float32
    np.testing.assert_array_equal(tensors.numpy(), vectors)
    rows = model.encode(PROBES, convert_to_numpy=False, **QUIET)
    np.testing.assert_array_equal(torch.stack(rows).numpy(), vectors)


def test_the_model_can_be_loaded_with_a_truncated_size(built, vectors):
    model = SentenceTransformer(str(built), truncate_dim=5)
    assert model.get_embedding_dimension() == 5
    np.testing.assert_array_equal(model.encode(PROBES, **QUIET), vectors[:, :5])


@pytest.mark.parametrize(
    ("precision", "kind", "shrink"),
    [("int8", np.int8, 1), ("uint8", np.uint8, 1), ("binary", np.int8, 8), ("ubinary", np.uint8, 8)],
)
def test_vectors_can_be_quantised(precision, kind, shrink, model, texts):
    quantised = model.encode(texts, precision=precision, **QUIET)
    assert quantised.dtype == kind
    assert quantised.shape == (len(texts), model.get_embedding_dimension() // shrink)
    assert len(np.unique(quantised)) > 2


def test_similarity_is_the_cosine(model, vectors):
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(model.similarity(vectors, vectors).numpy(), units @ units.T, rtol=0, atol=1e-5)
    assert model.similarity_pairwise(vectors[:2], vectors[1:3]).shape == (2,)


def test_token_embeddings_are_the_hidden_states_of_the_texts_tokens(built, olmoe):
    from transformers import AutoModel

    model = ssmoe_embed.load(built, method="smoe", calibration="none", progress=False)
    found = model.encode(["a", "a longer text"], output_value="token_embeddings", **QUIET)
    base = AutoModel.from_pretrained(olmoe).eval()
    for text, tokens in zip(["a", "a longer text"], found, strict=True):
        ids = model.tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected = base(ids).last_hidden_state[0]
        torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-5)


def test_everything_can_be_had_at_once(model, vectors):
    everything = model.encode(PROBES, output_value=None, **QUIET)
    np.testing.assert_array_equal(torch.stack([row["sentence_embedding"] for row in everything]).numpy(), vectors)


def test_the_maximum_length_can_be_set_as_on_any_sentence_transformer(built):
    model = ssmoe_embed.load(built, progress=False)
    model.max_seq_length = 6
    assert model.max_seq_length == 6
    assert model.preprocess(["many words " * 20])["input_ids"].shape == (1, 6)
    shorter = SentenceTransformer(str(built), processor_kwargs={"model_max_length": 5})
    assert shorter.preprocess(["many words " * 20])["input_ids"].shape == (1, 5)


def test_unknown_keywords_of_encode_are_refused(model):
    with pytest.raises(ValueError, match="metod"):
        model.encode(["a"], metod="ev", **QUIET)


def test_the_caller_s_list_is_not_changed(model):
    texts = ["bbb", "a", "cc"]
    model.encode(texts, **QUIET)
    assert texts == ["bbb", "a", "cc"]


def test_threads_can_share_a_model(model, texts, vectors):
    expected = [model.encode(texts[start::4], **QUIET) for start in range(4)]
    found, errors = [[] for _ in range(4)], []

    def work(start):
        try:
            for _ in range(4):
                found[start].append(model.encode(texts[start::4], batch_size=4, **QUIET))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for rows, same in zip(found, expected, strict=True):
        assert len(rows) == 4
        for row in rows:
            np.testing.assert_allclose(row, same, rtol=0, atol=1e-5)


def test_a_pickled_model_as_workers_get_it_gives_the_same_vectors(model, vectors):
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).encode(PROBES, **QUIET), vectors)


@pytest.mark.slow
def test_a_pool_of_processes_gives_the_vectors_of_one(model, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert model[0].settings.forward.mixes
    texts = [f"text number {n} " * (n % 7) for n in range(24)]
    pool = model.start_multi_process_pool(["cpu", "cpu"])
    try:
        pooled = model.encode(texts, pool=pool, batch_size=4, **QUIET)
    finally:
        model.stop_multi_process_pool(pool)
    np.testing.assert_allclose(pooled, model.encode(texts, **QUIET), rtol=0, atol=1e-5)


# --- dtypes and what is passed on to the base model -------------------------------------------------------------------


@pytest.mark.parametrize("calibration", ["standardize", "none"])
@pytest.mark.parametrize("convert", ["half", "bfloat16"])
def test_a_halved_model_gives_finite_float32_vectors_near_the_full_ones(convert, calibration, built):
    model = ssmoe_embed.load(built, calibration=calibration, progress=False)
    full = model.encode(PROBES[:3], **QUIET)
    model = getattr(model, convert)()
    assert next(model[0].model.parameters()).dtype == {"half": torch.float16, "bfloat16": torch.bfloat16}[convert]
    halved = model.encode(PROBES[:3], convert_to_tensor=True, **QUIET)
    assert halved.dtype == torch.float32
    assert halved.isfinite().all()
    for block in model[0].calibrations.factors.values():
        assert block.mean.dtype == block.factor.dtype == torch.float32
    for weight in model[0].routers.weights.values():
        assert weight.dtype == torch.float32
    similarity = torch.nn.functional.cosine_similarity(halved, torch.from_numpy(full), dim=1)
    assert similarity.median() > 0.95


def test_a_halved_model_can_be_made_whole_again(built, vectors):
    model = ssmoe_embed.load(built, progress=False).bfloat16().float()
    assert np.isfinite(model.encode(PROBES, **QUIET)).all()


@pytest.mark.parametrize("method", ["smoe", "moee", "ssmoe"])
def test_a_vector_that_is_not_finite_is_an_error_that_says_what_to_do(method, built):
    model = ssmoe_embed.load(built, method=method, calibration="none", progress=False).half()
    with torch.no_grad():
        model[0].model.norm.weight.fill_(60_000)
    with pytest.raises(ValueError, match=r"not finite in torch\.float16.*dtype"):
        model.encode(PROBES, **QUIET)


def test_a_model_may_move_to_another_device_and_back(built, vectors):
    model = ssmoe_embed.load(built, progress=False)
    model.to("cpu")
    np.testing.assert_array_equal(model.encode(PROBES, **QUIET), vectors)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_the_dtype_in_model_kwargs_is_honoured(dtype, built):
    for model in (
        ssmoe_embed.load(built, model_kwargs={"dtype": dtype}, progress=False),
        SentenceTransformer(str(built), model_kwargs={"dtype": dtype}),
    ):
        assert model[0].model.dtype == torch.bfloat16
        assert np.isfinite(model.encode(PROBES, **QUIET)).all()


def test_the_attention_implementation_in_model_kwargs_is_honoured(built, vectors):
    for implementation in ("eager", "sdpa"):
        model = ssmoe_embed.load(built, model_kwargs={"attn_implementation": implementation}, progress=False)
        assert model[0].model.config._attn_implementation == implementation
        np.testing.assert_allclose(model.encode(PROBES, **QUIET), vectors, rtol=0, atol=1e-5)


def test_a_device_map_in_model_kwargs_is_honoured(built, vectors):
    model = ssmoe_embed.load(built, model_kwargs={"device_map": "cpu"}, progress=False)
    np.testing.assert_allclose(model.encode(PROBES, **QUIET), vectors, rtol=0, atol=1e-6)


def test_the_base_is_loaded_without_its_language_model_head(model):
    names = dict(model[0].model.named_parameters())
    assert not any("lm_head" in name for name in names)
    assert type(model[0].model).__name__ == "OlmoeModel"


# --- training ---------------------------------------------------------------------------------------------------------


def test_the_base_is_frozen_until_it_is_unfrozen(model):
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model[0].model.training


@pytest.mark.parametrize("method", ["moee", "ssmoe"])
def test_a_gradient_flows_to_an_unfrozen_base(method, built):
    model = ssmoe_embed.load(built, method=method, progress=False)
    model[0].model.requires_grad_(True)
    features = model.preprocess(PROBES[:3])
    model.forward(features)["sentence_embedding"].square().sum().backward()
    for parameter in (model[0].model.layers[0].mlp.gate.weight, model[0].model.embed_tokens.weight):
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 0


def train(model, parameters):
    """Two real steps."""
    optimizer = torch.optim.SGD(parameters, lr=0.05)
    for _ in range(2):
        loss = model.forward(model.preprocess(PROBES[:3]))["sentence_embedding"].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_a_trained_base_is_saved_with_the_model_and_loaded_again(built, olmoe, vectors, tmp_path):
    model = ssmoe_embed.load(built, progress=False)
    model[0].model.requires_grad_(True)
    train(model, model[0].model.layers[1].self_attn.parameters())
    trained = model.encode(PROBES, **QUIET)
    assert not np.allclose(trained, vectors, atol=1e-3)
    model.save_pretrained(str(tmp_path / "trained"))
    shutil.move(tmp_path / "trained", tmp_path / "elsewhere")
    again = SentenceTransformer(str(tmp_path / "elsewhere"))
    np.testing.assert_allclose(again.encode(PROBES, **QUIET), trained, rtol=0, atol=1e-6)
    assert str(olmoe) not in (tmp_path / "elsewhere/ssmoe_config.json").read_text(encoding="utf-8")


def test_a_model_that_was_trained_as_a_whole_routers_included_is_loaded_again(built, tmp_path):
    model = ssmoe_embed.load(built, progress=False)
    model[0].model.requires_grad_(True)
    train(model, model.parameters())
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for layer in model[0].model.layers:
            layer.mlp.gate.weight += 0.1 * torch.randn(layer.mlp.gate.weight.shape, generator=generator)
    trained = model.encode(PROBES, **QUIET)
    model.save_pretrained(str(tmp_path))
    again = SentenceTransformer(str(tmp_path))
    np.testing.assert_allclose(again.encode(PROBES, **QUIET), trained, rtol=0, atol=1e-6)


def test_a_trained_base_that_is_frozen_again_is_not_lost(built, tmp_path):
    model = ssmoe_embed.load(built, progress=False)
    model[0].model.requires_grad_(True)
    train(model, model[0].model.norm.parameters())
    model[0].model.requires_grad_(False)
    trained = model.encode(PROBES, **QUIET)
    model.save_pretrained(str(tmp_path))
    again = SentenceTransformer(str(tmp_path))
    np.testing.assert_allclose(again.encode(PROBES, **QUIET), trained, rtol=0, atol=1e-6)


def test_a_trained_model_can_be_loaded_trained_and_saved_again(built, tmp_path):
    model = ssmoe_embed.load(built, progress=False)
    for name in ("first", "second"):
        model[0].model.requires_grad_(True)
        train(model, model[0].model.norm.parameters())
        model.save_pretrained(str(tmp_path / name))
        trained = model.encode(PROBES, **QUIET)
        model = SentenceTransformer(str(tmp_path / name))
        np.testing.assert_allclose(model.encode(PROBES, **QUIET), trained, rtol=0, atol=1e-6)
    model.save_pretrained(str(tmp_path / "third"))
    shutil.rmtree(tmp_path / "second")
    again = SentenceTransformer(str(tmp_path / "third"))
    np.testing.assert_allclose(again.encode(PROBES, **QUIET), trained, rtol=0, atol=1e-6)


# --- what a saved model says of itself --------------------------------------------------------------------------------


def test_the_requirement_of_this_package_is_written(model, tmp_path):
    model.save_pretrained(str(tmp_path))
    config = json.loads((tmp_path / "config_sentence_transformers.json").read_text(encoding="utf-8"))
    requirement = config["requirements"]["ssmoe-embed"]
    assert requirement["specifier"] == f">={ssmoe_embed.__version__}"
    assert "pip install ssmoe-embed" in requirement["reason"]


def test_a_later_version_of_this_package_is_asked_for_by_name(built, tmp_path):
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "config_sentence_transformers.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["requirements"]["ssmoe-embed"]["specifier"] = ">=999"
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ImportError, match="ssmoe-embed"):
        SentenceTransformer(str(tmp_path))


def test_the_module_is_named_by_its_public_path(built):
    [module] = json.loads((built / "modules.json").read_text(encoding="utf-8"))
    assert module["type"] == "ssmoe_embed.SSMoE"
    assert module["path"] == ""


def test_the_card_names_base_model_settings_and_licence(built, olmoe):
    card = (built / "README.md").read_text(encoding="utf-8")
    header = card.split("---")[1]
    assert "license: apache-2.0" in header
    assert "library_name: sentence-transformers" in header
    for part in (
        olmoe.name,
        "`ssmoe`",
        "alpha",
        "top_c",
        "standardize",
        "max_seq_length",
        "apache-2.0",
        "import ssmoe",
    ):
        assert part in card


def test_every_link_of_a_card_is_to_a_page_outside_and_none_to_a_file_that_is_not_there(built):
    for folder in (built, tiny_folder()):
        links = set(re.findall(r"\]\(([^)]+)\)", (folder / "README.md").read_text(encoding="utf-8")))
        assert {link.split("/")[2] for link in links} == {"www.sbert.net", "arxiv.org"}


def test_no_path_of_this_machine_is_in_the_card(built, olmoe):
    assert str(olmoe.parent) not in (built / "README.md").read_text(encoding="utf-8")


def settings_in_the_card(folder):
    return (folder / "README.md").read_text(encoding="utf-8").split("## Settings")[1].split("##")[0]


def test_the_cards_settings_are_those_that_the_model_was_loaded_with(built, tmp_path):
    ssmoe_embed.load(built, method="moee", calibration="none", progress=False).save_pretrained(str(tmp_path))
    assert "| method | `moee` |" in settings_in_the_card(tmp_path)


def test_the_cards_settings_follow_a_change(built, tmp_path):
    model = ssmoe_embed.load(built, progress=False)
    having(model[0], method="ev")
    model.save_pretrained(str(tmp_path))
    assert "| method | `ev` |" in settings_in_the_card(tmp_path)


def test_a_card_written_by_hand_is_kept(built, tmp_path):
    shutil.copytree(built, tmp_path / "model")
    (tmp_path / "model/README.md").write_text("# My own words\n", encoding="utf-8")
    ssmoe_embed.load(tmp_path / "model", progress=False).save_pretrained(str(tmp_path / "again"))
    assert (tmp_path / "again/README.md").read_text(encoding="utf-8") == "# My own words\n"


@pytest.mark.parametrize("load", [ssmoe_embed.load, SentenceTransformer], ids=["load", "SentenceTransformer"])
def test_pushing_uploads_exactly_the_small_repository_and_a_card_with_its_name(load, built, monkeypatch):
    import huggingface_hub

    calls, uploaded = [], {}

    class Hub:
        def __init__(self, **kwargs):
            pass

        def create_repo(self, repo_id, **kwargs):
            calls.append(repo_id)
            return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

        def upload_folder(self, *, folder_path, **kwargs):
            uploaded.update(files(folder_path))
            return huggingface_hub.CommitInfo(
                commit_url="https://huggingface.co/me/model/commit/0", commit_message="", commit_description="", oid="0"
            )

    monkeypatch.setattr("sentence_transformers.base.model.HfApi", Hub)
    load(str(built)).push_to_hub("me/model")
    assert calls == ["me/model"]
    assert set(uploaded) == SMALL_REPOSITORY
    assert uploaded["ssmoe.safetensors"] == (built / "ssmoe.safetensors").read_bytes()
    assert b'SentenceTransformer("me/model")' in uploaded["README.md"]


@pytest.mark.parametrize(
    ("keywords", "settings"),
    [(EmbeddingKeywords, EmbeddingSettings), (SpectralKeywords, SpectralSettings), (HubKeywords, HubOptions)],
)
def test_every_setting_is_a_keyword_that_editors_complete(keywords, settings):
    assert list(keywords.__annotations__) == list(settings.__dataclass_fields__)
