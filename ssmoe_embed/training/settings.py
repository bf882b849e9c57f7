"""What a fine-tuning is given, checked before it begins: its settings, and examples as JSON lines."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ssmoe_embed.common.choices import Choice, unknown
from ssmoe_embed.language_model.loading import Routing, RoutingSettings, parse_routing
from ssmoe_embed.routing.named import spends_by_text
from ssmoe_embed.training.galore import GaLoreSettings
from ssmoe_embed.training.reparametrization import DecouplingSettings

_DTYPES = ("float32", "bfloat16")
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a response "
    "that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
_FORMS = (
    "{'prompt': …, 'completion': …}, {'messages': [{'role': …, 'content': …}, …]}, "
    "{'instruction': …, 'input': …, 'output': …} or {'text': …}"
)


class InstructionTemplate(Choice):
    """How an instruction becomes a prompt."""

    NONE = "none"
    """The instruction, and the input below it."""
    ALPACA = "alpaca"
    """Alpaca's two templates, with and without an input (https://github.com/tatsu-lab/stanford_alpaca)."""

    def prompt(self, instruction: str, context: str) -> str:
        """The prompt of an instruction and its input, which may be empty."""
        if self is InstructionTemplate.NONE:
            return f"{instruction}\n\n{context}\n\n" if context else f"{instruction}\n\n"
        form = ALPACA_WITH_INPUT if context else ALPACA_WITHOUT_INPUT
        return form.format(instruction=instruction, input=context)


class OptimizerName(Choice):
    """What makes the steps, and what is trained."""

    ADAMW = "adamw"
    """AdamW on all weights: two moments of every weight in memory."""
    ADAMW_8BIT = "adamw-8bit"
    """AdamW on all weights with paged 8-bit moments, by bitsandbytes; needs a GPU."""
    GALORE = "galore"
    """`GaLoreAdamW`: all weights, moments in low-rank subspaces, of each expert too."""
    LORA = "lora"
    """Adapters by peft on attention and fused experts; they are merged at the end."""


class RouterTraining(Choice):
    """What is trained instead of everything, where it is only the routers."""

    HYPER = "hyper"
    """An embedding per layer behind a fixed random network (HyperRouter), see `HyperRouters`."""


@dataclass(frozen=True)
class FinetuneSettings:
    """The settings of `finetune`.

    Attributes:
        routing: The routing under which the model is trained, see `parse_routing`; `original` is its own. What it is made
            of besides spectral routers (codes, a table, noise) stays as it is at the start.
        routing_settings: What the routing leaves open: α, top_c, ….
        refresh_routers: Steps after which the spectral routers are made anew of the experts as they are; 0 keeps the first
            ones.
        template: How instructions become prompts.
        optimizer: See `OptimizerName`.
        galore: For `galore`.
        layerwise: For `galore`: update each weight as soon as its gradient is complete, so that only one gradient is in
            memory; without accumulation, and without clipping gradients by their norm, which is 1 elsewhere.
        lora_rank: For `lora`.
        decouple: Train the experts' common and own parts apart, see `decouple`.
        train_router: Train the routers alone, see `RouterTraining`; None trains what the optimizer says.
        learning_rate: Its peak; it warms up over `warmup` of the steps and falls as a cosine.
        warmup: Fraction of the steps, below 1.
        weight_decay: Decoupled.
        balance: Weight of the load-balancing loss, computed of the learned routers' logits whatever the routing.
        similarity: Weight of SimSMoE's loss, which grows with experts that answer the tokens they share alike, see
            `similarity_loss`.
        steps: Optimizer steps; None for `epochs`.
        epochs: Passes over the data.
        batch_size: Examples per forward pass.
        accumulation: Forward passes per step.
        max_length: Tokens of an example.
        packing: Put several short examples into one row.
        checkpointing: Compute activations again in the backward pass, which saves memory.
        dtype: Dtype of the weights that are trained.
        save_every: Steps between checkpoints.
        eval_every: Steps between evaluations on `eval_tasks`; 0 for none.
        eval_tasks: Tasks of lm-evaluation-harness, or `paper` and `offline`.
        eval_limit: Examples of each task.
        seed: Of the order of the data and of everything that is drawn.

    Raises:
        ValueError: A value is not allowed, or two of them do not go together.
    """

    routing: str = Routing.ORIGINAL
    routing_settings: RoutingSettings = field(default_factory=RoutingSettings)
    refresh_routers: int = 0
    template: InstructionTemplate = InstructionTemplate.ALPACA
    optimizer: OptimizerName = OptimizerName.ADAMW
    galore: GaLoreSettings = field(default_factory=GaLoreSettings)
    layerwise: bool = False
    lora_rank: int = 16
    decouple: DecouplingSettings | None = None
    train_router: RouterTraining | None = None
    learning_rate: float = 2e-5
    warmup: float = 0.03
    weight_decay: float = 0.0
    balance: float = 0.0
    similarity: float = 0.0
    steps: int | None = None
    epochs: float = 1.0
    batch_size: int = 8
    accumulation: int = 1
    max_length: int = 512
    packing: bool = False
    checkpointing: bool = False
    dtype: str = "float32"
    save_every: int = 100
    eval_every: int = 0
    eval_tasks: tuple[str, ...] = ("offline",)
    eval_limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "routing", parse_routing(self.routing))
        object.__setattr__(self, "template", InstructionTemplate.parse(self.template, "template"))
        object.__setattr__(self, "optimizer", OptimizerName.parse(self.optimizer, "optimizer"))
        object.__setattr__(self, "eval_tasks", tuple(self.eval_tasks))
        if self.train_router is not None:
            object.__setattr__(self, "train_router", RouterTraining.parse(self.train_router, "train_router"))
        if self.dtype not in _DTYPES:
            raise ValueError(unknown("dtype", self.dtype, _DTYPES))
        self._check_least(1, "batch_size", "accumulation", "max_length", "save_every", "lora_rank")
        self._check_least(0, "refresh_routers", "eval_every", "balance", "similarity", "weight_decay", "warmup")
        if self.steps is not None:
            self._check_least(1, "steps")
        if self.warmup >= 1:
            raise ValueError(f"warmup={self.warmup!r} is no fraction of the steps; choose one below 1, such as 0.03.")
        if self.learning_rate <= 0 or self.epochs <= 0:
            raise ValueError(f"learning_rate={self.learning_rate!r} and epochs={self.epochs!r} must both be above 0.")
        self._check_combinations()

    def _check_least(self, least: int, *names: str) -> None:
        """Refuse values of these settings that are no numbers, or too small."""
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, Real):
                raise ValueError(f"{name}={value!r} is no number; choose at least {least}.")
            if value < least:
                raise ValueError(f"{name}={value!r} is below {least}; choose at least {least}.")

    def _check_combinations(self) -> None:
        """Refuse settings that do not go together."""
        if self.train_router and (self.optimizer is not OptimizerName.ADAMW or self.decouple or self.refresh_routers):
            raise ValueError(
                "train_router leaves everything but the routers alone, so it goes with optimizer='adamw' only, and with "
                "neither decouple nor refresh_routers."
            )
        if self.similarity and (self.train_router or self.optimizer is OptimizerName.LORA):
            raise ValueError(
                "similarity is a loss of the experts' own weights, which optimizer='lora' and train_router leave alone."
            )
        if self.packing and spends_by_text(self.routing):
            raise ValueError(
                f"routing={self.routing!r} gives each text a budget of its own, and packing puts several into one row; "
                "leave one of them out."
            )
        if self.refresh_routers and not self.uses_spectral_routers:
            raise ValueError(
                f"refresh_routers has nothing to refresh: routing={str(self.routing)!r} has no spectral routers; leave "
                "it at 0, or choose 'ssmoe', 'ev' or 'average-ev'."
            )
        if self.optimizer is OptimizerName.LORA and (self.decouple or self.refresh_routers):
            raise ValueError(
                "optimizer='lora' leaves the experts' own weights alone; it goes with neither decouple nor refresh_routers; "
                "leave those out, or choose another optimizer."
            )
        if self.layerwise and (self.optimizer is not OptimizerName.GALORE or self.accumulation > 1):
            raise ValueError(
                f"layerwise goes with optimizer='galore' and accumulation=1, not with {str(self.optimizer)!r} and "
                f"{self.accumulation}: nothing is left of a gradient that could be added to or clipped."
            )

    @property
    def uses_spectral_routers(self) -> bool:
        """Whether the routing has spectral routers."""
        return self.routing in (Routing.SSMOE, Routing.EV, Routing.AVERAGE_EV)

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON values."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values


def read_examples(
    path: str | Path, template: str | InstructionTemplate = InstructionTemplate.ALPACA
) -> list[dict[str, Any]]:
    """The examples of a file as TRL takes them.

    Args:
        path: JSON lines, or one JSON list; `.gz` is unpacked.
        template: How instructions become prompts.

    Returns:
        For each example `prompt` and `completion`, `messages`, or `text`: the same for all of them.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is no JSON object, has none of the known forms, an empty completion, or another form than the
            first.
    """
    path, template = Path(path).expanduser(), InstructionTemplate.parse(template, "template")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path} to train on.")
    examples: list[dict[str, Any]] = []
    for line, record in _records(path):
        example = _example(record, template, f"{path}, line {line}")
        if examples and example.keys() != examples[0].keys():
            raise ValueError(
                f"{path}, line {line} has {sorted(example)} where the first has {sorted(examples[0])}; train on one form."
            )
        examples.append(example)
    if not examples:
        raise ValueError(f"{path} holds no examples; each line is one of {_FORMS}.")
    return examples


def as_trl(example: dict[str, Any]) -> dict[str, Any]:
    """A chat as a prompt and the answer that is learned; other forms as they are."""
    if "messages" in example:
        return {"prompt": example["messages"][:-1], "completion": example["messages"][-1:]}
    return example


def check_lengths(
    examples: Sequence[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    config: Any,
    max_length: int,
    data: str | Path,
) -> None:
    """Refuse what would be cut without a word.

    Raises:
        ValueError: An example has more than `max_length` tokens, the context of the model of this configuration has fewer,
            or chats have no template. The message names the file `data`.
    """
    context = getattr(config, "max_position_embeddings", None)
    if context is not None and max_length > context:
        raise ValueError(
            f"max_length={max_length} is above the model's context of {context} tokens; choose at most {context}."
        )
    if "messages" in examples[0]:
        if not tokenizer.chat_template:
            raise ValueError(
                f"{data} holds chats, but the model's tokenizer has no chat template; use prompts and completions."
            )
        ids = [tokenizer.apply_chat_template(example["messages"], return_dict=False) for example in examples]
    else:
        texts = ["".join(example.values()) for example in examples]
        ids = tokenizer(texts, add_special_tokens=True, verbose=False)["input_ids"]
    long = [number for number, one in enumerate(ids, start=1) if len(one) > max_length]
    if long:
        raise ValueError(
            f"{len(long)} of {len(examples)} examples of {data} are longer than max_length={max_length} tokens, first "
            f"example {long[0]} with {len(ids[long[0] - 1])}; raise max_length"
            f"{'' if context is None else f' (up to {context})'}, or leave them out."
        )


def _records(path: Path) -> Iterator[tuple[int, Any]]:
    """The records of a file with the numbers of their lines; of a JSON list, their places."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        try:
            content = file.read()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text ({error}); convert it first.") from None
    if content.lstrip().startswith("["):
        try:
            yield from enumerate(json.loads(content), start=1)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is no JSON list ({error}); correct it.") from None
        return
    for number, line in enumerate(content.splitlines(), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is not JSON ({error}); correct or remove the line.") from None


def _example(record: Any, template: InstructionTemplate, where: str) -> dict[str, Any]:
    """One record as TRL takes it."""
    if not isinstance(record, dict):
        raise ValueError(f"{where} is no JSON object; each is one of {_FORMS}.")
    if "messages" in record:
        return {"messages": _chat(record["messages"], where)}
    if "prompt" in record or "completion" in record:
        return {name: _text(record, name, where) for name in ("prompt", "completion")}
    if "instruction" in record:
        instruction, answer = (_text(record, name, where) for name in ("instruction", "output"))
        return {"prompt": template.prompt(instruction, str(record.get("input") or "")), "completion": answer}
    if "text" in record:
        return {"text": _text(record, "text", where)}
    raise ValueError(f"{where} has the fields {sorted(record)}; an example is one of {_FORMS}.")


def _text(record: dict[str, Any], name: str, where: str) -> str:
    """A field that must hold text."""
    value = record.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{where} has no text in {name!r} but {value!r}; each example is one of {_FORMS}.")
    if not value.strip():
        raise ValueError(f"{where} has an empty {name!r}, from which nothing can be learned; leave the line out.")
    return value


def _chat(messages: Any, where: str) -> list[dict[str, str]]:
    """Messages that a chat template takes, the last of them an answer."""
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise ValueError(f"{where}: 'messages' is no list of {{'role': …, 'content': …}}; correct or remove it.")
    chat = [{name: _text(one, name, where) for name in ("role", "content")} for one in messages]
    if chat[-1]["role"] != "assistant":
        raise ValueError(
            f"{where}: the last message is the {chat[-1]['role']}'s, so there is no "
            "answer to learn; end with an assistant's, or leave it out."
        )
    return chat
