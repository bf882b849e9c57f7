"""Fine-tuning: under every routing by one path, resumed to the same weights, an ordinary checkpoint in the end."""

import importlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from tiny import TOP_C
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

import ssmoe_embed
from ssmoe_embed import SpectralRouters, language_model, reroute
from ssmoe_embed.language_model import RoutingSettings
from ssmoe_embed.language_model.loading import ROUTERS_FILE
from ssmoe_embed.routing.named import policy_named
from ssmoe_embed.training import DecouplingSettings, FinetuneSettings, GaLoreSettings, finetune, trainer
from ssmoe_embed.training.finetuning import LOG, RECORD
from ssmoe_embed.training.reparametrization import HyperRouters

FIXED = {
    "routing_settings": RoutingSettings(top_c=TOP_C),
    "galore": GaLoreSettings(rank=4, update_gap=3),
    "learning_rate": 5e-3,
    "steps": 6,
    "batch_size": 4,
    "save_every": 2,
}


CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def settings(**changes):
    return FinetuneSettings(**FIXED | changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    pairs = [{"prompt": f"Say {word} ", "completion": f"{word} {word}"} for word in ("one", "two", "six", "ten") * 6]
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return file


def weights(folder):
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def losses(found):
    return [row["loss"] for row in found.log if "loss" in row]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"routing": "ssmoe", "refresh_routers": 2},
        pytest.param({"routing": "hash"}, marks=pytest.mark.slow),
        pytest.param(
            {"routing": "ssmoe", "optimizer": "galore", "balance": 0.1, "checkpointing": True}, marks=pytest.mark.slow
        ),
        pytest.param({"optimizer": "galore", "layerwise": True}, marks=pytest.mark.slow),
        {"optimizer": "lora", "routing": "ssmoe"},
        pytest.param(
            {"routing": "ssmoe", "decouple": DecouplingSettings(q=2, refresh_every=2)}, marks=pytest.mark.slow
        ),
        pytest.param({"packing": True, "dtype": "bfloat16"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_way_learns_and_gives_an_ordinary_checkpoint(changes, olmoe, data, tmp_path):
    chosen = settings(**{"steps": 12} | changes)
    found = finetune(olmoe, data, tmp_path / "tuned", chosen, progress=False)
    assert found.steps == 12
    assert losses(found)[-1] < losses(found)[0]
    assert not list(tmp_path.glob("*.checkpoints"))
    before, after = weights(olmoe), weights(tmp_path / "tuned")
    assert {name: tensor.shape for name, tensor in before.items()} == {
        name: tensor.shape for name, tensor in after.items()
    }
    changed = {name for name in before if not torch.equal(before[name], after[name].to(before[name].dtype))}
    assert any(".experts." in name for name in changed)
    record = json.loads((tmp_path / "tuned" / RECORD).read_text(encoding="utf-8"))
    assert record["settings"]["routing"] == changes.get("routing", "original")
    assert len((tmp_path / "tuned" / LOG).read_text(encoding="utf-8").splitlines()) == len(found.log)
    if changes.get("routing") == "ssmoe":
        stored = SpectralRouters.load(tmp_path / "tuned" / ROUTERS_FILE)
        stored.check(AutoModelForCausalLM.from_pretrained(tmp_path / "tuned"))
        language_model.load(tmp_path / "tuned", "ssmoe", settings=FIXED["routing_settings"], progress=False)
    else:
        assert not (tmp_path / "tuned" / ROUTERS_FILE).exists()


def test_the_routing_is_in_place_while_it_learns_in_silence(olmoe, data, tmp_path, capfd):
    found = {
        routing: losses(finetune(olmoe, data, tmp_path / routing, settings(routing=routing, steps=1), progress=False))
        for routing in ("original", "ssmoe", "random")
    }
    assert len({loss for [loss] in found.values()}) == 3
    again = finetune(
        olmoe,
        data,
        tmp_path / "alpha",
        settings(routing="ssmoe", routing_settings=RoutingSettings(alpha=0.0, top_c=TOP_C), steps=1),
        progress=False,
    )
    assert losses(again) == found["original"]
    printed = capfd.readouterr().err
    assert "%|" not in printed
    assert "callbacks" not in printed


@pytest.mark.parametrize(
    "routing",
    [
        "usmoe:causal=true,total=kept",
        *(
            pytest.param(one, marks=pytest.mark.slow)
            for one in (
                "expert-choice:causal=true",
                "competition",
                "equal",
                "least-similar:top_c=2",
                "smoothed:noise=2",
                "codebook:codes=4,tokens=200",
            )
        ),
    ],
)
def test_a_named_routing_in_training_is_the_routing(routing, olmoe, data, tmp_path, monkeypatch):
    taken = []

    def watched(self, model, inputs, *args, **kwargs):
        taken.append({name: value.clone() for name, value in inputs.items()})
        return own(self, model, inputs, *args, **kwargs)

    own = trainer.RoutedTrainer.compute_loss
    monkeypatch.setattr(trainer.RoutedTrainer, "compute_loss", watched)
    chosen = settings(routing=routing, steps=2, checkpointing="usmoe" not in routing)
    found = finetune(olmoe, data, tmp_path / "tuned", chosen, progress=False)
    model = AutoModelForCausalLM.from_pretrained(olmoe).eval()
    batch, total, count = taken[0], 0.0, 0
    with reroute(model, policy_named(routing, model)), torch.no_grad():
        for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
            wanted = labels[mask.bool()][1:]  # each text by itself, without padding
            logits = model(ids[mask.bool()][None], use_cache=False).logits[0, :-1]
            total += float(cross_entropy(logits, wanted, ignore_index=-100, reduction="sum"))
            count += int((wanted != -100).sum())
    assert losses(found)[0] == pytest.approx(total / count, rel=1e-4)
    assert losses(found)[0] != pytest.approx(float(model(**batch).loss.detach()), rel=1e-5)
    before, after = weights(olmoe), weights(tmp_path / "tuned")
    assert any(".experts." in name and not torch.equal(before[name], after[name]) for name in before)
    language_model.load(tmp_path / "tuned", routing, progress=False)


def test_frozen_spectral_routers_stay_and_refreshed_ones_follow_the_experts(olmoe, data, tmp_path):
    start = SpectralRouters.from_checkpoint(olmoe, top_c=TOP_C, progress=False)
    for name, every in (("frozen", 0), ("refreshed", 3)):
        finetune(olmoe, data, tmp_path / name, settings(routing="ssmoe", refresh_routers=every), progress=False)
    frozen, refreshed = (SpectralRouters.load(tmp_path / name / ROUTERS_FILE) for name in ("frozen", "refreshed"))
    anew = SpectralRouters.from_checkpoint(tmp_path / "refreshed", top_c=TOP_C, progress=False)
    for layer, weight in start.weights.items():
        torch.testing.assert_close(frozen.weights[layer], weight, rtol=0, atol=1e-5)
        torch.testing.assert_close(refreshed.weights[layer], anew.weights[layer], rtol=0, atol=1e-4)
        assert not torch.allclose(weight, anew.weights[layer], atol=1e-4)


GALORE = {"routing": "ssmoe", "optimizer": "galore", "refresh_routers": 1}


def test_the_balance_is_that_of_the_learned_routers_whatever_the_routing(olmoe, data, tmp_path):
    """In one step of all examples, before anything has changed."""
    found = {}
    for routing in ("original", "ssmoe"):
        chosen = settings(routing=routing, steps=1, batch_size=24, balance=0.5)
        log = finetune(olmoe, data, tmp_path / routing, chosen, progress=False).log
        [found[routing]] = [row["balance"] for row in log if "balance" in row]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(olmoe), language_model.load_tokenizer(olmoe)
    texts = ["".join(json.loads(line).values()) for line in data.read_text(encoding="utf-8").splitlines()]
    rows = [torch.tensor([*tokenizer(text)["input_ids"], tokenizer.eos_token_id]) for text in texts]
    logits = [model(input_ids=row[None], output_router_logits=True).router_logits for row in rows]
    k, losses = model.config.num_experts_per_tok, []
    for layer in range(len(logits[0])):
        p = torch.cat([one[layer] for one in logits]).double().softmax(dim=-1)  # [N,E]
        shares = torch.bincount(p.topk(k, dim=-1).indices.flatten(), minlength=p.shape[1]) / (k * len(p))
        losses.append(float(p.shape[1] * (shares * p.mean(dim=0)).sum()))
    assert found["original"] == pytest.approx(sum(losses) / len(losses), abs=2e-3)
    assert found["ssmoe"] != found["original"]  # deeper layers see other states
    x = [torch.randn(9, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    assert float(trainer.balance_loss([one * 0 for one in x], 4)) == pytest.approx(1)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights(olmoe, data, tmp_path):
    whole = finetune(olmoe, data, tmp_path / "whole", settings(**GALORE), progress=False)
    kill = trainer.EverySteps((3, lambda step: step and os.kill(os.getpid(), signal.SIGKILL)))
    train = trainer.RoutedTrainer.train

    def train_and_die():
        trainer.RoutedTrainer.train = lambda self, **k: (self.add_callback(kill), train(self, **k))[1]
        finetune(olmoe, data, tmp_path / "killed", settings(**GALORE), progress=False)

    process = multiprocessing.get_context("fork").Process(target=train_and_die)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "killed.checkpoints" / "checkpoint-2").is_dir()
    assert not (tmp_path / "killed").exists()
    found = finetune(olmoe, data, tmp_path / "killed", settings(**GALORE), progress=False)
    assert found.steps == whole.steps == 6
    assert losses(found) == losses(whole)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"optimizer": "lora"}, marks=pytest.mark.slow),
        pytest.param({"decouple": DecouplingSettings(q=2, refresh_every=3), "save_every": 4}, marks=pytest.mark.slow),
        pytest.param({"train_router": "hyper"}, marks=pytest.mark.slow),
    ],
    ids=["adamw", "lora", "decoupled", "hyper"],
)
def test_an_interrupted_run_goes_on_to_the_same_weights(changes, olmoe, data, tmp_path, monkeypatch):
    finetune(olmoe, data, tmp_path / "whole", settings(**changes), progress=False)

    def fail(step):
        if step:
            raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        train = trainer.RoutedTrainer.train
        stop = trainer.EverySteps((5, fail))
        patch.setattr(trainer.RoutedTrainer, "train", lambda self, **k: (self.add_callback(stop), train(self, **k))[1])
        with pytest.raises(OSError, match="No space left"):
            finetune(olmoe, data, tmp_path / "stopped", settings(**changes), progress=False)
    (tmp_path / "stopped.checkpoints" / "checkpoint-5").mkdir()  # what a full disk leaves of a checkpoint
    finetune(olmoe, data, tmp_path / "stopped", settings(**changes), progress=False)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))


def test_one_process_at_a_time_trains_into_an_output(olmoe, data, tmp_path, environment):
    work = tmp_path / "tuned.checkpoints"
    work.mkdir()
    code = f"""
import sys, filelock
lock = filelock.FileLock({str(work / "lock")!r})
with lock:
    print("held", flush=True)
    sys.stdin.read()
"""
    other = subprocess.Popen([sys.executable, "-c", code], env=environment, stdin=-1, stdout=-1, encoding="utf-8")
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match=r"Another process is training in .*tuned\.checkpoints"):
            finetune(olmoe, data, tmp_path / "tuned", settings(steps=1), progress=False)
    finally:
        other.kill()  # with which its lock goes
        other.communicate()
    assert finetune(olmoe, data, tmp_path / "tuned", settings(steps=1), progress=False).steps == 1
    assert [path.name for path in tmp_path.iterdir()] == ["tuned"]


@pytest.mark.parametrize("trained", [True, False])
def test_checkpoints_of_another_run_are_not_gone_on_from(trained, olmoe, data, tmp_path):
    place = tmp_path / "tuned.checkpoints"
    (place / "checkpoint-2").mkdir(parents=True)
    if trained:
        (place / "checkpoint-2" / "trainer_state.json").write_text("{}", encoding="utf-8")
    before = {"base": str(olmoe), "data": "0", "settings": settings(learning_rate=1.0).as_dict()}
    (place / "run.json").write_text(json.dumps(before), encoding="utf-8")
    if trained:
        with pytest.raises(ValueError, match="checkpoints of another run, with other data, learning_rate"):
            finetune(olmoe, data, tmp_path / "tuned", settings(steps=1), progress=False)
    else:  # it failed before its first checkpoint, so its settings may be mended
        assert finetune(olmoe, data, tmp_path / "tuned", settings(steps=1), progress=False).steps == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rank", 4], "--rank has no effect with --optimizer adamw"),
        (["--galore", "rank=4"], "--galore has no effect with --optimizer adamw"),
        (["--eval-limit", 4], "--eval-limit has no effect with --eval-every 0"),
        (["--routing", "hash", "--alpha", 0.1], "--alpha has no effect with --routing hash"),
        (["--decouple", "8"], "--decouple '8' is not known; write NAME=VALUE, with q, refresh_every"),
        (["--decouple", "q=two"], "--decouple 'q=two' is no int, such as q=8"),
        (["--decouple", "strict=1"], "no bool, such as strict=false"),
        (["--optimizer", "galore", "--galore", "scale=true"], "no float, such as scale=0.25"),
        (["--layerwise"], "layerwise goes with optimizer='galore' and accumulation=1"),
    ],
)
def test_options_that_have_no_effect_or_do_not_fit_are_refused(options, said, ssmoe, data, tmp_path):
    done = ssmoe("finetune", "ssmoe/tiny", "--data", data, "--output", tmp_path / "tuned", *options)
    assert done.status == 1
    assert said in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (['{"prompt": "a", "completion": "b"}', '{"prompt": "a"}'], "line 2 has no text in 'completion'"),
        (['{"prompt": "a", "completion": " "}'], "line 1 has an empty 'completion'"),
        (['{"text": "a"}', '{"prompt": "a", "completion": "b"}'], "line 2 has .* train on one form"),
        (["{"], "line 1 is not JSON"),
        (['["a"]'], "is no JSON object"),
        (['{"question": "a"}'], r"line 1 has the fields \['question'\]"),
        (['{"messages": [{"role": "user", "content": "a"}]}'], "the last message is the user's"),
        (
            [json.dumps({"messages": CHAT})],
            "no chat template",
        ),
        ([json.dumps({"text": "one more word " * 200})], r"1 of 1 examples .* longer than max_length=64"),
        ([""], "holds no examples"),
    ],
)
def test_data_that_does_not_fit_is_refused_before_anything_is_made(lines, said, olmoe, tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        finetune(olmoe, file, tmp_path / "tuned", settings(max_length=64), progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_length": 100_000}, "above the model's context"),
        ({"refresh_routers": 2}, "routing='original' has no spectral routers"),
        ({"optimizer": "lora", "decouple": DecouplingSettings()}, "goes with neither"),
        ({"optimizer": "sgd"}, "'adamw', 'adamw-8bit', 'galore', 'lora'"),
        ({"optimizer": "galore", "galore": GaLoreSettings(rank=4000)}, "rank=4000 is not below"),
        ({"decouple": DecouplingSettings(q=4000)}, "q=4000 is above the rank"),
        ({"steps": 0}, "steps=0 is below 1"),
        ({"batch_size": None}, "batch_size=None is no number; choose at least 1"),
        ({"routing": "usmoe"}, "causal=true"),
        ({"routing": "usmeo"}, "usmoe"),
        ({"routing": "usmoe:causal=true", "packing": True}, "packing puts several into one row"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_the_first_step(changes, said, olmoe, data, tmp_path):
    with pytest.raises(ValueError, match=said):
        finetune(olmoe, data, tmp_path / "tuned", settings(**changes), progress=False)
    assert not list(tmp_path.iterdir())


def test_the_output_is_not_replaced_unless_asked(olmoe, data, tmp_path):
    with pytest.raises(FileExistsError, match="--overwrite"):
        finetune(olmoe, data, tmp_path, settings(), progress=False)


def test_the_command_evaluates_on_the_way_and_what_it_writes_is_taken_by_the_others(ssmoe, olmoe, data, tmp_path):
    out = tmp_path / "tuned"
    steps = ("--steps", 4, "--batch-size", 4, "--learning-rate", 5e-3, "--top-c", TOP_C, "--quiet")
    evaluated = ("--eval-every", 2, "--eval-tasks", "ssmoe_continuation", "--eval-limit", 3)
    ways = (
        "--optimizer",
        "galore",
        "--galore",
        "rank=4,scale=1,basis=random",
        "--decouple",
        "q=2,common=sum,strict=false",
    )
    done = ssmoe("finetune", olmoe, "--data", data, "--output", out, "--routing", "ssmoe", *steps, *evaluated, *ways)
    assert done.status == 0, done.err
    assert "4 steps, loss" in done.out
    chosen = json.loads((out / RECORD).read_text(encoding="utf-8"))["settings"]
    assert (chosen["galore"]["scale"], chosen["galore"]["basis"], chosen["decouple"]["common"]) == (1, "random", "sum")
    rows = [json.loads(line) for line in (out / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows] == [0, 2, 4]
    assert all(len(row) == 2 for row in rows)
    dropped = ssmoe("drop", out, "--output", tmp_path / "dropped", "--by", "random", "--top-c", TOP_C, "--quiet")
    assert dropped.status == 0, dropped.err
    built = ssmoe("build", out, "--output", tmp_path / "built", "--top-c", TOP_C, "--calibration", "none", "--quiet")
    assert built.status == 0, built.err


def test_a_hyper_router_trains_the_routers_alone_and_leaves_an_ordinary_checkpoint(olmoe, data, tmp_path):
    chosen = settings(
        steps=10,
        batch_size=24,
        learning_rate=0.05,
        train_router="hyper",
        routing="ssmoe",
        balance=1e-3,
        checkpointing=True,
    )
    found = finetune(olmoe, data, tmp_path / "tuned", chosen, progress=False)
    assert losses(found)[-1] < losses(found)[0]
    before, after = weights(olmoe), weights(tmp_path / "tuned")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.endswith("mlp.gate.weight")}
    SpectralRouters.load(tmp_path / "tuned" / ROUTERS_FILE).check(
        AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")
    )


def test_a_hyper_router_begins_at_the_router_and_is_what_its_equation_says(olmoe):
    model, plain = AutoModelForCausalLM.from_pretrained(olmoe), AutoModelForCausalLM.from_pretrained(olmoe)
    ids = torch.arange(3, 30)[None]
    hyper = HyperRouters(model, seed=3)
    assert torch.equal(model(ids).logits, plain(ids).logits)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {f"model.layers.{i}.mlp.gate.hyper.embedding" for i in range(len(model.model.layers))}
    model(ids, labels=ids).loss.backward()
    gate = model.model.layers[1].mlp.gate
    network = gate.hyper
    assert float(network.embedding.grad.abs().sum()) > 0
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate.hyper.embedding += 0.1 * torch.randn(layer.mlp.gate.hyper.embedding.shape)
    logits = model(ids).logits
    e, start, first, second = (
        one.detach().double() for one in (network.embedding, network.start, network.first, network.second)
    )
    moved = second @ ((first @ e).clamp_min(0) - (first @ start).clamp_min(0))
    width = plain.model.layers[1].mlp.gate.weight.double().std() / (second @ (first @ start).clamp_min(0)).std()
    expected = plain.model.layers[1].mlp.gate.weight.double() + width * moved.reshape(gate.weight.shape)
    hyper.merge()
    torch.testing.assert_close(gate.weight.double(), expected, rtol=0, atol=1e-5)
    assert model.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(model(ids).logits, logits, rtol=0, atol=1e-6)


def test_a_hyper_router_goes_with_nothing_that_trains_the_rest():
    for other in (
        {"optimizer": "lora"},
        {"decouple": DecouplingSettings(q=2)},
        {"routing": "ssmoe", "refresh_routers": 1},
    ):
        with pytest.raises(ValueError, match="train_router leaves everything but the routers alone"):
            settings(train_router="hyper", **other)
    with pytest.raises(ValueError, match="train_router='hypr' is not known"):
        settings(train_router="hypr")


def test_the_similarity_of_experts_is_logged_and_trained_against(olmoe, data, tmp_path):
    found = {
        weight: finetune(
            olmoe, data, tmp_path / str(weight), settings(steps=8, batch_size=24, similarity=weight), progress=False
        ).log
        for weight in (1e-9, 10.0)
    }
    alike = {weight: [row["similarity"] for row in log if "similarity" in row] for weight, log in found.items()}
    assert alike[1e-9][0] == alike[10.0][0] > 0
    assert alike[10.0][-1] < alike[1e-9][-1]
    with pytest.raises(ValueError, match="similarity is a loss of the experts' own weights"):
        settings(similarity=1.0, optimizer="lora")


def test_a_chat_learns_its_last_answer_as_the_template_writes_it(olmoe, tmp_path):
    base, tokenizer = tmp_path / "base", AutoTokenizer.from_pretrained(olmoe)
    shutil.copytree(olmoe, base)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    tokenizer.save_pretrained(base)
    words, end = ("one", "two", "six", "ten"), tokenizer.eos_token
    first = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "no"}]
    chats = [
        {"messages": [*first, {"role": "user", "content": f"Say {w}"}, {"role": "assistant", "content": w}]}
        for w in words
    ]
    asked = f"user: Count.{end}assistant: no{end}user: Say {{}}{end}assistant: "
    written = [{"prompt": asked.format(word), "completion": word} for word in words]
    found = []
    for name, examples in (("chats", chats), ("written", written)):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(one) + "\n" for one in examples), encoding="utf-8")
        chosen = settings(steps=2, batch_size=4, routing="ssmoe")
        found.append(losses(finetune(base, file, tmp_path / f"out-{name}", chosen, progress=False)))
    assert found[0] == pytest.approx(found[1], rel=1e-6)


@pytest.mark.slow
def test_without_trl_the_rest_of_training_is_there_and_finetune_says_what_to_install(environment):
    code = "import sys; sys.modules['trl'] = None\nfrom ssmoe_embed.training import *\nfinetune('a', 'b', 'c')"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, encoding="utf-8", check=False
    )
    assert "ImportError: This needs trl, which is not installed: pip install 'ssmoe-embed[train]'" in done.stderr


def test_whatever_needs_trl_says_what_to_install_where_it_is_missing(monkeypatch):
    for name in [one for one in sys.modules if one.startswith("ssmoe_embed.training")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(ssmoe_embed, "training", ssmoe_embed.training)  # so that the one with trl comes back
    monkeypatch.setitem(sys.modules, "trl", None)
    without = importlib.import_module("ssmoe_embed.training")
    for attempt in (
        lambda: without.finetune("a", "b", "c"),
        lambda: importlib.import_module(f"{without.__name__}.trainer"),
    ):
        with pytest.raises(
            ImportError, match=r"This needs trl, which is not installed: pip install 'ssmoe-embed\[train\]'"
        ):
            attempt()
