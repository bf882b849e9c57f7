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
    ("files", "share", "at_least"),
    [
        (["on_second_device.py"], "0/2", len(LAYOUTS) // 2 * 5),
        (["on_second_device.py", "one_on_second_device.py"], "1/2", len(LAYOUTS) // 2 * 5 + 20),
    ],
)
def test_models_on_an_emulated_second_device(environment, files, share, at_least):
    """The emulated device cannot be taken back, so no other test may see it."""
    paths = [str(SUPPORT / file) for file in files]
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "--tb=short", *paths]
    done = subprocess.run(
        command,
        env=environment | {"SHARE": share},
        cwd=SUPPORT.parent,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) >= at_least
