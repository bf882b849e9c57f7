"""What the model reaches on what it never saw, with the controls that tell what its routing is worth.

python examples/train_tiny_clip/measure.py --work build/clip --model build/clip/model --output RESULTS.md

Three sets: a style that was held out, of concepts that were not (Twemoji); concepts that were held out, in the
styles that were not; and held-out concepts in the held-out style.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from model import IMAGE
from pictures import HELD_OUT_STYLE, STYLES
from PIL import Image

from ssmoe_embed.routing import EqualWeights, LeastSimilar, RandomRouting
from ssmoe_embed.vision import PAPER, Tower, VisionRouting, reroute_towers, spectral_policies, spectral_routers

NAMED = "a picture of {}"
"""How a name is asked for."""


@dataclass(frozen=True)
class Trial:
    """Pictures `[n]` by their rows in pixels.npy, what each shows, and the concepts to tell apart."""

    name: str
    rows: list[int]
    concepts: list[int]
    candidates: list[int]


def trials(drawn: dict[str, Any]) -> list[Trial]:
    """The held-out sets; concepts without a picture in a style of the training are in none of them."""
    concepts = drawn["concepts"]
    known = {one["concept"] for one in drawn["pictures"] if one["style"] in STYLES}
    made = []
    for name, style_held, concept_held in (
        ("new style", True, False),
        ("new concepts", False, True),
        ("new style and concepts", True, True),
    ):
        kept = [
            (row, one["concept"])
            for row, one in enumerate(drawn["pictures"])
            if (one["style"] == HELD_OUT_STYLE) == style_held
            and concepts[one["concept"]]["held_out"] == concept_held
            and one["concept"] in known
        ]
        made.append(Trial(name, [row for row, _ in kept], [one for _, one in kept], sorted({one for _, one in kept})))
    return made


def flat(pixels: np.ndarray) -> list[Image.Image]:
    """Pictures on white, as the package reads transparent ones."""
    pictures = []
    for one in pixels:
        picture = Image.fromarray(one)
        ground = Image.new("RGBA", picture.size, "white")
        ground.alpha_composite(picture)
        pictures.append(ground.convert("RGB"))
    return pictures


def scores(images: np.ndarray, texts: np.ndarray, trial: Trial) -> dict[str, float]:
    """Shares of hits in percent: a picture's name among all, and a picture of a name among all pictures.

    Args:
        images: `[n,D]` vectors of the trial's pictures.
        texts: `[C,D]` vectors of the candidates' texts.
        trial: What is right.
    """
    cosines = _unit(images) @ _unit(texts).T  # [n,C]
    right = np.array(trial.candidates)[None] == np.array(trial.concepts)[:, None]  # [n,C]
    return {
        "image→text @1": 100 * _hits(cosines, right, 1),
        "@5": 100 * _hits(cosines, right, 5),
        "text→image @1": 100 * _hits(cosines.T, right.T, 1),
        "@5 ": 100 * _hits(cosines.T, right.T, 5),
    }


def _hits(cosines: np.ndarray, right: np.ndarray, k: int) -> float:
    """How often one of the right answers is among the first k."""
    first = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return float(np.take_along_axis(right, first, axis=1).any(axis=1).mean())


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def chance(trial: Trial) -> dict[str, float]:
    """What guessing gives: the expected shares."""
    n, C = len(trial.rows), len(trial.candidates)
    pictures = np.bincount(np.searchsorted(trial.candidates, trial.concepts))

    def missed(k: int) -> float:
        return float(np.mean([np.prod([(n - own - i) / (n - i) for i in range(k)]) for own in pictures]))

    return {
        "image→text @1": 100 / C,
        "@5": 500 / C,
        "text→image @1": 100 * (1 - missed(1)),
        "@5 ": 100 * (1 - missed(5)),
    }


class Judge:
    """Vectors of all pictures and names by one model, under any routing."""

    def __init__(self, work: Path, model: Any) -> None:
        drawn = json.loads((work / "pictures.json").read_text(encoding="utf-8"))
        self.concepts, self.trials = drawn["concepts"], trials(drawn)
        self.pixels = np.load(work / "pixels.npy", mmap_mode="r")
        self.model = model
        self.styles = [one["style"] for one in drawn["pictures"]]
        self.shown = [one["concept"] for one in drawn["pictures"]]

    def judge(self, routing: Callable[[], AbstractContextManager[Any]] = nullcontext) -> dict[str, dict[str, float]]:
        """The scores of each trial."""
        with routing():
            return {
                trial.name: scores(self.images(trial.rows), self.texts(trial.candidates), trial)
                for trial in self.trials
            }

    def images(self, rows: list[int]) -> np.ndarray:
        """Vectors of pictures."""
        return np.asarray(self.model.encode(flat(np.array(self.pixels[rows])), batch_size=128))

    def texts(self, concepts: list[int]) -> np.ndarray:
        """Vectors of the concepts' names."""
        return np.asarray(self.model.encode([NAMED.format(self.concepts[one]["label"]) for one in concepts]))

    def blind(self) -> dict[str, dict[str, float]]:
        """Texts alone: every picture is taken for the average training picture."""
        held = [self.concepts[one]["held_out"] for one in self.shown]
        rows = [row for row, style in enumerate(self.styles) if style == "noto" and not held[row]]
        average = _unit(self.images(rows)).mean(axis=0, keepdims=True)
        found = {}
        for trial in self.trials:
            images = np.repeat(average, len(trial.rows), axis=0)
            found[trial.name] = scores(images, self.texts(trial.candidates), trial)
        return found

    def nearest(self) -> dict[str, dict[str, float]]:
        """Pixels alone: a picture has the name's vector of the training picture that it differs least from."""
        rows = [
            row for row, s in enumerate(self.styles) if s in STYLES and not self.concepts[self.shown[row]]["held_out"]
        ]
        known = self._small(rows)
        names = _unit(self.texts([self.shown[row] for row in rows]))
        found = {}
        for trial in self.trials:
            given = self._small(trial.rows)
            distance = (known**2).sum(axis=1)[None] - 2 * given @ known.T
            images = names[distance.argmin(axis=1)]
            found[trial.name] = scores(images, self.texts(trial.candidates), trial)
        return found

    def _small(self, rows: list[int]) -> np.ndarray:
        pictures = flat(np.array(self.pixels[rows]))
        return np.stack([np.asarray(one.resize((16, 16)), np.float32).ravel() / 255 for one in pictures])


def routings(clip: Any) -> Iterator[tuple[str, Callable[[], AbstractContextManager[Any]]]]:
    """The model's own routing, spectral ones, and the controls."""
    settings = VisionRouting()
    routers = spectral_routers(clip, settings, progress=False)
    paper = spectral_routers(clip, PAPER, progress=False)

    def under(policies: Any) -> Callable[[], AbstractContextManager[Any]]:
        return lambda: reroute_towers(clip, policies)

    yield "learned routers", nullcontext
    yield "spectral routing, α = 0.5", under(spectral_policies(routers, settings))
    yield "spectral routing as released (α = 1)", under(spectral_policies(paper, PAPER))
    yield "learned pairs, equal weights", under({tower: EqualWeights() for tower in Tower})
    yield "random pairs, equal weights", under({tower: EqualWeights(RandomRouting()) for tower in Tower})
    yield "the two least similar", under({tower: LeastSimilar(routers[tower]) for tower in Tower})


def expert_use(clip: Any, encode: Callable[[], Any]) -> list[str]:
    """How evenly each block's experts were used: the entropy of their shares (1 is even), the least and most used."""
    used: dict[str, torch.Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: Any, _inputs: Any, logits: torch.Tensor) -> None:
            chosen = logits.float().topk(2).indices
            counts = torch.bincount(chosen.flatten(), minlength=logits.shape[-1]).double()
            used[name] = used.get(name, torch.zeros_like(counts)) + counts

        return hook

    hooks = [
        module.register_forward_hook(note(name)) for name, module in clip.named_modules() if name.endswith(".gate")
    ]
    encode()
    for hook in hooks:
        hook.remove()
    lines = ["| router | entropy | least | most |", "| --- | --- | --- | --- |"]
    for name, counts in used.items():
        p = counts / counts.sum()
        entropy = -(p * p.clamp_min(1e-12).log()).sum() / np.log(len(p))
        tower, block = name.split("_model")[0], name.split("layers.")[1].split(".")[0]
        lines.append(f"| {tower} {block} | {entropy:.3f} | {p.min():.3f} | {p.max():.3f} |")
    return lines


def main() -> None:
    """Run from the command line."""
    from sentence_transformers import SentenceTransformer
    from transformers import AutoConfig, AutoModel

    parser = argparse.ArgumentParser(description="Measure the small CLIP-MoE on what it never saw.")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model: Any = SentenceTransformer(str(options.model), device="cpu", model_kwargs={"dtype": "float32"})
    judge = Judge(options.work, model)
    clip = model[0].model
    rows = {}
    for name, routing in routings(clip):
        rows[name] = judge.judge(routing)
        print(name, rows[name], flush=True)
    use = expert_use(clip, lambda: (judge.images(judge.trials[0].rows), judge.texts(judge.trials[0].candidates)))
    rows["nearest training picture by its pixels"] = judge.nearest()
    rows["texts alone (every picture the average one)"] = judge.blind()
    torch.manual_seed(0)
    model[0].model = AutoModel.from_config(AutoConfig.from_pretrained(options.model)).eval()
    rows["random weights"] = judge.judge()
    rows["chance"] = {trial.name: chance(trial) for trial in judge.trials}
    options.output.write_text(report(judge, rows, use), encoding="utf-8")
    print(options.output.read_text(encoding="utf-8"))


def report(judge: Judge, rows: dict[str, dict[str, dict[str, float]]], use: list[str]) -> str:
    """The page."""
    lines = [
        "# ssmoe/tiny-clip: held-out results",
        "",
        f"Written by `measure.py`, with the exported bfloat16 weights run in float32, pictures of {IMAGE} pixels. A name is",
        f'asked for as "{NAMED.format("…")}". Percent: the right name among all names of the set (which is also zero-shot',
        "classification), and a right picture among all pictures of the set.",
    ]
    for trial in judge.trials:
        columns = list(next(iter(rows.values()))[trial.name])
        lines += ["", f"## {trial.name.capitalize()}", ""]
        lines += [f"{len(trial.rows):,} pictures of {len(trial.candidates):,} concepts.", ""]
        lines += ["| | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
        for name, found in rows.items():
            lines.append(f"| {name} | " + " | ".join(f"{found[trial.name][column]:.1f}" for column in columns) + " |")
    lines += [
        "",
        "## Routers",
        "",
        "How the first set's pictures and names used the four experts of each block (shares of two choices).",
        "",
    ]
    return "\n".join([*lines, *use, ""])


if __name__ == "__main__":
    main()
