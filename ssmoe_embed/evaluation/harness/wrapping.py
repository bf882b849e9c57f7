"""A language model as lm-evaluation-harness sees it."""

from __future__ import annotations

from typing import Any

from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def wrapped(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int, *, progress: bool) -> HFLM:
    """The harness' own wrapper of a model.

    Args:
        model: The model, under whatever routing it has.
        tokenizer: Its tokenizer.
        batch_size: Requests a forward pass.
        progress: Show the harness' progress bars.
    """
    return (HFLM if progress else _Quiet)(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=batch_size,
        softmax_dtype="float32",  # in bfloat16 many answers would be equally likely
    )


class _Quiet(HFLM):
    """The same without progress bars, which the harness shows unless each request says otherwise."""

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
        return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
        return super().generate_until(requests, disable_tqdm=disable_tqdm)
