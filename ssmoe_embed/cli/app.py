"""The command's frame: subcommands, version, and errors without tracebacks."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import re
import sys
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer import Option
from typer.core import TyperCommand

from ssmoe_embed.cli.build import build
from ssmoe_embed.cli.compare import compare
from ssmoe_embed.cli.encode import encode
from ssmoe_embed.cli.evaluate import evaluate, submit
from ssmoe_embed.cli.finetune import finetune
from ssmoe_embed.cli.index import IndexCommand, index
from ssmoe_embed.cli.info import families, info, inspect
from ssmoe_embed.cli.language_models import drop, lm_eval, steer
from ssmoe_embed.cli.search import search
from ssmoe_embed.cli.serve import serve
from ssmoe_embed.cli.variants import ablate, sweep

_NUMBER = re.compile(r"-(\d|\.\d).*")


class ListCommand(TyperCommand):
    """A command whose options of several values may be given all of them at once.

    Such an option takes everything up to the next flag, so arguments stand before it, or after `--`.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line."""
        flags = [flag for parameter in self.params if getattr(parameter, "multiple", False) for flag in parameter.opts]
        return super().parse_args(ctx, expand_lists(args, flags))


def expand_lists(args: Sequence[str], flags: Collection[str]) -> list[str]:
    """Repeat each of these flags before each of its values; a number below zero is a value, not a flag."""
    expanded: list[str] = []
    flag = None
    for position, arg in enumerate(args):
        if arg == "--":
            return [*expanded, *args[position:]]
        if _is_flag(arg):
            name, equals, value = arg.partition("=")
            flag = name if name in flags else None
            if flag is None:
                expanded.append(arg)
            elif equals:
                expanded += [name, value]
            elif position + 1 == len(args) or _is_flag(args[position + 1]):
                expanded.append(arg)  # left for the parser to say that a value is missing
        else:
            expanded += [flag, arg] if flag else [arg]
    return expanded


def _is_flag(arg: str) -> bool:
    return arg.startswith("-") and not _NUMBER.fullmatch(arg)


app = typer.Typer(
    help="Sentence embeddings from Mixture-of-Experts language models, without training.",
    epilog="Models are named by folder, hub id or recipe; ssmoe/tiny comes with the package and needs no network.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (search, index, encode, build, info, families, serve, drop, steer):
    app.command(cls=IndexCommand if command is index else None)(command)
for several in (evaluate, compare, sweep, submit, ablate, inspect, lm_eval, finetune):
    app.command(cls=ListCommand)(several)


def _version(wanted: bool) -> None:
    if wanted:
        from ssmoe_embed.common.version import __version__

        typer.echo(f"ssmoe-embed {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Sentence embeddings from Mixture-of-Experts language models, without training."""


_show_warning = warnings.showwarning
_told: set[str] = set()
"""The package's warnings that were shown; Python itself forgets them whenever a library changes its filters."""


def _warn(message: Warning | str, category: type[Warning], filename: str, *place: Any, **more: Any) -> None:
    """A warning of this package as its text alone, without the line of code that it comes from."""
    if Path(__file__).parents[1] in Path(filename).parents:
        if str(message) in _told:
            return
        _told.add(str(message))
        Console(stderr=True).print(f"Warning: {message}", markup=False, highlight=False, soft_wrap=True)
    else:
        _show_warning(message, category, filename, *place, **more)


def _skip_last_collection() -> None:
    """Do not let Python go through all of PyTorch's objects once more before it ends, which takes seconds.

    Where PyTorch is built for GPUs, it must: Triton's bindings print a page about every object that is left.
    """
    if "triton" not in sys.modules:
        gc.freeze()


def main() -> None:
    """Run the command; a bad input ends it with one message and status 1. SSMOE_DEBUG=1 shows every traceback."""
    gc.set_threshold(100_000, 20, 100)  # going through all that PyTorch imports, again and again, is a fifth of a start
    atexit.register(_skip_last_collection)
    if os.environ.get("SSMOE_DEBUG"):  # also of what failed without ending the command
        logging.basicConfig()
        logging.getLogger("ssmoe_embed").setLevel(logging.DEBUG)
    # where peft brings bitsandbytes in, it advises a package that would speed up what is not used here
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    _told.clear()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            app(prog_name="ssmoe")
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("SSMOE_DEBUG"):
            raise
        console = Console(stderr=True)
        text = Text("Error: ", style="bold red") + Text(str(error))
        console.print(text, soft_wrap=not console.is_terminal)  # a log or another program gets the message in one line
        sys.exit(1)
    except KeyboardInterrupt:
        Console(stderr=True).print("Interrupted; nothing is left half-written.")
        sys.exit(130)
