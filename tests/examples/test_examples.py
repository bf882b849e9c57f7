"""The examples run as they are, each where the packages it shows are installed."""

import os
import re
import shutil
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from command import script

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parents[2] / "examples"
EXPECTED = "Undo the last commit"
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


def run(name, *packages):
    """What an example prints."""
    for package in packages:
        if find_spec(package) is None:
            pytest.skip(f"needs the package {package}")
    ran = script(EXAMPLES / name)
    assert ran.status == 0, ran.err
    return ran.out


def test_semantic_search():
    lines = run("semantic_search.py", "faiss").splitlines()
    assert lines[0].startswith("3 passages")
    assert "git.md" in lines[1]
    assert any("routing of layer" in line for line in lines)
    assert lines[-2:] == ["['extra']", "3 passages left"]


def test_fine_tuning_an_embedding_model_teaches_it_its_texts_and_leaves_it_the_others():
    trained, held_out, saved = run("finetune_embedding.py", "peft", "datasets").splitlines()[-3:]
    (before, after), (unseen, still) = (map(float, re.findall(r"\d\.\d+", line)) for line in (trained, held_out))
    assert after > before + 0.01
    assert still > unseen - 0.05
    assert saved.endswith("the same: True")


@pytest.mark.extras
@pytest.mark.parametrize(
    ("name", "packages"),
    [
        ("vector_databases/qdrant_example.py", ["qdrant_client"]),
        ("frameworks/langchain_example.py", ["langchain_core", "langchain_huggingface"]),
        ("frameworks/llamaindex_example.py", ["llama_index.core", "llama_index.embeddings.huggingface"]),
    ],
)
def test_vectors_go_into_other_libraries(name, packages):
    try:
        lines = run(name, *packages).splitlines()
    except ModuleNotFoundError as error:  # of a package's parent
        pytest.skip(f"{error.name} is not installed")
    assert EXPECTED in lines[0]


@pytest.fixture
def postgres():
    """The address of a PostgreSQL of its own, on a socket in a temporary folder."""
    if not POSTGRES:
        pytest.skip("PostgreSQL is not installed")
    tools = POSTGRES[-1].parent
    shared = subprocess.run(
        [tools / "pg_config", "--sharedir"], check=True, capture_output=True, encoding="utf-8"
    ).stdout.strip()
    if not Path(shared, "extension", "vector.control").is_file():
        pytest.skip("PostgreSQL has no pgvector")
    user = "postgres" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
    with tempfile.TemporaryDirectory(prefix="pg") as folder:
        if user:
            shutil.chown(folder, user)
        options = {"user": user, "cwd": folder, "stdout": subprocess.DEVNULL, "timeout": 120}
        subprocess.run(
            [tools / "initdb", "-D", f"{folder}/data", "-U", "postgres", "-A", "trust", "--no-sync"],
            check=True,
            **options,
        )
        listening = f"-c listen_addresses='' -k {folder} -F"
        start = ["-D", f"{folder}/data", "-o", listening, "-l", f"{folder}/log", "-w", "start"]
        subprocess.run([tools / "pg_ctl", *start], check=True, **options)
        try:
            yield f"host={folder} dbname=postgres user=postgres"
        finally:
            subprocess.run(
                [tools / "pg_ctl", "-D", f"{folder}/data", "-m", "fast", "-w", "stop"], check=True, **options
            )


@pytest.mark.extras
def test_vectors_go_into_postgresql(postgres, monkeypatch):
    monkeypatch.setenv("PGVECTOR_DSN", postgres)
    lines = run("vector_databases/pgvector_example.py", "psycopg", "pgvector").splitlines()
    assert EXPECTED in lines[0]
