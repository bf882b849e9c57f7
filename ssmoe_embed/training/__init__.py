"""Training mixtures of experts: fine-tuning under a routing, GaLore that reaches the experts, spectral decoupling."""

from ssmoe_embed.training.finetuning import Finetuned, finetune
from ssmoe_embed.training.galore import GaLoreAdamW, GaLoreSettings, galore_groups
from ssmoe_embed.training.reparametrization import Decoupling, DecouplingSettings, decouple
from ssmoe_embed.training.settings import FinetuneSettings, InstructionTemplate, OptimizerName, read_examples

__all__ = [
    "Decoupling",
    "DecouplingSettings",
    "FinetuneSettings",
    "Finetuned",
    "GaLoreAdamW",
    "GaLoreSettings",
    "InstructionTemplate",
    "OptimizerName",
    "decouple",
    "finetune",
    "galore_groups",
    "read_examples",
]
