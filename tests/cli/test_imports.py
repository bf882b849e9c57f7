"""What a command imports: nothing that takes seconds before it is known to be needed."""

import subprocess
import sys

import pytest
from indexing import static_model

import ssmoe_embed
from ssmoe_embed.search import Document, SemanticIndex

HEAVY = {
    "torch",
    "transformers",
    "sentence_transformers",
    "numpy",
    "scipy",
    "sklearn",
    "safetensors",
    "huggingface_hub",
}
SLOW = HEAVY - {"numpy", "safetensors"}
EXTRAS = {"mteb", "faiss", "matplotlib", "lm_eval", "bitsandbytes", "fastapi", "uvicorn", "ray", "umap"}
MAIN = "from ssmoe_embed.cli import main; main()"
COMMANDS = (
    *("search", "index", "encode", "build", "info", "inspect", "families", "serve", "drop"),
    *("evaluate", "compare", "sweep", "submit", "ablate", "lm-eval", "finetune"),
)


@pytest.fixture
def imported(environment):
    """Given Python code and a command line: the modules it imported, and what it printed."""

    def run(code, *arguments, **variables):
        note = "import atexit, sys; atexit.register(lambda: print('IMPORTED', *sys.modules))"
        command = [sys.executable, "-c", f"{note}\n{code}", *map(str, arguments)]
        done = subprocess.run(command, env=environment | variables, capture_output=True, encoding="utf-8", check=False)
        *printed, modules = done.stdout.splitlines()
        return set(modules.split()), "\n".join([*printed, done.stderr])

    return run


def ssmoe_version():
    from importlib.metadata import version

    return version("ssmoe-embed")


SAID = {
    "--help": "Sentence embeddings from",
    "--version": f"ssmoe-embed {ssmoe_version()}",
    "serach": "No such command 'serach'",
    "search --tpo 3": "No such option: --tpo",
    **{f"{command} --help": f"Usage: ssmoe {command}" for command in COMMANDS},
}
ALL = f"""
import sys
sys.stderr = sys.stdout
from ssmoe_embed.cli import main
for line in {list(SAID)}:
    sys.argv = ["ssmoe", *line.split()]
    try:
        main()
    except SystemExit:
        print("@@HEAVY", *sys.modules.keys() & {HEAVY | EXTRAS}, "@@")
"""


def test_help_version_and_typos_import_nothing_heavy(imported):
    _, output = imported(ALL)
    *parts, end = output.split("@@")
    assert end.strip() == ""
    for (line, said), printed, heavy in zip(SAID.items(), parts[::2], parts[1::2], strict=True):
        assert said in printed, line
        assert heavy.strip() == "HEAVY", line


@pytest.mark.parametrize(("line", "completed"), [("ssmoe se", {"search", "serve"}), ("ssmoe search --h", {"--help"})])
def test_the_shell_completes_commands_and_options_without_them_too(imported, line, completed):
    variables = {"_SSMOE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    modules, output = imported(MAIN, **variables)
    assert completed <= set(output.split())
    assert not modules & (HEAVY | EXTRAS)


def test_importing_the_package_imports_nothing_heavy(imported):
    modules, output = imported("import ssmoe_embed; print(dir(ssmoe_embed))")
    assert "'SSMoE'" in output
    assert not modules & (HEAVY | EXTRAS)


def test_searching_with_the_bundled_model_imports_neither_pytorch_nor_what_stands_on_it(imported, ssmoe, tmp_path):
    corpus, index = tmp_path / "corpus.txt", tmp_path / "index"
    modules, output = imported(MAIN, "search", "how do I exit vim", XDG_CACHE_HOME=str(tmp_path))
    assert "1. Leave Vim" in output
    assert not modules & SLOW
    corpus.write_text("a soup\nthe cat\n", "utf-8")
    assert ssmoe("index", corpus, "--output", index).status == 0
    modules, output = imported(MAIN, "search", "kitten", "--index", index, XDG_CACHE_HOME=str(tmp_path))
    assert "the cat" in output
    assert not modules & SLOW


def test_removing_and_checking_documents_needs_no_model(imported, tmp_path):
    index = SemanticIndex.create(tmp_path / "index", static_model())
    index.add([Document("1", "a"), Document("2", "b")], progress=False)
    modules, output = imported(MAIN, "index", "--output", index.folder, "--delete", "1", "--verify")
    assert "1 document removed" in output
    assert not modules & SLOW


def test_quiet_hides_the_bars_of_libraries_that_ask_nobody_too(imported):
    note = (
        "import atexit, os, sys; atexit.register(lambda: print(os.environ.get('TQDM_DISABLE'), 'tqdm' in sys.modules))"
    )
    for flags, told in ((["--quiet"], "1 False"), ([], "0 False")):
        _, output = imported(f"{note}\n{MAIN}", "encode", "no-such-file", *flags, TQDM_DISABLE="0")
        assert told in output


BEFORE_AND_AFTER = """
import sys
from sentence_transformers import SentenceTransformer
assert "ssmoe_embed" not in sys.modules
try:
    SentenceTransformer(sys.argv[1], device="cpu")
except ValueError as refusal:
    print("REFUSED", "trust_remote_code" in str(refusal))
assert "ssmoe_embed" not in sys.modules
model = SentenceTransformer(sys.argv[1], device="cpu", trust_remote_code=True)
print("SHAPE", model.encode(["a", "b"], show_progress_bar=False).shape)
from ssmoe_embed import *
from ssmoe_embed.search import *
load, SSMoE, SemanticIndex
print("PLAIN", type(SentenceTransformer(sys.argv[1], device="cpu")[0]))
"""


@pytest.mark.slow
def test_sentence_transformers_trusts_our_models_once_we_are_imported_and_no_extra_is(imported, built):
    """Imported first it asks for `trust_remote_code`; that it knows them if we are is what all other tests rely on."""
    modules, output = imported(BEFORE_AND_AFTER, built)
    width = ssmoe_embed.load(built, progress=False).get_embedding_dimension()
    for line in ("REFUSED True", f"SHAPE (2, {width})", "PLAIN <class 'ssmoe_embed.SSMoE'>"):
        assert line in output
    assert modules >= HEAVY
    of_others = {"bitsandbytes"} if "peft" in modules else set()  # sentence-transformers imports peft, and peft that
    assert not modules & (EXTRAS - of_others)


@pytest.mark.parametrize("package", ["ssmoe_embed", "ssmoe_embed.search"])
def test_every_public_name_is_there_when_it_is_used(package):
    module = __import__(package, fromlist=["__all__"])
    assert {*module.__all__} <= {*dir(module)}
    assert all(getattr(module, name) is not None for name in module.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'embedd'"):
        assert module.embedd


@pytest.mark.parametrize(("name", "kept"), [("triton", 0), ("another", 1)])
def test_the_end_is_quick_unless_bindings_would_complain_of_what_is_left(name, kept, environment):
    code = f"import atexit, gc, sys; sys.modules[{name!r}] = sys; sys.argv = ['ssmoe', '--version']\n"
    code += "atexit.register(lambda: print(int(gc.get_freeze_count() > 0)))\n"  # the first to be registered runs last
    command = [sys.executable, "-c", code + MAIN]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.splitlines()[-1] == str(kept)
