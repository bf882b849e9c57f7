"""What machine a measurement was taken on, for the head of every result file."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import torch

LIBRARIES = ("torch", "transformers", "sentence-transformers", "numpy", "scipy")


def machine() -> str:
    """One line: processor, cores, threads, library versions."""
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    accelerator = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{processor()}{accelerator}, {torch.get_num_threads()} threads; Python {platform.python_version()}, {libraries}"


def processor() -> str:
    """The processor's name."""
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _read(path: str) -> str:
    """A file's content, or nothing where there is no such file."""
    return Path(path).read_text(encoding="utf-8") if Path(path).is_file() else ""
