"""Random input for what takes anything from outside: readers of files, bodies and addresses of the server, saved models.

    python benchmarks/fuzz.py --cases 10000

Hypothesis draws the cases and reduces what fails to the smallest input it finds. Two runs draw the same cases. A case passes
if the right thing comes out, or an error that says what is wrong; whatever else happens is a fault, printed with its input.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from transformers.utils import logging as transformers_logging

Outcomes = Counter[str]

_TEXT = st.text(max_size=40) | st.sampled_from(
    ["", " ", "\0", "\ud800", "<|endoftext|>", "a" * 5000, "é", "👩‍👩‍👧", "\u202e"]
)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=8,
)


# --- the server -------------------------------------------------------------------------------------------------------


def server(cases: int) -> Outcomes:
    """Bodies of `/v1/embeddings` and addresses of the search: a client's mistake is a 4xx in OpenAI's form, never a 5xx."""
    from starlette.testclient import TestClient

    import ssmoe_embed
    from ssmoe_embed.serving.app import create_app

    seen: Outcomes = Counter()
    model = ssmoe_embed.load(progress=False)
    app = create_app(model, name="ssmoe/tiny", map_size=0)
    text = st.text(max_size=40) | st.sampled_from(["a text", "x" * 5000, "<|endoftext|>", "👩‍👩‍👧"])
    right = st.fixed_dictionaries(
        {"model": st.just("ssmoe/tiny"), "input": text | st.lists(text, min_size=1, max_size=3)},
        optional={"encoding_format": st.sampled_from(["float", "base64"]), "dimensions": st.integers(1, 256)},
    )
    names = st.sampled_from(["model", "input", "encoding_format", "dimensions", "user", "other"])
    changes = st.dictionaries(names, _VALUES | st.lists(st.integers(-9, 60_000), max_size=5), max_size=2)
    body = right | st.tuples(right, changes).map(lambda pair: pair[0] | pair[1])
    encoded = body.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"))
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:

        def check(content: bytes) -> None:
            answer = client.post("/v1/embeddings", content=content)
            seen[f"server: {answer.status_code}"] += 1
            assert answer.status_code < 500, answer.text
            found = json.loads(answer.text, parse_constant=_no_constant)
            if answer.status_code == 200:
                assert found["data"]
            else:
                assert found["error"]["message"]

        _run(check, encoded | st.binary(max_size=200) | _VALUES.map(lambda value: json.dumps(value).encode()), cases)
    return seen


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


# --- readers of files -------------------------------------------------------------------------------------------------

_SUFFIXES = (".txt", ".jsonl", ".csv", ".tsv", ".md")
_ENCODINGS = ("utf-8", "utf-8-sig", "latin-1", "utf-16", "utf-16-le", "cp1252")


def readers(cases: int) -> Outcomes:
    """Files of any content: documents of sound text with ids of their own, or an error that names the file and the place."""
    from ssmoe_embed.search.reading.corpus import read_documents

    seen: Outcomes = Counter()
    line = st.text(max_size=30) | _VALUES.map(json.dumps) | st.sampled_from(["# heading", "a,b", "---"])
    record = st.dictionaries(st.sampled_from(["text", "id", "_id", "title", "source", "n"]), _VALUES, max_size=4)
    word = st.text(min_size=1, max_size=20)
    right = st.fixed_dictionaries({"text": word}, optional={"id": word | st.integers(), "_id": word, "n": _VALUES})
    row = st.tuples(word, word).map(lambda pair: ",".join(f'"{one}"' for one in pair))
    shapes = [
        st.lists(line | record.map(json.dumps), max_size=5),
        st.lists(right.map(json.dumps) | line, min_size=1, max_size=4),
        st.lists(right.map(json.dumps), min_size=1, max_size=4),
        st.lists(row, min_size=1, max_size=4).map(lambda rows: ["text,n", *rows]),
    ]
    ends = st.sampled_from(["\n", "\r\n", "\r", "\u2028"])
    written = st.tuples(st.one_of(shapes), ends, st.sampled_from(_ENCODINGS)).map(
        lambda made: made[1].join(made[0]).encode(made[2], "replace")
    )
    sound = st.tuples(st.one_of(shapes[2:]), st.sampled_from(_ENCODINGS[:2])).map(
        lambda made: "\n".join(made[0]).encode(made[1], "replace")
    )
    content = sound | written | st.binary(max_size=120)
    with tempfile.TemporaryDirectory() as scratch:

        def check(case: tuple[bytes, str, str, bool]) -> None:
            data, suffix, on_error, in_folder = case
            folder = Path(scratch) / "folder"
            folder.mkdir(exist_ok=True)
            for old in folder.iterdir():
                old.unlink()
            path = folder / f"file{suffix}"
            path.write_bytes(data)
            corpus = read_documents(folder if in_folder else path, on_error=on_error)
            documents, refusal = [], ""
            try:
                documents = list(corpus)
            except ValueError as error:
                refusal = str(error)
            if refusal:
                seen[f"readers: refused, {suffix}"] += 1
                assert str(folder) in refusal, refusal
                return
            seen[f"readers: documents, {suffix}"] += 1
            ids = [document.id for document in documents]
            assert len(set(ids)) == len(ids) or suffix in (".jsonl", ".csv", ".tsv"), ids
            for document in documents:
                document.text.encode()  # no lone surrogates
                escapes = data.lower().replace(b"\0", b"")  # of UTF-16 too
                assert "\0" not in document.text or b"\\u0000" in escapes
                assert "\ufffd" not in document.text or "\ufffd".encode() in data or b"\\ufffd" in escapes
                json.dumps(document.metadata, allow_nan=False)

        case = st.tuples(content, st.sampled_from(_SUFFIXES), st.sampled_from(["stop", "skip"]), st.booleans())
        _run(check, case, cases)
    return seen


# --- saved models -----------------------------------------------------------------------------------------------------

_STEPS = ("settings", "edit", "adapter", "merge", "token", "reload")
_SAID = ["a first text", "How do I undo the last commit?", "x"]


def repository(cases: int) -> Outcomes:
    """Random sequences of changes to a model, saved and loaded: the vectors are the same, or saving says why not."""
    from sentence_transformers import SentenceTransformer
    from transformers import AutoTokenizer, OlmoeConfig, OlmoeForCausalLM

    import ssmoe_embed
    from ssmoe_embed.data import tiny_folder

    seen: Outcomes = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "base"
        tokenizer = AutoTokenizer.from_pretrained(tiny_folder() / "base")
        sizes = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2, "num_experts": 4}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_experts_per_tok": 2}
        config = OlmoeConfig(vocab_size=len(tokenizer), **sizes, **heads)
        OlmoeForCausalLM(config).save_pretrained(base)
        tokenizer.save_pretrained(base)

        def check(steps: list[tuple[str, int]]) -> None:
            module = ssmoe_embed.SSMoE.from_base(base, calibration="none", top_c=4, progress=False)
            model = ssmoe_embed.EmbeddingModel(modules=[module], device="cpu")
            for step, seed in [*steps, ("reload", 0)]:
                if step != "reload":
                    _change(model[0], step, seed)
                    continue
                before = model.encode(_SAID, show_progress_bar=False)
                with tempfile.TemporaryDirectory(dir=scratch) as folder:
                    try:
                        model.save_pretrained(folder)
                    except ValueError:
                        seen["repository: refused"] += 1
                        return
                    model = SentenceTransformer(folder, device="cpu")
                after = model.encode(_SAID, show_progress_bar=False)
                assert np.abs(after - before).max() < 1e-5, np.abs(after - before).max()
                seen["repository: the same vectors"] += 1

        _run(check, st.lists(st.tuples(st.sampled_from(_STEPS), st.integers(0, 99)), max_size=6), cases)
    return seen


def _change(module: Any, step: str, seed: int) -> None:
    """One change to a module, drawn by the seed."""
    from peft import LoraConfig, inject_adapter_in_model

    from ssmoe_embed.embedding.methods import Method

    torch.manual_seed(seed)
    adapted = any("lora" in name for name, _ in module.model.named_parameters())
    weights = [weight for name, weight in module.model.named_parameters() if "lora" not in name]
    if step == "settings":
        methods = list(Method)
        module.settings = module.settings.changed(method=methods[seed % len(methods)], alpha=(seed % 10) / 10)
    elif step == "edit":
        with torch.no_grad():
            weights[seed % len(weights)].add_(0.05 * torch.randn_like(weights[seed % len(weights)]))
    elif step == "adapter" and not adapted:
        options = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        inject_adapter_in_model(options, module.model)  # what `model.add_adapter` does
    elif step == "merge" and adapted:
        for part in module.model.modules():
            if hasattr(part, "merge") and hasattr(part, "lora_A"):
                part.merge()
    elif step == "token" and not adapted:
        module.tokenizer.add_tokens([f"token{seed}"])
        module.model.resize_token_embeddings(len(module.tokenizer))


# --- running ----------------------------------------------------------------------------------------------------------


def _run(check: Callable[[Any], None], inputs: st.SearchStrategy[Any], cases: int) -> None:
    """Try that many inputs; a fault is raised with the smallest input that shows it."""
    chosen = settings(
        max_examples=cases,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    chosen(given(inputs)(check))()


TARGETS: dict[str, tuple[Callable[[int], Outcomes], float]] = {
    "readers": (readers, 0.5),
    "server": (server, 0.45),
    "repository": (repository, 0.05),
}
"""What is tried, and its share of the cases."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, try, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="of all targets together")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    transformers_logging.disable_progress_bar()
    whole = math.fsum(TARGETS[name][1] for name in options.targets)
    for name in options.targets:
        target, share = TARGETS[name]
        for outcome, count in sorted(target(max(1, round(options.cases * share / whole))).items()):
            print(f"{outcome:60s} {count:6d}")


if __name__ == "__main__":
    main()
