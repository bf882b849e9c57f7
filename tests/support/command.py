"""Running `ssmoe` in this process, as a shell would."""

import io
import sys
from typing import NamedTuple

import pytest

from ssmoe_embed.cli.app import main


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
    streams = {name: io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for name in ("stdout", "stderr")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TQDM_DISABLE", "1")  # restored in the end, whatever the command made of it
        patch.delenv("TQDM_DISABLE")
        patch.setattr(sys, "argv", ["ssmoe", *map(str, arguments)])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(_Pipe(stdin)), "utf-8"))
        for name, stream in streams.items():
            patch.setattr(sys, name, stream)
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = stop.code or 0
        out, err = (stream.buffer.getvalue().decode("utf-8", "surrogateescape") for stream in streams.values())
    return Ran(status, out, err)
