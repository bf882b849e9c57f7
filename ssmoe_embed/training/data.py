"""Examples to fine-tune on: JSON lines with a prompt and its completion, a chat, an instruction, or plain text."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ssmoe_embed.common.choices import Choice

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

    Args:
        examples: What `read_examples` read.
        tokenizer: The model's.
        config: The language model's configuration.
        max_length: Tokens that an example may have.
        data: The file, for messages.

    Raises:
        ValueError: An example is longer, the model's context is shorter, or chats have no template.
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


def data_digest(path: str | Path) -> str:
    """A short name of a file's content, 16 hexadecimal digits."""
    return sha256(Path(path).expanduser().read_bytes()).hexdigest()[:16]


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
