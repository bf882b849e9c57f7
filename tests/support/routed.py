"""Running a family's tiny model, and what its routers decide meanwhile."""

import torch
from layouts.base import EXPERTS, HIDDEN, VOCABULARY

TEXTS = ("a", "How do I undo the last commit?", "She sold her old bicycle, and bought a newer one from the shop.")

BATCH = {
    "input_ids": torch.randint(3, VOCABULARY, (3, 17), generator=torch.Generator().manual_seed(3)),
    "attention_mask": torch.tensor([[1] * 17, [1] * 9 + [0] * 8, [1] * 17]),
}
ALL_TOKENS = torch.arange(BATCH["input_ids"].numel())


@torch.no_grad()
def run(model):
    output = model(**BATCH, use_cache=False)
    return output.logits if "logits" in output else output.last_hidden_state


def decisions(layout, model):
    """What entered each live router, `[N,H]`, and what it returned, by layer."""
    seen = {}

    def watch(index):
        def hook(_router, args, output):
            seen[index] = (args[0].detach().clone().reshape(-1, HIDDEN), output)

        return hook

    handles = [router.register_forward_hook(watch(index)) for index, router in layout.routers(model).items()]
    try:
        run(model)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def spread(weights, index):
    """Weights and indices `[N,k]` as weights of all experts `[N,E]`, in which the order of the chosen does not matter."""
    return torch.zeros(len(weights), EXPERTS, dtype=torch.float64).scatter_(1, index, weights.double())


def embed(module, texts):
    with torch.inference_mode():
        return module.forward(module.preprocess(texts))["sentence_embedding"]
