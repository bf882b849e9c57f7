"""Running `ssmoe`, and scripts, in this process as a shell would: what they import need not be imported again."""

import functools
import io
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import typer.main

from ssmoe_embed.cli.app import main

typer.main.get_command = functools.cache(typer.main.get_command)
"""The options of all commands are read from their functions once, as in a shell, not once for each test."""


class Ran(NamedTuple):
    """What became of a command."""

    status: int
    """Its exit status."""
    out: str
    """Standard output; bytes that are no UTF-8 are kept as surrogates."""
    err: str
    """Standard error."""

    @property
    def data(self) -> bytes:
        """Standard output as it was written."""
        return self.out.encode("utf-8", "surrogateescape")


class _Pipe(io.RawIOBase):
    """Bytes that are read once and cannot be sought in, as a shell hands them on."""

    def __init__(self, data):
        self.data = io.BytesIO(data)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self.data.readinto(buffer)


def ssmoe(*arguments: object, stdin: bytes = b"") -> Ran:
    """Run the command with redirected streams."""
    return _run(main, "ssmoe", *arguments, stdin=stdin)


def script(path: Path, *arguments: object) -> Ran:
    """Run a file as `python path` does."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path.parent))
        ran = _run(lambda: runpy.run_path(str(path), run_name="__main__"), path, *arguments)
    for name in set(sys.modules) - before:  # those beside it
        if path.parent in Path(getattr(sys.modules[name], "__file__", None) or "/").parents:
            del sys.modules[name]
    return ran


def _run(code: Callable[[], object], *arguments: object, stdin: bytes = b"") -> Ran:
    streams = {name: io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for name in ("stdout", "stderr")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TQDM_DISABLE", "1")  # restored in the end, whatever the command made of it
        patch.delenv("TQDM_DISABLE")
        patch.setattr(sys, "argv", [*map(str, arguments)])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(_Pipe(stdin)), "utf-8"))
        for name, stream in streams.items():
            patch.setattr(sys, name, stream)
        status = 0
        try:
            code()
        except SystemExit as stop:
            status = stop.code or 0
        out, err = (stream.buffer.getvalue().decode("utf-8", "surrogateescape") for stream in streams.values())
    return Ran(status, out, err)
