"""Models as mteb sees them: names, revisions, records, and loading by a record."""

import hashlib
import json
import shutil
from pathlib import Path

import mteb
import numpy as np
import pytest
import torch
from mteb.mocks import MockSTSTask
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import StaticEmbedding
from tiny import EXPERTS, HIDDEN, TOP_C, save_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import ssmoe_embed
from ssmoe_embed.evaluation.mteb.models import EvaluatedModel, load_encoder, model_name
from ssmoe_embed.evaluation.mteb.passes import SharedPass
from ssmoe_embed.evaluation.mteb.records import loading_changes, revision_of
from ssmoe_embed.evaluation.mteb.runs import Run
from ssmoe_embed.evaluation.tasks.corruption import Corruption
from ssmoe_embed.hub.names import RECIPES


def revision(name, **settings):
    return EvaluatedModel.load(name, progress=False, **settings).revision


@pytest.fixture(scope="module")
def evaluated(built):
    return EvaluatedModel.load(built, progress=False)


def test_names_are_of_the_form_that_mteb_needs(tmp_path, monkeypatch):
    (tmp_path / "ssmoe" / "mine").mkdir(parents=True)
    assert model_name(str(tmp_path / "ssmoe" / "mine")) == "local/mine"
    monkeypatch.chdir(tmp_path / "ssmoe" / "mine")
    assert model_name(".") == "local/mine"
    assert model_name("ssmoe/olmoe-7b") == "ssmoe/olmoe-7b"
    assert "/" in model_name("gpt-moe")


def test_a_revision_does_not_depend_on_where_the_model_lies(built, olmoe, tmp_path):
    moved = shutil.copytree(built, tmp_path / "moved")
    assert revision(moved) == revision(built)
    base = shutil.copytree(olmoe, tmp_path / "base")
    plain = {"method": "smoe", "calibration": "none"}
    first, second = (EvaluatedModel.of(ssmoe_embed.load(one, progress=False, **plain)) for one in (olmoe, base))
    assert first.revision == second.revision


def test_a_revision_tells_apart_what_gives_other_vectors(built, olmoe, texts, tmp_path):
    top_c = ssmoe_embed.build(olmoe, tmp_path / "top_c", top_c=TOP_C - 1, calibration_texts=texts, progress=False)
    sample = ssmoe_embed.build(olmoe, tmp_path / "sample", top_c=TOP_C, calibration_texts=texts[1:], progress=False)
    alpha = ssmoe_embed.build(
        olmoe, tmp_path / "alpha", top_c=TOP_C, alpha=0.9, calibration_texts=texts, progress=False
    )
    weights = save_model(tmp_path / "weights", "olmoe", seed=2)
    other = ssmoe_embed.build(weights, tmp_path / "other", top_c=TOP_C, calibration_texts=texts, progress=False)
    found = [revision(one) for one in (built, top_c, sample, alpha, other)]
    assert len(set(found)) == len(found)


def test_one_changed_weight_of_the_base_model_changes_the_revision(olmoe, tmp_path):
    base = shutil.copytree(olmoe, tmp_path / "base")
    [file] = base.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    plain = {"method": "smoe", "calibration": "none"}
    first, second = (EvaluatedModel.of(ssmoe_embed.load(one, progress=False, **plain)) for one in (olmoe, base))
    assert first.revision != second.revision


def test_what_was_changed_in_memory_changes_the_revision(olmoe):
    def changed(change):
        model = ssmoe_embed.load(olmoe, method="smoe", calibration="none", progress=False)
        change(model[0])
        return EvaluatedModel.of(model, "test/olmoe").revision

    def edit(module):
        with torch.no_grad():
            next(module.model.parameters())[0, 0] += 1

    def adapter(seed):
        def add(module):
            torch.manual_seed(seed)
            inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False), module.model)

        return add

    found = [changed(change) for change in (id, id, edit, adapter(0), adapter(1), adapter(1))]
    assert found[0] == found[1]
    assert found[4] == found[5]
    assert len(set(found)) == 4


def test_a_retrained_adapter_changes_the_revision(olmoe, tmp_path):
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(olmoe)
        get_peft_model(
            model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False), "default"
        ).save_pretrained(tmp_path / str(seed) / "tuned")
    names = [tmp_path / str(seed) / "tuned" for seed in (0, 1)]
    first, second = (revision(name, method="smoe", calibration="none") for name in names)
    assert first != second


def in_hub_cache(cache, files):
    """Put a repository some/model into a hub cache, with two branches; returns their commits."""
    commits = {"main": "a" * 40, "v2": "b" * 40}
    repository = cache / "models--some--model"
    for branch, commit in commits.items():
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        for file in files:
            shutil.copyfile(file, snapshot / file.name)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / branch).write_text(commit, encoding="utf-8")
    return commits


def test_a_revision_is_a_digest_of_what_is_saved(built, olmoe):
    config = json.loads((Path(built) / "ssmoe_config.json").read_text(encoding="utf-8"))
    places = ("base_model_name_or_path", "base_revision", "base_license")
    routers = ssmoe_embed.load(built, progress=False)[0].routers
    expected = hashlib.sha256(b"revision 1")
    for value in ({name: value for name, value in config.items() if name not in places}, routers.settings.as_dict()):
        expected.update(json.dumps(value, sort_keys=True).encode() + b"\0")
    files = [file for pattern in ("*.safetensors", "*.bin", "*.json") for file in Path(olmoe).glob(pattern)]
    kept = [file for file in files if file.suffix != ".json" or file.name in {"config.json", "tokenizer.json"}]
    for file in [Path(built) / "ssmoe.safetensors", *sorted(kept)]:
        if file.parent == Path(olmoe):
            expected.update(json.dumps(file.name).encode() + b"\0")
        expected.update(json.dumps(file.stat().st_size).encode() + b"\0" + file.read_bytes())
    assert revision(built) == expected.hexdigest()[:16]


def test_the_revision_of_a_hub_model_is_the_commit_it_was_loaded_at(built, evaluated, tmp_path):
    commits = in_hub_cache(tmp_path, [Path(built) / "modules.json"])
    module, own = evaluated.model[0], evaluated.own
    for branch, commit in commits.items():
        for named in (branch, commit):
            assert revision_of("some/model", module, own, revision=named, cache_folder=tmp_path) == commit
    assert revision_of("some/model", module, own, cache_folder=tmp_path) == commits["main"]


def test_a_base_model_of_the_hub_is_known_by_the_commit_it_was_loaded_at(olmoe, tmp_path):
    commits = in_hub_cache(tmp_path, [file for file in Path(olmoe).iterdir() if file.is_file()])
    plain = {"method": "smoe", "calibration": "none", "progress": False, "local_files_only": True}
    for branch, commit in commits.items():
        for named in (branch, commit):
            model = ssmoe_embed.load("some/model", revision=named, cache_folder=str(tmp_path), **plain)
            assert EvaluatedModel.of(model).revision == commit


def test_an_encoder_loaded_by_its_record_has_the_records_revision(built, tmp_path, monkeypatch):
    commits = in_hub_cache(tmp_path, [file for file in Path(built).iterdir() if file.is_file()])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for commit in commits.values():
        encoder = load_encoder("some/model", revision=commit, device="cpu")
        assert (encoder.mteb_model_meta.name, encoder.mteb_model_meta.revision) == ("some/model", commit)


def test_a_record_counts_parameters_as_the_model_has_them(evaluated):
    meta, base = evaluated.meta(Run()), evaluated.model[0].model
    layers = base.config.num_hidden_layers
    expert = 3 * HIDDEN * base.config.intermediate_size
    total = sum(parameter.numel() for parameter in base.parameters())
    assert meta.n_parameters == total
    assert meta.n_active_parameters == total - layers * (EXPERTS - base.config.num_experts_per_tok) * expert
    assert meta.memory_usage_mb == pytest.approx(4 * total / 2**20, abs=0.1)


@pytest.mark.parametrize("method", ["router", "smoe", "ssmoe"])
def test_a_record_knows_the_length_of_the_vectors_of_its_run(built, evaluated, method):
    before = evaluated.model[0].settings
    meta = evaluated.meta(Run(method))
    assert evaluated.model[0].settings == before
    assert meta.embed_dim == len(ssmoe_embed.load(built, method=method, progress=False).encode("a"))


def test_a_record_says_what_mteb_asks_of_a_model(evaluated):
    meta = evaluated.meta(Run())
    assert meta.name == "local/model"
    assert meta.license == "apache-2.0"
    assert meta.use_instructions is False
    assert meta.similarity_fn_name == mteb.models.model_meta.ScoringFunction.COSINE
    assert meta.experiment_name is None
    assert meta.training_datasets is None, "nothing is known of a local model's training"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_record_tells_its_origin(name, built):
    model = EvaluatedModel.of(ssmoe_embed.load(built, progress=False), name)
    meta, recipe = model.meta(Run()), RECIPES[name]
    assert meta.name == name
    assert meta.adapted_from == recipe.base
    assert str(meta.release_date) == recipe.released
    assert meta.languages == list(recipe.languages)
    assert meta.training_datasets == set(), "a recipe trains nothing"


@pytest.mark.parametrize(
    "run",
    [
        Run(),
        Run("ev", "prompteol", overrides={"calibration": "none"}),
        Run("smoe", 'Topic of "{text}":', Corruption(rate=0.5), {"calibration": "none"}),
    ],
    ids=["as it is", "method and prompt", "own prompt, corrupted"],
)
def test_mteb_loads_the_encoder_that_a_record_describes(built, evaluated, run):
    meta = evaluated.meta(run).model_copy(update={"name": str(built)})
    encoder = meta.load_model(device="cpu")
    task = MockSTSTask()
    task.load_data()
    texts = list(task.dataset["test"]["sentence1"])
    loader = mteb._create_dataloaders._create_dataloader_from_texts(texts)
    found = encoder.encode(loader, task_metadata=task.metadata, hf_split="test", hf_subset="default", batch_size=8)
    plain = ssmoe_embed.load(built, progress=False, **evaluated.settings(run).as_dict())
    expected = plain.encode([text if run.corruption is None else run.corruption.apply(text) for text in texts])
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_an_encoder_compares_by_the_models_own_similarity(built):
    encoder = load_encoder(str(built), device="cpu")
    vectors = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.similarity(vectors, vectors), unit @ unit.T, atol=1e-6)
    np.testing.assert_allclose(encoder.similarity_pairwise(vectors, vectors), np.ones(4), atol=1e-6)


@pytest.mark.parametrize(
    ("loading", "told"),
    [
        ({"model_kwargs": {"dtype": torch.bfloat16}}, {"dtype": "bfloat16"}),
        ({"model_kwargs": {"torch_dtype": "float16"}}, {"dtype": "float16"}),
        ({"load_in_4bit": True}, {"load_in_4bit": True}),
        ({"model_kwargs": {"load_in_4bit": True}}, {"load_in_4bit": True}),
    ],
)
def test_how_a_model_is_loaded_is_part_of_a_runs_name(built, loading, told):
    model = EvaluatedModel.load(built, progress=False, **loading)
    named = model.meta(Run()).experiment_kwargs
    assert {key: value for key, value in named.items() if key not in ("method", "prompt")} == told
    assert model.revision == revision(built)


def test_loading_changes_are_those_that_change_numbers():
    assert loading_changes({"device_map": "auto"}, None, None) == loading_changes(None, False, None) == {}
    assert loading_changes(None, False, "nf4") == {"load_in_4bit": False}, "it was built in 4 bits"
    first, second = (
        loading_changes(
            {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind)}, None, None
        )
        for kind in ("nf4", "fp4")
    )
    assert first.keys() == {"quantization_config"}
    assert first != second


def test_a_model_of_another_package_is_sent_to_the_baselines(evaluated):
    other = SentenceTransformer(
        modules=[StaticEmbedding(evaluated.model[0].tokenizer.backend_tokenizer, embedding_dim=4)]
    )
    for take in (EvaluatedModel.of, lambda model: SharedPass(model, [evaluated.own])):
        with pytest.raises(ValueError, match=r"StaticEmbedding\. Evaluate it with mteb's own command"):
            take(other)
