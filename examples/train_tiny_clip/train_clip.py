"""Train the small CLIP-MoE, stage by stage; what was interrupted goes on.

    python examples/train_tiny_clip/train_clip.py --work build/clip

1. `text`: the text tower learns the teacher's vectors of broad texts.
2. `vision`: the image tower learns, from two drawings of every concept of a batch, to tell all concepts apart: by the
   vectors that the text tower has of their texts, and by vectors of their own, which are thrown away.
3. `expert1` to `expert3`: as CLIP-MoE does, the MLPs alone learn to tell apart what was near each other before, which gives
   three more experts of the image tower; those of the text tower are copies.
4. `moe`: the four experts under routers, which learn first alone and then together with both towers.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batches import Material, padded, plain, premultiplied, read_material, seen
from clip_losses import Balance, alike, contrast, distil
from model import SEED, WIDTH, dense_model, make_tokenizer
from starts import start_from_bag, start_from_patches, start_from_regions
from texts import MEANT
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTokenizer

sys.path.insert(1, str(Path(__file__).parents[1] / "train_tiny"))

import checkpoint

from ssmoe_embed.vision import ClipMoeModel

STEPS = {"text": 250, "vision": 1900, "expert1": 15, "expert2": 15, "expert3": 15, "moe": 60}
RATES = {"text": 2e-3, "vision": 1.6e-3, "expert1": 4e-4, "expert2": 4e-4, "expert3": 4e-4, "moe": 4e-4}
WARM_UP = {"text": 25, "vision": 60, "expert1": 3, "expert2": 3, "expert3": 3, "moe": 30}
"""Steps in which the rate rises."""
GATES_ALONE = 20
"""Steps of `moe` in which nothing but the routers learns."""
TEXTS, CONCEPTS = 96, 64
"""Of a batch; there are two pictures of each concept."""
BLENDED = 0.2
"""Share of pictures that are a blend of two drawings of their concept."""
SAVE_EVERY = 50
NAMED = len(set(MEANT))
"""How many of a concept's texts are its name."""
CLUSTERS = 3
"""Into which every expert stage parts each group of concepts."""


class Trainer:
    """One run: material, tokenizer, and the stages in their order."""

    def __init__(self, work: Path) -> None:
        self.work = work
        folder = work / "tokenizer"
        self.tokenizer: Any = CLIPTokenizer.from_pretrained(folder)
        self.material: Material = read_material(work, self.tokenizer)
        self.concepts = np.array(sorted(self.material.pictures))
        self.groups = np.zeros(len(self.concepts), int)
        self.place = {int(concept): place for place, concept in enumerate(self.concepts)}
        self.meant = torch.empty(0)

    def run(self) -> None:
        """Every stage that is not finished."""
        torch.manual_seed(SEED)
        model: Any = dense_model(self.tokenizer)
        if not (self.work / "text.safetensors").exists():
            start_from_bag(model, self.material)
        self.stage("text", model, self.text_loss)
        self.meant = self.all_meant(model)
        start_from_regions(model, start_from_patches(model, self.material, self.shown()))
        _train_only(model, ("vision_model.", "visual_projection.", "logit_scale"))
        model.logit_scale.data.fill_(3.4)
        pupil = Pupil(model, len(self.concepts))
        self.stage("vision", pupil, self.vision_loss)
        experts = [mlps(model)]
        _train_only(model, (".mlp.",), tower="vision_model.")
        for number in (1, 2, 3):
            self.part(model)
            self.stage(f"expert{number}", model, self.expert_loss)
            experts.append(mlps(model))
        moe = ClipMoeModel.from_clip(model, experts=4, seed=SEED).train()
        moe.load_state_dict(
            {
                f"{name.partition('.mlp.')[0]}.mlp.experts.{number}.{name.partition('.mlp.')[2]}": tensor
                for number, expert in enumerate(experts)
                for name, tensor in expert.items()
            },
            strict=False,
        )
        moe.set_attn_implementation("eager")
        balance = Balance(moe)
        self.stage("moe", moe, lambda model, rng, step: self.moe_loss(model, rng, step, balance))
        moe.eval().save_pretrained(self.work / "trained")

    def stage(self, name: str, model: Any, loss: Callable[[Any, np.random.Generator, int], Tensor]) -> None:
        """Train for the stage's steps, or read what an earlier run made of it."""
        path, steps, rate = self.work / f"{name}.safetensors", STEPS[name], RATES[name]
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learning, lr=rate, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
        state = checkpoint.load(path, model, optimizer) if path.exists() else {}
        first, before = int(state.get("step", 0)), float(state.get("seconds", 0))
        began, shown = time.monotonic() - before, 0.0
        model.train()
        for step in range(first, steps):
            rng = np.random.default_rng([SEED, sorted(STEPS).index(name), step])
            for group in optimizer.param_groups:
                left = 0.02 + 0.98 * math.cos(step / steps * math.pi / 2) ** 2
                group["lr"] = rate * min(1, (step + 1) / WARM_UP[name]) * left
            value = loss(model, rng, step)
            optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(max=4.6052)
            shown = value.item() if not shown else 0.9 * shown + 0.1 * value.item()
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
                seconds = time.monotonic() - began
                checkpoint.save(path, model, optimizer, {"step": step + 1, "seconds": seconds})
                print(f"{name} {step + 1}/{steps} loss {shown:.3f} {seconds:.0f} s", flush=True)

    def text_loss(self, model: Any, rng: np.random.Generator, _step: int) -> Tensor:
        """The text tower on broad texts of about one length."""
        count, span = len(self.material.broad), 4 * TEXTS
        first = int(rng.integers(0, max(1, count - span)))
        rows = first + rng.choice(min(span, count), min(TEXTS, count), replace=False)
        texts = self.texts(model, [self.material.broad[row] for row in rows])
        targets = torch.from_numpy(self.material.targets[rows].astype(np.float32))
        return distil(texts, functional.normalize(targets, dim=-1))

    def vision_loss(self, pupil: Pupil, rng: np.random.Generator, step: int) -> Tensor:
        """Pictures of concepts, told apart from all others."""
        model: Any = pupil.clip
        chosen = self.drawn(rng, self.concepts)
        features, images = self.images(model, rng, chosen)
        own = functional.cross_entropy(pupil.classes(features), self.places(chosen), label_smoothing=0.05)
        self.watch(model, step)
        return (
            own + 0.5 * alike(functional.normalize(features, dim=-1)) + self.named(model, images, chosen, self.concepts)
        )

    def expert_loss(self, model: Any, rng: np.random.Generator, _step: int) -> Tensor:
        """Pictures within one group of concepts, which are those that were hard to tell apart."""
        group = self.groups[rng.integers(len(self.groups))]
        among = self.concepts[self.groups == group]
        chosen = self.drawn(rng, among)
        return self.named(model, self.images(model, rng, chosen)[1], chosen, among)

    def drawn(self, rng: np.random.Generator, among: np.ndarray) -> np.ndarray:
        """Concepts of a batch, each twice."""
        return np.tile(rng.choice(among, min(CONCEPTS, len(among)), replace=False), 2)

    def shown(self) -> list[int]:
        """The first picture of each concept."""
        return [self.material.pictures[int(concept)][0] for concept in self.concepts]

    def places(self, concepts: np.ndarray) -> Tensor:
        """Where concepts are among those that are trained on."""
        return torch.tensor([self.place[int(concept)] for concept in concepts])

    def named(self, model: Any, images: Tensor, chosen: np.ndarray, among: np.ndarray) -> Tensor:
        """Cross entropy of pictures over what is said of each of some concepts, and how far they are from it."""
        wanted = torch.from_numpy(np.searchsorted(among, chosen))
        cosines = images @ self.meant[among].T  # [B,C]
        told = functional.cross_entropy(model.logit_scale.exp() * cosines, wanted, label_smoothing=0.05)
        return told + 0.5 * (1 - cosines[torch.arange(len(wanted)), wanted]).mean()

    def images(self, model: Any, rng: np.random.Generator, concepts: np.ndarray) -> tuple[Tensor, Tensor]:
        """Features, and unit vectors, of a picture of each of some concepts; the same concept never has the same twice."""
        material, rows = self.material, []
        used: dict[int, list[int]] = {}
        for concept in map(int, concepts):
            left = used.get(concept) or rng.permutation(material.pictures[concept]).tolist()
            rows.append(left.pop())
            used[concept] = left
        others = [int(rng.choice(material.pictures[int(concept)])) for concept in concepts]
        share = np.where(rng.random(len(rows)) < BLENDED, rng.uniform(0.3, 0.7, len(rows)), 0).astype(np.float32)
        pictures = torch.lerp(
            premultiplied(material.pixels[rows]),
            premultiplied(material.pixels[others]),
            torch.from_numpy(share)[:, None, None, None],
        )
        return _vectors(model, seen(pictures, material.black[rows], material.mirrored[concepts], rng))

    @torch.no_grad()
    def watch(self, model: Any, step: int, every: int = 200) -> None:
        """Print which share of the pictures that were kept back is told right."""
        if step % every:
            return
        rows = list(self.material.kept_back)
        images = _vectors(model, plain(self.material.pixels[rows]))[1]
        found = self.concepts[(images @ self.meant[self.concepts].T).argmax(dim=1).numpy()]
        right = np.mean(found == list(self.material.kept_back.values()))
        print(f"step {step}: {right:.3f} of {len(rows)} pictures kept back told right", flush=True)

    def moe_loss(self, model: Any, rng: np.random.Generator, step: int, balance: Balance) -> Tensor:
        """Pictures and texts of concepts, broad texts beside them, and even use of the experts."""
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(step >= GATES_ALONE or name.endswith("gate.weight"))
        chosen = self.drawn(rng, self.concepts)
        images = self.images(model, rng, chosen)[1]
        loss = self.pairs(model, rng, images, chosen) + self.named(model, images, chosen, self.concepts)
        loss = loss + self.text_loss(model, rng, step) + 0.05 * balance.loss()
        self.watch(model, step, every=100)
        balance.seen.clear()
        return loss

    def pairs(self, model: Any, rng: np.random.Generator, images: Tensor, chosen: np.ndarray) -> Tensor:
        """CLIP's loss over each picture and one text of its concept."""
        material = self.material
        places = [int(rng.integers(len(material.said[concept]))) for concept in chosen]
        texts = self.texts(model, [material.said[one][place] for one, place in zip(chosen, places, strict=True)])
        words = [material.texts[one][place] for one, place in zip(chosen, places, strict=True)]
        said = [set(material.texts[one]) for one in chosen]
        shared = torch.tensor([[word in known for word in words] for known in said]).fill_diagonal_(False)
        return contrast(images, texts, model.logit_scale.exp(), shared)

    def texts(self, model: Any, rows: list[list[int]]) -> Tensor:
        """Unit vectors of texts."""
        ids, mask = padded(rows, self.tokenizer.pad_token_id)
        with torch.autocast("cpu", torch.bfloat16):
            vectors = model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
        return functional.normalize(vectors.float(), dim=-1)

    @torch.no_grad()
    def all_meant(self, model: Any) -> Tensor:
        """Unit vectors of what is said of every concept: half by its name, half by everything else."""
        said = self.material.said
        flat = [row for rows in said for row in rows]
        order = sorted(range(len(flat)), key=lambda place: len(flat[place]))
        vectors = torch.empty(len(flat), WIDTH)
        for start in range(0, len(flat), 256):
            part = order[start : start + 256]
            vectors[part] = self.texts(model, [flat[place] for place in part])
        found = []
        for texts in torch.split(vectors, [len(rows) for rows in said]):
            found.append(texts[:NAMED].mean(dim=0) + texts[NAMED:].sum(dim=0) / max(1, len(texts) - NAMED))
        return functional.normalize(torch.stack(found), dim=-1)

    @torch.no_grad()
    def part(self, model: Any) -> None:
        """Part every group of concepts into clusters by what the model makes of their pictures and texts."""
        from sklearn.cluster import KMeans

        model.eval()
        images = [_vectors(model, plain(self.material.pixels[part]))[1] for part in np.array_split(self.shown(), 8)]
        features = torch.cat([torch.cat(images), self.meant[self.concepts]], dim=-1).numpy()
        made = np.zeros_like(self.groups)
        for group in np.unique(self.groups):
            inside = np.flatnonzero(self.groups == group)
            if len(inside) >= 16 * CLUSTERS:
                made[inside] = KMeans(CLUSTERS, n_init=4, random_state=SEED).fit_predict(features[inside])
        self.groups = self.groups * CLUSTERS + made


class Pupil(nn.Module):
    """A CLIP and, while its image tower learns, one vector per concept."""

    def __init__(self, clip: Any, concepts: int) -> None:
        super().__init__()
        self.clip = clip
        self.classes = nn.Linear(clip.config.vision_config.hidden_size, concepts)
        self.logit_scale = clip.logit_scale


def _vectors(model: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Features of pictures, and their unit vectors in the space of the texts."""
    with torch.autocast("cpu", torch.bfloat16):
        features = model.vision_model(pixels).pooler_output
        vectors = model.visual_projection(features)
    return features.float(), functional.normalize(vectors.float(), dim=-1)


def _train_only(model: Any, parts: tuple[str, ...], tower: str = "") -> None:
    """Let only parameters learn in whose name one of the parts is, and the tower."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in parts) and tower in name)


def mlps(model: Any) -> dict[str, Tensor]:
    """Copies of the MLPs' weights."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if ".mlp." in name}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Train the small CLIP-MoE.")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not (options.work / "tokenizer").exists():
        texts = json.loads((options.work / "texts.json").read_text(encoding="utf-8"))
        drawn = json.loads((options.work / "pictures.json").read_text(encoding="utf-8"))["concepts"]
        known = [said for said, one in zip(texts["said"], drawn, strict=True) if not one["held_out"]]
        make_tokenizer(texts["broad"] + [text for said in known for text in said] * 5).save_pretrained(
            options.work / "tokenizer"
        )
    Trainer(options.work).run()


if __name__ == "__main__":
    main()
