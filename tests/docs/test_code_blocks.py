"""The code in README.md, in docs/ and in the commands' help does what it says.

Every block is run, in the order of its page, unless a comment that readers do not see stands before it:
`<!-- not run: the reason -->`. Commands in such a block must still be ones that `ssmoe` understands.
"""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.main import get_command

from ssmoe_embed.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELL = ("", "console", "bash", "sh")
FENCED = re.compile(r"^(?:<!-- not run: ([^\n]+) -->\n)?```([a-z]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"-?\d+\.\d+")
SEPARATORS = {"&&", "|", ";", ">", "<"}
GROUP = get_command(app)


@dataclass(frozen=True)
class Block:
    """A block of code, and why it is not run."""

    page: Path
    line: int
    reason: str | None
    language: str
    code: str

    @property
    def place(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page):
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, found.start(3)), found[1], found[2], found[3])
        for found in FENCED.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def commands(text):
    """The commands of `ssmoe` in some lines of a shell, each as its arguments."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        found = [[]]
        for token in lexer:
            if token in SEPARATORS:
                found.append([])
            else:
                found[-1].append(token)
        yield from (words[1:] for words in found if words[:1] == ["ssmoe"])


def check_command(arguments):
    """Have a command line parsed, and nothing run."""
    name, *rest = arguments
    assert name in GROUP.commands, f"there is no command {name}"
    GROUP.commands[name].make_context(name, rest)


def shown(text):
    """Printed text without its numbers, and the numbers."""
    return NUMBER.sub("#", text).split(), [float(number) for number in NUMBER.findall(text)]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with what the pages speak of, and a place for `ssmoe` on the PATH."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "notes").mkdir()
    (folder / "notes" / "git.md").write_text("# Undo\n\nTake back a commit with git reset.\n", encoding="utf-8")
    (folder / "notes" / "packing.txt").write_text("Experts are packed in four bits, one at a time.\n", encoding="utf-8")
    script = folder / "bin" / "ssmoe"
    script.parent.mkdir()
    script.write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -c "from ssmoe_embed.cli import main; main()" "$@"\n', encoding="utf-8"
    )
    script.chmod(0o755)
    return folder


def run_line(line, ssmoe, environment, folder):
    """Run one line of a shell; returns its status and what it prints, without progress bars."""
    [*arguments] = commands(line)
    if len(arguments) == 1 and not SEPARATORS & {*shlex.shlex(line, posix=True, punctuation_chars="|&;<>")}:
        ran = ssmoe(*arguments[0])
        status, printed = ran.status, ran.out + ran.err
    else:
        variables = environment | {"PATH": f"{folder / 'bin'}{os.pathsep}{environment['PATH']}"}
        shell = ["bash", "-o", "pipefail", "-c", line]
        done = subprocess.run(shell, env=variables, cwd=folder, capture_output=True, check=False)
        status, printed = done.returncode, (done.stdout + done.stderr).decode()
    return status, "\n".join(one for one in printed.split("\n") if "\r" not in one)


def run_shell(block, *place):
    """Run the commands of a block; what follows a command after a prompt is what it prints."""
    for part in re.split(r"^\$ ", block.code, flags=re.MULTILINE):
        command, _, expected = part.partition("\n") if block.code.startswith("$ ") else (part, "", "")
        for line in command.replace("\\\n", " ").splitlines():
            if any(commands(line)):
                status, printed = run_line(line, *place)
                assert status == 0, printed
                if expected:
                    words, numbers = shown(printed)
                    assert (words, pytest.approx(numbers, abs=0.02)) == shown(expected)


SLOW_PAGES = ("vision.md", "training.md")


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] if page.name in SLOW_PAGES else []) for page in PAGES],
    ids=lambda page: page.name,
)
def test_the_code_of_a_page_runs_in_its_order(page, ssmoe, environment, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("COLUMNS", "80")
    names = {}
    for block in blocks_of(page):
        if block.reason is not None:
            continue
        if block.language == "python":
            exec(compile("\n" * block.line + block.code, page, "exec"), names)
        elif block.language in SHELL:
            run_shell(block, ssmoe, environment | {"COLUMNS": "80"}, workplace)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language in SHELL], ids=lambda block: block.place)
def test_the_commands_of_a_block_are_ones_that_there_are(block):
    for arguments in commands(block.code):
        check_command(arguments)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "python"], ids=lambda one: one.place)
def test_python_that_is_not_run_compiles(block):
    compile(block.code, block.place, "exec")


@pytest.mark.parametrize("name", GROUP.commands)
def test_the_example_in_a_commands_help_is_one_that_it_understands(name):
    help_text = GROUP.commands[name].help or ""
    examples = re.findall(r"Example: (.*?)(?:\n\n|\Z)", help_text, flags=re.DOTALL)
    for example in examples:
        [arguments] = commands(" ".join(example.split()))
        assert arguments[0] == name
        check_command(arguments)


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("ssmoe info", [["info"]]),
        ("$ printf 'a\\n' | ssmoe encode > x.npy", [["encode"]]),
        ("pip install . && ssmoe search 'a b'", [["search", "a b"]]),
        (
            "ssmoe evaluate M --tasks 'MTEB(eng, v2)' \\\n  -o out  # comment",
            [["evaluate", "M", "--tasks", "MTEB(eng, v2)", "-o", "out"]],
        ),
        ("pip install ssmoe-embed", []),
    ],
)
def test_commands_are_found_in_shell_code(text, arguments):
    assert list(commands(text)) == arguments


def test_an_option_that_there_is_not_is_found():
    with pytest.raises(Exception, match="No such option"):
        check_command(["search", "x", "--no-such-option"])
