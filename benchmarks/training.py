"""What the optimizers' states take and a step costs, on layers of OLMoE's proportions.

    python benchmarks/training.py

Hidden size, expert size and rank are OLMoE-7B's, 2,048, 1,024 and 128, divided by eight; the shares do not depend on that.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from measuring import machine
from transformers import OlmoeConfig, OlmoeForCausalLM

from ssmoe_embed.common.tables import Table
from ssmoe_embed.training import GaLoreAdamW, GaLoreSettings, galore_groups

SCALE = 8
STEPS = 3


def model() -> OlmoeForCausalLM:
    """Two layers of OLMoE's proportions."""
    torch.manual_seed(0)
    config = OlmoeConfig(
        vocab_size=2048,
        hidden_size=2048 // SCALE,
        intermediate_size=1024 // SCALE,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_experts=64,
        num_experts_per_tok=8,
    )
    return OlmoeForCausalLM(config)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Memory of an optimizer's tensors."""
    held = (value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor))
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


def galore(low: OlmoeForCausalLM, **settings: Any) -> torch.optim.Optimizer:
    """Our GaLore."""
    return GaLoreAdamW(galore_groups(low, GaLoreSettings(rank=128 // SCALE, **settings)))


def linear_only(low: OlmoeForCausalLM) -> torch.optim.Optimizer:
    """GaLore on linear layers alone, as transformers' `galore_adamw` does it."""
    linear = {id(layer.weight) for layer in low.model.layers.modules() if isinstance(layer, torch.nn.Linear)}
    first = [one for one in low.parameters() if id(one) in linear]
    rest = [one for one in low.parameters() if id(one) not in linear]
    return GaLoreAdamW([{"params": first, **GaLoreSettings(rank=128 // SCALE).as_dict()}, {"params": rest}])


WAYS: dict[str, Callable[[OlmoeForCausalLM], torch.optim.Optimizer]] = {
    "AdamW": lambda low: torch.optim.AdamW(low.parameters()),
    "GaLore on linear layers alone, as in transformers": linear_only,
    "GaLore, experts too": galore,
    "the same, moments in 8 bits": lambda low: galore(low, bits=8),
    "the same, random subspaces": lambda low: galore(low, basis="random"),
}


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    rows, ids = [], torch.randint(0, 2048, (2, 64), generator=torch.Generator().manual_seed(0))
    for name, make in WAYS.items():
        low = model()
        optimizer, first, later = make(low), 0.0, 0.0
        for step in range(STEPS):
            optimizer.zero_grad()
            low(input_ids=ids, labels=ids).loss.backward()
            began = time.process_time()
            optimizer.step()
            took = time.process_time() - began
            first, later = (took, later) if step == 0 else (first, took)
        rows.append((name, state_bytes(optimizer), first, later))
    _, whole, _, own = rows[0]
    table = Table(
        ("optimizer", "states", "of AdamW's", "first step", "a later step, of AdamW's"),
        tuple(
            (n, f"{size / 1e6:.1f} MB", f"{size / whole:.2f}", f"{a:.2f} s", f"{b / own:.1f}") for n, size, a, b in rows
        ),
    )
    print(f"{machine('torch', 'transformers')}; one thread, CPU time\n\n{table.markdown()}")


if __name__ == "__main__":
    main()
