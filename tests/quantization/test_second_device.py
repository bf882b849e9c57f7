"""Several devices, without a GPU: the promises of `on_second_device.py` and its neighbour, in processes of their own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from layouts import LAYOUTS

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "share", "at_least"),
    [
        ("one_on_second_device.py", "", 20),
        *(("on_second_device.py", f"{n}/3", len(LAYOUTS) // 3 * 5) for n in range(3)),
    ],
)
def test_models_on_an_emulated_second_device(environment, file, share, at_least):
    """The emulated device cannot be taken back, so no other test may see it."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "--tb=short", str(SUPPORT / file)]
    variables = environment | ({"SHARE": share} if share else {})
    done = subprocess.run(
        command, env=variables, cwd=SUPPORT.parent, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) >= at_least
