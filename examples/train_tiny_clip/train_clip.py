"""Train the small CLIP-MoE, stage by stage; what was interrupted goes on.

    python examples/train_tiny_clip/train_clip.py --work build/clip

1. `text`: the text tower learns the teacher's vectors of broad texts.
2. `vision`: the image tower learns to tell all concepts apart by the vectors that the text tower has of their texts.
   `aligned`: its last matrix is solved for by least squares, and it goes on.
3. `expert1` to `expert3`: as CLIP-MoE does, the MLPs alone learn to tell apart what was near each other before, which gives
   three more experts of the image tower; those of the text tower are copies.
4. `moe`: the four experts under routers, which learn first alone and then together with both towers.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batches import Material, padded, read_material, seen
from clip_losses import Balance, contrast, distil
from model import WIDTH, dense_model, make_tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTokenizer

sys.path.insert(1, str(Path(__file__).parents[1] / "train_tiny"))

import checkpoint

from ssmoe_embed.vision import ClipMoeModel

SEED = 20261127
STEPS = {"text": 150, "vision": 420, "aligned": 160, "expert1": 15, "expert2": 15, "expert3": 15, "moe": 60}
RATES = {"text": 2e-3, "vision": 1e-3, "aligned": 7e-4, "expert1": 5e-4, "expert2": 5e-4, "expert3": 5e-4, "moe": 4e-4}
GATES_ALONE = 10
"""Steps of `moe` in which nothing but the routers learns."""
TEXTS, IMAGES = 64, 96
"""Of a batch."""
SAVE_EVERY = 20
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
        self.said: list[Tensor] = []
        self.meant = torch.empty(0)

    def run(self) -> None:
        """Every stage that is not finished."""
        torch.manual_seed(SEED)
        model: Any = dense_model(self.tokenizer)
        if not (self.work / "text.safetensors").exists():
            start_from_bag(model, self.material)
        self.stage("text", model, self.text_loss)
        self.said = self.all_texts(model)
        self.meant = functional.normalize(torch.stack([texts.mean(dim=0) for texts in self.said]), dim=-1)
        start_from_patches(model, self)
        _train_only(model, ("vision_model.", "visual_projection.", "logit_scale"))
        self.stage("vision", model, self.vision_loss)
        if not (self.work / "aligned.safetensors").exists():
            self.align(model)
        self.stage("aligned", model, self.vision_loss)
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
        balance = Balance(moe)
        self.stage("moe", moe, lambda model, rng, step: self.moe_loss(model, rng, step, balance))
        moe.eval().save_pretrained(self.work / "trained")

    def stage(self, name: str, model: Any, loss: Callable[[Any, np.random.Generator, int], Tensor]) -> None:
        """Train for the stage's steps, or read what an earlier run made of it."""
        path, steps, rate = self.work / f"{name}.safetensors", STEPS[name], RATES[name]
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learning, lr=rate, betas=(0.9, 0.98), weight_decay=0.05)
        state = checkpoint.load(path, model, optimizer) if path.exists() else {}
        first, before = int(state.get("step", 0)), float(state.get("seconds", 0))
        began, shown = time.monotonic() - before, 0.0
        model.train()
        for step in range(first, steps):
            rng = np.random.default_rng([SEED, sorted(STEPS).index(name), step])
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1, (step + 1) / 25) * (1 - step / steps)
            with torch.autocast("cpu", torch.bfloat16):
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

    def joint_loss(self, model: Any, rng: np.random.Generator, step: int) -> Tensor:
        """Pictures and texts of concepts, and broad texts beside them."""
        chosen = rng.choice(self.concepts, min(IMAGES, len(self.concepts)), replace=False)
        return self.pairs(model, rng, chosen) + self.text_loss(model, rng, step)

    def vision_loss(self, model: Any, rng: np.random.Generator, _step: int) -> Tensor:
        """Pictures of concepts, told apart from all others."""
        return self.named(model, rng, self.concepts)

    def expert_loss(self, model: Any, rng: np.random.Generator, _step: int) -> Tensor:
        """The same within one group of concepts, which are those that were hard to tell apart."""
        group = self.groups[rng.integers(len(self.groups))]
        return self.named(model, rng, self.concepts[self.groups == group])

    def named(self, model: Any, rng: np.random.Generator, among: np.ndarray) -> Tensor:
        """Cross entropy of pictures over what is said of each of some concepts, and of where the teacher has them."""
        places = rng.integers(0, len(among), IMAGES)
        images = self.images(model, rng, among[places])
        texts = self.meant[among]  # [C,D]
        logits = model.logit_scale.exp() * images @ texts.T  # [B,C]
        told = functional.cross_entropy(logits, torch.from_numpy(places), label_smoothing=0.05)
        return told + 0.5 * self.far(images, among[places])

    def images(self, model: Any, rng: np.random.Generator, concepts: np.ndarray) -> Tensor:
        """Unit vectors of a picture of each of some concepts."""
        rows = [int(rng.choice(self.material.pictures[concept])) for concept in concepts]
        pixels = seen(self.material.pixels[rows], self.material.black[rows], rng)
        return functional.normalize(model.get_image_features(pixels).pooler_output.float(), dim=-1)

    def far(self, images: Tensor, concepts: np.ndarray) -> Tensor:
        """How far pictures are from where the teacher has their concepts."""
        return (1 - (images * self.material.anchors[concepts]).sum(dim=-1)).mean()

    def moe_loss(self, model: Any, rng: np.random.Generator, step: int, balance: Balance) -> Tensor:
        """The joint loss and even use of the experts."""
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(step >= GATES_ALONE or name.endswith("gate.weight"))
        return self.joint_loss(model, rng, step) + 0.05 * balance.loss()

    def pairs(self, model: Any, rng: np.random.Generator, chosen: np.ndarray) -> Tensor:
        """CLIP's loss over one picture and one text each, and pictures where the teacher has their concept."""
        material = self.material
        images = self.images(model, rng, chosen)
        places = [int(rng.integers(len(material.said[concept]))) for concept in chosen]
        texts = self.texts(model, [material.said[one][place] for one, place in zip(chosen, places, strict=True)])
        words = [material.texts[one][place] for one, place in zip(chosen, places, strict=True)]
        said = [set(material.texts[one]) for one in chosen]
        shared = torch.tensor([[word in known for word in words] for known in said]).fill_diagonal_(False)
        return contrast(images, texts, model.logit_scale.exp(), shared) + 0.5 * self.far(images, chosen)

    def texts(self, model: Any, rows: list[list[int]]) -> Tensor:
        """Unit vectors of texts."""
        ids, mask = padded(rows, self.tokenizer.pad_token_id)
        vectors = model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
        return functional.normalize(vectors.float(), dim=-1)

    @torch.no_grad()
    def all_texts(self, model: Any) -> list[Tensor]:
        """Unit vectors of all texts of every concept."""
        return [self.texts(model, rows) for rows in self.material.said]

    @torch.no_grad()
    def align(self, model: Any, ridge: float = 1e-3, rounds: int = 2) -> None:
        """Give the image tower's last matrix the values that bring its features nearest to what is said of the pictures.

        A tower that has hardly learned sends all pictures to nearly the same place; least squares find the differences.
        """
        rng = np.random.default_rng(SEED)
        model.eval()
        owner = {row: concept for concept, rows in self.material.pictures.items() for row in rows}
        rows = np.array(sorted(owner))
        features, targets = [], []
        for part in np.array_split(np.tile(rows, rounds), len(rows) * rounds // 256 + 1):
            pixels = seen(self.material.pixels[part], self.material.black[part], rng)
            features.append(model.vision_model(pixels).pooler_output)
            targets.append(self.meant[[owner[int(row)] for row in part]])
        x, y = torch.cat(features).double(), torch.cat(targets).double()  # [n,H], [n,D]
        square = x.T @ x / len(x)
        eased = square + ridge * square.trace() / len(square) * torch.eye(len(square))
        solved = torch.linalg.solve(eased, x.T @ y / len(x))
        model.visual_projection.weight.copy_(solved.T)
        model.logit_scale.fill_(3.4)
        found = functional.normalize((x @ solved).float(), dim=-1) @ self.meant[self.concepts].T
        place = {int(concept): number for number, concept in enumerate(self.concepts)}
        right = torch.tensor([place[owner[int(row)]] for row in np.tile(rows, rounds)])
        print(
            f"aligned: {(found.argmax(dim=1) == right).float().mean():.3f} right of the training pictures", flush=True
        )

    @torch.no_grad()
    def part(self, model: Any) -> None:
        """Part every group of concepts into clusters by what the model makes of their pictures and texts."""
        from sklearn.cluster import KMeans

        rng = np.random.default_rng(SEED)
        rows = [self.material.pictures[concept][0] for concept in self.concepts]
        model.eval()
        images = [
            model.get_image_features(seen(self.material.pixels[part], self.material.black[part], rng)).pooler_output
            for part in np.array_split(rows, 8)
        ]
        texts = torch.stack([self.said[concept][0] for concept in self.concepts])
        features = torch.cat([functional.normalize(torch.cat(images), dim=-1), texts], dim=-1).numpy()
        made = np.zeros_like(self.groups)
        for group in np.unique(self.groups):
            inside = np.flatnonzero(self.groups == group)
            if len(inside) >= 16 * CLUSTERS:
                made[inside] = KMeans(CLUSTERS, n_init=4, random_state=SEED).fit_predict(features[inside])
        self.groups = self.groups * CLUSTERS + made


def _train_only(model: Any, parts: tuple[str, ...], tower: str = "") -> None:
    """Let only parameters learn in whose name one of the parts is, and the tower."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in parts) and tower in name)


def start_from_bag(model: Any, material: Material, steps: int = 800) -> None:
    """Let token vectors start where their mean points towards the teacher's vector of a text."""
    table = torch.nn.EmbeddingBag(model.config.text_config.vocab_size, WIDTH, mode="mean")
    torch.nn.init.normal_(table.weight, std=0.02)
    optimizer = torch.optim.Adam(table.parameters(), lr=0.01)
    rng = np.random.default_rng(SEED)
    for step in range(steps):
        rows = rng.integers(0, len(material.broad), 1024)
        pieces = [material.broad[row][1:-1] or [0] for row in rows]
        offsets = torch.tensor(np.cumsum([0, *map(len, pieces[:-1])]))
        sums = table(torch.tensor([token for piece in pieces for token in piece]), offsets)  # [B,192]
        wanted = torch.from_numpy(material.targets[rows].astype(np.float32))
        loss = (1 - functional.cosine_similarity(sums, wanted)).mean()
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / steps)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    print(f"bag of words: cosine with the teacher {1 - loss.item():.3f}", flush=True)
    with torch.no_grad():
        vectors = table.weight
        model.text_model.embeddings.token_embedding.weight.copy_(vectors / vectors.norm(dim=1).mean() * 0.5)


@torch.no_grad()
def start_from_patches(model: Any, trainer: Trainer) -> None:
    """Let patches enter the image tower by their principal directions, all about equally strong; a random turn after it."""
    rng, material = np.random.default_rng(SEED), trainer.material
    rows = [material.pictures[concept][0] for concept in trainer.concepts]
    weight = model.vision_model.embeddings.patch_embedding.weight  # [H,3,p,p]
    side = weight.shape[-1]
    pixels = seen(material.pixels[rows], material.black[rows], rng)
    patches = functional.unfold(pixels, side, stride=side).transpose(1, 2).flatten(0, 1)  # [n,3·p·p]
    patches = patches[torch.from_numpy(rng.permutation(len(patches))[:8000])]
    _, strengths, directions = torch.linalg.svd(patches - patches.mean(dim=0), full_matrices=False)
    evened = directions / (strengths[:, None] / len(patches) ** 0.5 + 0.3)
    turn = torch.linalg.qr(torch.from_numpy(rng.standard_normal((len(weight), len(evened))).astype(np.float32)))[0]
    weight.copy_(0.3 * (turn @ evened).reshape(weight.shape))


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
