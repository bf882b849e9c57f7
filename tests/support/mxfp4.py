"""A GPT-OSS checkpoint as it is on the hub, experts packed in MXFP4, beside the same one unpacked."""

import json

import torch
from layouts import LAYOUTS
from safetensors.torch import load_file, save_file
from tiny import make_tokenizer

HIDDEN, INTERMEDIATE = 64, 32
E2M1 = {0: 0.0, 1: 0.5, 2: 1.0, 3: 1.5, 4: 2.0, 5: 3.0, 6: 4.0, 7: 6.0}


def by_hand(blocks, scales):
    """`[E,B,A/32,16]` and `[E,B,A/32]` as float64 `[E,B,A]`, number by number as the format's standard says."""
    rows = []
    for packed, exponent in zip(blocks.reshape(-1, 16).tolist(), scales.flatten().tolist(), strict=True):
        halves = [half for byte in packed for half in (byte & 15, byte >> 4)]
        rows.append([(-1 if half & 8 else 1) * E2M1[half & 7] * 2.0 ** (exponent - 127) for half in halves])
    return torch.tensor(rows, dtype=torch.float64).view(*blocks.shape[:2], -1)


def mxfp4_folders(folder):
    """The folders of the packed and of the unpacked model, made below a folder."""
    packed_folder, plain_folder = (folder / name for name in ("mxfp4", "plain"))
    layout = LAYOUTS["gpt_oss"]
    model = layout.make(hidden_size=HIDDEN, intermediate_size=INTERMEDIATE).bfloat16()
    for place in (plain_folder, packed_folder):
        model.save_pretrained(place)
        make_tokenizer().save_pretrained(place)
    tensors = load_file(plain_folder / "model.safetensors")
    packed = dict(tensors)
    generator = torch.Generator().manual_seed(1)
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        E, A, B = tensors[name].shape
        blocks = torch.randint(0, 256, (E, B, A // 32, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(121, 125, (E, B, A // 32), dtype=torch.uint8, generator=generator)
        del packed[name]
        packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        tensors[name] = by_hand(blocks, scales).transpose(1, 2).bfloat16().contiguous()  # [E,B,A] → [E,A,B]
    save_file(tensors, plain_folder / "model.safetensors", metadata={"format": "pt"})
    save_file(packed, packed_folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((packed_folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
    }
    (packed_folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return packed_folder, plain_folder
