"""Two models that give other vectors have other names or revisions, as mteb reads them."""

import copy
import pickle

import mteb
import pytest
import torch
from evaluation_tasks import rated_pairs
from peft import LoraConfig, get_peft_model
from sentence_transformers import SentenceTransformer

import ssmoe_embed
from ssmoe_embed import SSMoE
from ssmoe_embed.data import tiny_folder

CHANGES = [
    {"method": "router"},
    {"method": "smoe"},
    {"alpha": 0.6},
    {"prompt": "prompteol"},
    {"instruction": "Find"},
    {"calibration": "none"},
    {"max_seq_length": 7},
    {"combination": "sum"},
]


def identity(model):
    meta = mteb.models.ModelMeta.from_sentence_transformer_model(model)
    return meta.name, meta.revision


def test_mteb_gives_no_models_score_to_another(built, tmp_path):
    task = rated_pairs()

    def score(model, cache):
        found = mteb.evaluate(model, task, cache=mteb.ResultCache(cache), show_progress_bar=False)
        return found.task_results[0].get_score()

    scores = set()
    for number, change in enumerate(({}, {"method": "router"}, {"prompt": "prompteol", "calibration": "none"})):
        model = ssmoe_embed.load(built, progress=False, **change)
        together = score(model, tmp_path / "together")
        assert together == score(model, tmp_path / str(number))
        again = score(ssmoe_embed.load(built, progress=False, **change), tmp_path / "together")
        assert again == pytest.approx(together, abs=1e-6)  # it is rounded on disk
        scores.add(together)
    assert len(scores) == 3


def test_whatever_changes_vectors_changes_the_revision(built, olmoe):
    model = ssmoe_embed.load(built, progress=False)
    seen = [identity(model)]
    assert seen == [identity(ssmoe_embed.load(built, progress=False))]
    seen += [identity(model.using(**change)) for change in CHANGES]
    assert identity(model) == seen[0]
    seen.append(identity(ssmoe_embed.load(built, progress=False, truncate_dim=8)))
    seen.append(identity(ssmoe_embed.load(built, progress=False, similarity_fn_name="dot")))
    seen.append(identity(ssmoe_embed.load(built, progress=False, model_kwargs={"dtype": "bfloat16"})))
    model[0].settings = model[0].settings.changed(alpha=0.9)
    seen.append(identity(model))
    other = SSMoE.from_base(olmoe, top_c=4, calibration="none", progress=False)
    seen.append(identity(SentenceTransformer(modules=[other], device="cpu")))
    with torch.no_grad():
        other.model.layers[0].self_attn.q_proj.weight[0, 0] += 1
    seen.append(identity(SentenceTransformer(modules=[other], device="cpu")))
    other.model = get_peft_model(other.model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    seen.append(identity(SentenceTransformer(modules=[other], device="cpu")))
    assert len(set(seen)) == len(seen)
    assert all(name.startswith("ssmoe_embed/") and len(revision) == 16 for name, revision in seen)


def test_copies_and_saved_models_are_the_same(built, tmp_path):
    model = ssmoe_embed.load(built, progress=False)
    assert identity(pickle.loads(pickle.dumps(model))) == identity(copy.deepcopy(model)) == identity(model)
    model.save_pretrained(str(tmp_path))
    assert identity(SentenceTransformer(str(tmp_path))) == identity(model)


def test_a_name_of_ones_own_is_kept(built):
    model = ssmoe_embed.load(built, progress=False)
    model.model_card_data.model_name = "me/mine"
    assert identity(model)[0] == "me/mine"


def test_the_bundled_model_goes_by_its_name(monkeypatch, tmp_path):
    model = SentenceTransformer("ssmoe/tiny")
    assert identity(model) == identity(SentenceTransformer(str(tiny_folder())))
    assert identity(model)[0] == "ssmoe_embed/tiny-smoe"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ssmoe/tiny").mkdir(parents=True)
    with pytest.raises(Exception, match=r"ssmoe/tiny"):
        SentenceTransformer("ssmoe/tiny", local_files_only=True)
