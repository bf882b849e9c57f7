"""Draw every emoji in every style: one file of pixels, one list that says what they show.

python examples/train_tiny_clip/pictures.py --npm build/npm --work build/clip
"""

from __future__ import annotations

import argparse
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from concepts import Concept, code_points, read_concepts
from PIL import Image
from tqdm import tqdm

PIXELS = 48
"""Side of a drawn picture; training takes 32 of it."""
STYLES = ("noto", "noto-v1", "fluent-emoji-flat", "fluent-emoji", "fluent-emoji-high-contrast", "fxemoji", "emojione")
"""Trained on: Apache-2.0 or MIT, and EmojiOne 2 (CC BY 4.0)."""
HELD_OUT_STYLE = "twemoji"
"""Never trained on: a whole style (CC BY 4.0)."""


class Style:
    """One npm package of Iconify's: SVG drawings by name."""

    def __init__(self, folder: Path, names: dict[str, str]) -> None:
        self.icons: dict[str, Any] = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
        characters = folder / "chars.json"
        self.by_code = (
            {code_points(key): name for key, name in json.loads(characters.read_text(encoding="utf-8")).items()}
            if characters.exists()
            else names
        )
        self.by_letters = {letters(name): name for name in self.icons["icons"]}

    def drawing(self, concept: Concept) -> str | None:
        """The concept as SVG, if the style has it."""
        name = self.by_code.get(concept.key, "")
        name = self.icons.get("aliases", {}).get(name, {}).get("parent", name) if name else ""
        if self.icons.get("aliases", {}).get(self.by_code.get(concept.key, ""), {}).keys() - {"parent"}:
            return None  # turned or mirrored, so its text may not fit
        icon = self.icons["icons"].get(name) or self.icons["icons"].get(self.by_letters.get(letters(concept.label), ""))
        if icon is None:
            return None
        left, top = icon.get("left", 0), icon.get("top", 0)
        width = icon.get("width", self.icons.get("width", 16))
        height = icon.get("height", self.icons.get("height", 16))
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
        )


def letters(name: str) -> str:
    """A name without what writers of names differ in."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def draw(svg: str, pixels: int = PIXELS) -> np.ndarray:
    """An SVG as `[pixels, pixels, 4]` bytes, transparent where nothing is drawn."""
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=svg, width=pixels, height=pixels, skip_system_fonts=True)
    picture = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    square = Image.new("RGBA", (pixels, pixels))
    square.paste(picture, ((pixels - picture.width) // 2, (pixels - picture.height) // 2))
    return np.asarray(square)


def read_styles(npm: Path, names: tuple[str, ...] = (*STYLES, HELD_OUT_STYLE)) -> Iterator[tuple[str, Style]]:
    """The styles by name; where a package does not say which name is which emoji, the newest Noto's names do."""
    known = json.loads((npm / "noto" / "chars.json").read_text(encoding="utf-8"))
    by_code = {code_points(key): name for key, name in known.items()}
    for name in names:
        yield name, Style(npm / name, by_code)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Draw every emoji in every style.")
    parser.add_argument("--npm", type=Path, required=True, help="folder with the unpacked packages, by style")
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    concepts = read_concepts(options.npm / "emojibase-data")
    pixels, shown = [], []
    for name, style in read_styles(options.npm):
        for place, concept in enumerate(tqdm(concepts, desc=name, mininterval=2)):
            svg = style.drawing(concept)
            if svg is not None:
                pixels.append(draw(svg))
                shown.append({"concept": place, "style": name})
    np.save(options.work / "pixels.npy", np.stack(pixels))
    (options.work / "pictures.json").write_text(
        json.dumps({"concepts": [vars(one) for one in concepts], "pictures": shown}), encoding="utf-8"
    )
    print(f"{len(concepts)} concepts, {sum(one.held_out for one in concepts)} held out, {len(shown)} pictures")


if __name__ == "__main__":
    main()
