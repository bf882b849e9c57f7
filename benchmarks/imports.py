"""What `import ssmoe_embed` costs beside `import sentence_transformers`, each in fresh interpreters that take turns.

python benchmarks/imports.py --output benchmarks/results/imports.md
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median

from measuring import Result, in_subprocess, machine
from tqdm import tqdm

MODULES = ("sentence_transformers", "ssmoe_embed")
_CODE = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds")
    parser.add_argument("--output", type=Path, help="Markdown or JSON file to write")
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in MODULES}
    for turn in tqdm(range(options.rounds + 1), desc="Importing", unit="round"):
        for name in MODULES:
            taken = in_subprocess("-c", _CODE.format(name))
            if turn:
                seconds[name].append(taken)
    base = seconds[MODULES[0]]
    rows = [
        [name, f"{median(runs):.2f}", f"{median(run / other for run, other in zip(runs, base, strict=True)):.3f}"]
        for name, runs in seconds.items()
    ]
    note = f"{machine('torch', 'sentence-transformers')}; medians of {options.rounds} rounds."
    Result("Import time", note, ["import", "s", "ratio"], rows, {"seconds": seconds}).show(options.output)


if __name__ == "__main__":
    main()
