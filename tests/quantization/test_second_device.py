"""Several devices, without a GPU: the promises of `on_second_device.py`, in a process of its own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_models_on_an_emulated_second_device(environment):
    """The emulated device cannot be taken back, so no other test may see it."""
    file = Path(__file__).parents[1] / "support" / "on_second_device.py"
    command = [sys.executable, "-m", "pytest", "-n", "0", "--tb=short", str(file)]
    done = subprocess.run(
        command, env=environment, cwd=file.parents[1], capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 130
