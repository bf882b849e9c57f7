"""Write what ships of the emoji: names and tags, Noto's pictures to search, and Twemoji's to measure with.

python examples/train_tiny_clip/emoji_data.py --work build/clip --output ssmoe_embed/data/emoji
"""

from __future__ import annotations

import argparse
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SHIPPED = ("noto", "twemoji")
QUALITY = 80
"""Of WebP's lossy compression; transparency is kept exactly."""
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""What zip files say of when their members were made, so that the same pictures give the same bytes."""


def packed(pictures: dict[str, np.ndarray]) -> bytes:
    """Pictures `[h,w,4]` by name as a zip file of WebP files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for name, pixels in sorted(pictures.items()):
            content = io.BytesIO()
            Image.fromarray(pixels).save(content, "WEBP", quality=QUALITY, method=4)
            file.writestr(zipfile.ZipInfo(f"{name}.webp", _EPOCH), content.getvalue())
    return buffer.getvalue()


def records(drawn: dict[str, Any]) -> list[dict[str, Any]]:
    """What is told of each concept that has a picture to train on, in emojibase's order."""
    shown: dict[int, list[str]] = {}
    for one in drawn["pictures"]:
        shown.setdefault(one["concept"], []).append(one["style"])
    kept = []
    for place, concept in enumerate(drawn["concepts"]):
        styles = shown.get(place, [])
        if set(styles) - {"twemoji"}:
            kept.append(concept | {"styles": [style for style in styles if style in SHIPPED]})
    return kept


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Write what ships of the emoji.")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    drawn = json.loads((options.work / "pictures.json").read_text(encoding="utf-8"))
    pixels = np.load(options.work / "pixels.npy", mmap_mode="r")
    concepts = records(drawn)
    lines = [json.dumps(one, ensure_ascii=False, sort_keys=True) for one in concepts]
    (options.output / "concepts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    keys = {one["key"] for one in concepts}
    for style in SHIPPED:
        pictures = {
            drawn["concepts"][one["concept"]]["key"]: np.array(pixels[row])
            for row, one in enumerate(drawn["pictures"])
            if one["style"] == style and drawn["concepts"][one["concept"]]["key"] in keys
        }
        (options.output / f"{style}.zip").write_bytes(packed(pictures))
        print(f"{style}: {len(pictures)} pictures")


if __name__ == "__main__":
    main()
