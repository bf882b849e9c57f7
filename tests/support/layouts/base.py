"""What a description of a family says, independently of the package's adapter and of transformers' code."""

from typing import ClassVar

import torch
from transformers import AutoConfig, AutoModelForCausalLM

HIDDEN = 32
EXPERTS = 8
VOCABULARY = 512

SHARED = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_experts_per_tok": 2,
}


class Layout:
    """One family: a tiny model of it, where its checkpoint keeps what, and its routing rule, from the papers' formulas.

    The defaults are OLMoE's. `tensors` are a checkpoint's, by their names on disk; everything computed is float64.
    `E` experts, `H` hidden size, `I` expert size, `N` tokens, `k` chosen experts.
    """

    model_type: str
    auto = AutoModelForCausalLM
    """How transformers makes and loads it: with its head, where it has a class for that."""
    config: ClassVar = {}
    """What differs from SHARED in the tiny model's configuration."""
    sparse: tuple = (0, 1)
    """The layers that have experts."""
    shared = False
    """Whether its MoE block adds shared experts to the routed ones."""
    prefix = "model."
    """Before `layers.` in the checkpoint's names."""
    block = "mlp"
    """The MoE block's name on disk."""
    gate = "gate.weight"
    """The router's name in it."""
    streams = False
    """Whether the states between its layers are several streams."""
    projections = ("gate_proj", "up_proj", "down_proj")
    """Gate, up and down of an expert."""
    score = "softmax"
    fused = ("gate_up_proj", "down_proj")
    """The weights of all experts of a live layer."""
    live_block = "mlp"
    live_gate = "gate"
    """Where transformers keeps the router of a live decoder layer."""

    # --- a tiny model -------------------------------------------------------------------------------------------------

    def make_config(self, **changes):
        return AutoConfig.for_model(self.model_type, **(SHARED | self.config | changes))

    def make(self, seed=0, **changes):
        """A causal language model whose routers have clear preferences and whose norms and biases all matter."""
        return randomised(self.auto.from_config(self.make_config(**changes)), seed)

    def save(self, model, folder):
        """Write it in the layout in which the family's checkpoints are published."""
        model.save_pretrained(folder)

    def repair(self, folder):
        """Make loadable what transformers wrote in the model's own layout and cannot read."""

    def write(self, folder, seed=0, **changes):
        """Write a tiny checkpoint."""
        self.save(self.make(seed, **changes), folder)

    def decoder(self, model):
        """The live decoder, which has `.layers`."""
        return getattr(model, "model", model)

    def routers(self, model):
        """The live routers by layer index."""
        layers = self.decoder(model).layers
        return {
            index: getattr(self.live(layers[index]), self.live_gate) for index in self.sparse if index < len(layers)
        }

    def live(self, layer):
        """A live decoder layer's MoE block."""
        return getattr(layer, self.live_block) if self.live_block else layer

    # --- the checkpoint -----------------------------------------------------------------------------------------------

    def start(self, layer):
        return ".".join((f"{self.prefix}layers.{layer}", *([self.block] if self.block else ()), ""))

    def router(self, tensors, layer):
        """`R [E,H]`."""
        return tensors[self.start(layer) + self.gate].double()

    def router_bias(self, tensors, layer):
        """What is added to `R x` to make the logits, `[E]`."""
        del tensors, layer
        return 0

    def matrices(self, tensors, layer, expert):
        """One expert's gate, up and down with rows in hidden space, `[I,H]` each."""
        gate, up, down = (
            tensors[f"{self.start(layer)}experts.{expert}.{name}.weight"].double() for name in self.projections
        )
        return gate, up, down.T

    def router_input(self, x, tensors, layer):
        """What a router makes of its input `x [N,H]` before it multiplies."""
        del tensors, layer
        return x

    # --- the routing rule ---------------------------------------------------------------------------------------------

    def scores(self, logits):
        """The family's score function `[N,E]`."""
        return torch.softmax(logits, dim=-1) if self.score == "softmax" else torch.sigmoid(logits)

    def route(self, p, learned, tensors, layer, config):
        """The family's rule.

        p: mixed scores over all experts `[N,E]`.
        learned: the learned router's logits `[N,E]`, for rules that look at logits.
        config: the text model's configuration.
        Returns weights and indices of the chosen experts, `[N,k]` each, in any order.
        """
        del learned, tensors, layer
        return top_k(p, config.num_experts_per_tok, renormalise=getattr(config, "norm_topk_prob", False))

    def decided(self, output):
        """Weights and indices `[N,k]` in what a live router returned."""
        return output[1], output[2]

    def routed(self, block, x, weights, index):
        """What the live block's experts make of `x [N,H]`, added up by weights and indices `[N,k]`."""
        return block.experts(x, index, weights)

    def output(self, block, x):
        """What the live block makes of `x [B,T,H]`."""
        return block(x)

    def expert(self, block, x, gate, up, down):
        """What one expert makes of `x [N,H]`, by the papers' formula, from matrices with rows in hidden space."""
        del block
        return torch.nn.functional.silu(x @ gate.T) * (x @ up.T) @ down

    def live_logits(self, output):
        """The logits `[N,E]` in it."""
        return output[0]

    def recorded(self, logits):
        """What stands there in their place."""
        return logits


def top_k(p, k, *, renormalise):
    """Weights and indices of the `k` largest scores."""
    weights, index = p.topk(k, dim=-1)
    return (weights / weights.sum(dim=-1, keepdim=True) if renormalise else weights), index


def biased_top_k(p, bias, k, *, groups=1, kept_groups=1):
    """Indices of the `k` largest `p + bias` within the groups whose two best add up to most: DeepSeek-V3's choice."""
    chosen = torch.empty(len(p), k, dtype=torch.long)
    for token, scores in enumerate(p + bias):
        grouped = scores.view(groups, -1)
        strength = grouped.topk(min(2, grouped.shape[1]), dim=-1).values.sum(dim=-1)
        allowed = strength.topk(kept_groups).indices
        masked = torch.full_like(grouped, -torch.inf)
        masked[allowed] = grouped[allowed]
        chosen[token] = masked.flatten().topk(k).indices
    return chosen


@torch.no_grad()
def randomised(model, seed=0):
    """The same model with drawn weights."""
    generator = torch.Generator().manual_seed(seed)
    tensors = sorted(model.named_parameters())
    tensors += sorted((name, buffer) for name, buffer in model.named_buffers() if name.endswith("bias"))
    for name, tensor in tensors:
        tensor.copy_(drawn(name, tensor.shape, generator))
    return model.eval()


def drawn(name, shape, generator):
    """Values for a weight of that name: routers have clear preferences, norms and biases all matter."""
    noise = torch.randn(shape, generator=generator)
    if "norm" in name:
        return 1 + 0.1 * noise
    if name.endswith(("gate.weight", "router.weight", "wg.weight")):
        return 0.3 * noise
    if "bias" in name or len(shape) == 1:
        return 0.2 * noise
    return (1.0 if "embed" in name else 0.15) * noise
