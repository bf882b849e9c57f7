"""CLIP-MoE as its paper and its release describe it: names and shapes of the published state dict, and every formula.

Written from the description of the release, in float64, not from the package's code.
"""

import torch

PUBLISHED = {
    "embed": 768,
    "vocabulary": 49408,
    "positions": 248,
    "patch": 14,
    "grid": 16,
    "towers": {"": (768, 12), "visual.": (1024, 24)},
    "experts": 4,
}
TINY = {
    "embed": 48,
    "vocabulary": 100,
    "positions": 30,
    "patch": 4,
    "grid": 3,
    "towers": {"": (64, 2), "visual.": (128, 3)},
    "experts": 4,
}
KEPT = 20


def shapes(sizes):
    """Every name of the published state dict with its shape."""
    text, vision = sizes["towers"][""][0], sizes["towers"]["visual."][0]
    found = {
        "positional_embedding": (sizes["positions"], text),
        "positional_embedding_res": (sizes["positions"], text),
        "text_projection": (text, sizes["embed"]),
        "logit_scale": (),
        "token_embedding.weight": (sizes["vocabulary"], text),
        "ln_final.weight": (text,),
        "ln_final.bias": (text,),
        "visual.class_embedding": (vision,),
        "visual.positional_embedding": (sizes["grid"] ** 2 + 1, vision),
        "visual.proj": (vision, sizes["embed"]),
        "visual.conv1.weight": (vision, 3, sizes["patch"], sizes["patch"]),
    }
    found |= {f"visual.{norm}.{part}": (vision,) for norm in ("ln_pre", "ln_post") for part in ("weight", "bias")}
    for prefix, (D, layers) in sizes["towers"].items():
        for n in range(layers):
            block = {
                "attn.in_proj_weight": (3 * D, D),
                "attn.in_proj_bias": (3 * D,),
                "attn.out_proj.weight": (D, D),
                "attn.out_proj.bias": (D,),
                "ln_1.weight": (D,),
                "ln_1.bias": (D,),
                "ln_2.weight": (D,),
                "ln_2.bias": (D,),
                "gate.weight": (sizes["experts"], D),
            }
            for j in range(sizes["experts"]):
                block |= {f"experts.{j}.c_fc.weight": (4 * D, D), f"experts.{j}.c_fc.bias": (4 * D,)}
                block |= {f"experts.{j}.c_proj.weight": (D, 4 * D), f"experts.{j}.c_proj.bias": (D,)}
            found |= {f"{prefix}transformer.resblocks.{n}.{name}": shape for name, shape in block.items()}
    return found


def published(sizes=TINY, seed=0):
    """A random state dict in which every tensor matters."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes(sizes).items():
        noise = torch.randn(shape, generator=generator)
        norm = ".ln_" in f".{name}" and name.endswith("weight")
        wide = len(shape) > 1 and "embedding" not in name
        tensors[name] = 1 + 0.2 * noise if norm else noise * (shape[-1] ** -0.5 if wide else 0.3)
        if name.endswith("gate.weight"):
            tensors[name] *= 2  # clear preferences
    return tensors


class Release:
    """The release's arithmetic on a state dict, in float64; `evs` are `W_EV [E,D]` by the block's name, `c` their share."""

    def __init__(self, tensors, evs=None, c=0.0):
        self.tensors = {name: tensor.double() for name, tensor in tensors.items()}
        self.evs, self.c = evs or {}, c
        self.weights = {}

    def image(self, pixels):
        """`[B,3,h,w]` to vectors, not normalised."""
        t = self.tensors
        size = t["visual.conv1.weight"].shape[-1]
        x = torch.nn.functional.conv2d(pixels.double(), t["visual.conv1.weight"], stride=size).flatten(2).mT
        x = torch.cat([t["visual.class_embedding"].expand(len(x), 1, -1), x], dim=1) + t["visual.positional_embedding"]
        x = self.blocks("visual.", self.norm("visual.ln_pre", x), causal=False)
        return self.norm("visual.ln_post", x[:, 0]) @ t["visual.proj"]

    def text(self, ids):
        """`[B,T]` to vectors, not normalised."""
        t = self.tensors
        length = ids.shape[1]
        places = torch.cat([t["positional_embedding"][:KEPT], t["positional_embedding_res"][KEPT:]])[:length]
        x = self.norm("ln_final", self.blocks("", t["token_embedding.weight"][ids] + places, causal=True))
        return x[torch.arange(len(ids)), ids.argmax(dim=-1)] @ t["text_projection"]

    def norm(self, name, x):
        centred = x - x.mean(dim=-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(dim=-1, keepdim=True) + 1e-5).sqrt()
        return scaled * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]

    def blocks(self, prefix, x, causal):
        n = 0
        while f"{prefix}transformer.resblocks.{n}.gate.weight" in self.tensors:
            name = f"{prefix}transformer.resblocks.{n}"
            x = x + self.attention(f"{name}.attn", self.norm(f"{name}.ln_1", x), causal)
            x = x + self.moe(name, self.norm(f"{name}.ln_2", x))
            n += 1
        return x

    def attention(self, name, x, causal):
        B, T, D = x.shape
        joined = x @ self.tensors[f"{name}.in_proj_weight"].T + self.tensors[f"{name}.in_proj_bias"]
        q, k, v = (part.reshape(B, T, D // 64, 64).transpose(1, 2) for part in joined.split(D, dim=-1))
        scores = q @ k.mT / 8
        if causal:
            scores = scores + torch.full((T, T), -torch.inf, dtype=scores.dtype).triu(1)
        mixed = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(B, T, D)
        return mixed @ self.tensors[f"{name}.out_proj.weight"].T + self.tensors[f"{name}.out_proj.bias"]

    def moe(self, name, h):
        p = (h @ self.tensors[f"{name}.gate.weight"].T).softmax(dim=-1)
        if self.c:
            p = (1 - self.c) * p + self.c * (h @ self.evs[name].double().T).softmax(dim=-1)
        top, chosen = p.topk(2, dim=-1)
        weights = torch.zeros_like(p).scatter(-1, chosen, top / top.sum(dim=-1, keepdim=True))
        self.weights[name] = weights
        return sum(weights[..., j, None] * self.expert(f"{name}.experts.{j}", h) for j in range(p.shape[-1]))

    def expert(self, name, h):
        z = h @ self.tensors[f"{name}.c_fc.weight"].T + self.tensors[f"{name}.c_fc.bias"]
        return (z / (1 + torch.exp(-1.702 * z))) @ self.tensors[f"{name}.c_proj.weight"].T + self.tensors[
            f"{name}.c_proj.bias"
        ]


def release_ev(tensors, block, k=5):
    """The release's `W_EV [E,D]` of a block: raw right singular vectors, `c_proj` reshaped where it should be transposed."""
    gate = tensors[f"{block}.gate.weight"]
    rows = []
    for j, row in enumerate(gate):
        into = tensors[f"{block}.experts.{j}.c_fc.weight"]
        back = tensors[f"{block}.experts.{j}.c_proj.weight"].reshape(into.shape)
        means = []
        for matrix in (into, back):
            vectors = torch.linalg.svd(matrix, full_matrices=False).Vh
            means.append(vectors[(vectors @ row).topk(k).indices].mean(dim=0))
        rows.append(sum(means) / 2)
    return torch.stack(rows)


def block_names(sizes=TINY, prefixes=("", "visual.")):
    """The blocks of the towers."""
    return [
        f"{prefix}transformer.resblocks.{n}"
        for prefix, (_, layers) in sizes["towers"].items()
        if prefix in prefixes
        for n in range(layers)
    ]
