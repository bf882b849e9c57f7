"""What the benchmarks share: the machine in words, peak memory, clean subprocesses, and sections of a results file."""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

MIB = 2**20


def machine(*libraries: str) -> str:
    """The processor, its cores and the versions of the libraries."""
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    cpu = names[0] if names else platform.processor() or platform.machine()
    versions = ", ".join(f"{library} {version(library)}" for library in libraries)
    return f"{cpu}, {os.cpu_count()} cores, {platform.system()}; Python {platform.python_version()}, {versions}"


def peak_mib() -> float:
    """The largest resident memory of this process so far, pages of mapped files included.

    `VmHWM` where there is one: `ru_maxrss` starts at the size of the parent process.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    return resident_mib("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def resident_mib(kind: str = "VmRSS") -> float:
    """Resident memory now: `VmRSS`, or only `RssAnon` or `RssFile` (Linux; 0 elsewhere)."""
    found = [int(line.split()[1]) * 1024 / MIB for line in _lines("/proc/self/status") if line.startswith(kind + ":")]
    return found[0] if found else 0.0


def memory_now() -> dict[str, float]:
    """Peak resident, anonymous and file-backed memory in MiB."""
    return {"peak": peak_mib(), "anonymous": resident_mib("RssAnon"), "mapped": resident_mib("RssFile")}


@contextmanager
def sampled_peak(kind: str, seconds: float = 0.02) -> Iterator[dict[str, float]]:
    """The peak of one kind of resident memory within the block, looked at every so many seconds, under "peak"."""
    seen = {"peak": resident_mib(kind)}
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(seconds):
            seen["peak"] = max(seen["peak"], resident_mib(kind))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def in_subprocess(script: str, command: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Any:
    """Run `script command arguments…` in a Python of its own; its last line of output is JSON."""
    run = [sys.executable, script, command, *arguments]
    done = subprocess.run(run, env=environment, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    return json.loads(done.stdout.splitlines()[-1])


def bare_memory(library: str) -> dict[str, float]:
    """`memory_now` of an interpreter that has imported only one library."""
    path = str(Path(__file__).parent)
    code = f"import sys, json, {library}; sys.path.insert(0, {path!r}); import measuring"
    found: dict[str, float] = in_subprocess("-c", f"{code}; print(json.dumps(measuring.memory_now()))")
    return found


@dataclass(frozen=True)
class Result:
    """A table with its title and the note above it."""

    title: str
    note: str
    header: list[str]
    rows: list[list[str]]
    data: dict[str, Any]

    def show(self, output: Path | None) -> None:
        """Print it, and write it where asked."""
        table = Table(*self.header, title=self.title, caption=self.note)
        for row in self.rows:
            table.add_row(*row)
        Console().print(table)
        if output is not None:
            lines = [self.header, ["---"] * len(self.header), *self.rows]
            body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
            write_section(output, self.title, f"{self.note}\n\n{body}\n", {"note": self.note, **self.data})


def write_section(path: Path, title: str, body: str, data: Any) -> None:
    """Write a result: `.json` holds the data of every title, any other file a Markdown section for each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    if path.suffix == ".json":
        text = json.dumps({**json.loads(old or "{}"), title: data}, indent=2) + "\n"
    else:
        sections = [s for s in re.split(r"(?m)^(?=## )", old) if s.strip() and not s.startswith(f"## {title}\n")]
        text = "\n".join(s.strip() + "\n" for s in [*sections, f"## {title}\n\n{body}"])
    path.write_text(text, encoding="utf-8")


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []
