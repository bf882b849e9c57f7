"""What a sweep varies: fields of `EmbeddingSettings` and of `SpectralSettings`, and every combination of their values."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ssmoe_embed.common.choices import unknown
from ssmoe_embed.embedding.settings import EmbeddingSettings
from ssmoe_embed.evaluation.mteb.runs import prompt_label, setting_value
from ssmoe_embed.spectral.settings import SpectralSettings

_EMBEDDING = EmbeddingSettings().as_dict()
_SPECTRAL = SpectralSettings().as_dict()
SETTINGS = (*_EMBEDDING, *_SPECTRAL)
"""The settings that can be varied."""


@dataclass(frozen=True)
class Axis:
    """One setting and the values it takes.

    Attributes:
        setting: A field of `EmbeddingSettings` or `SpectralSettings`.
        values: Its values, each once, in the order given.

    Raises:
        ValueError: The setting is not known, a value is not allowed, or there is none.
    """

    setting: str
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if self.setting not in SETTINGS:
            raise ValueError(unknown("setting", self.setting, SETTINGS))
        if not self.values:
            raise ValueError(f"The axis {self.setting} has no values; give at least one.")
        for value in self.values:
            if self.is_spectral:
                SpectralSettings(**{self.setting: value})
            else:
                EmbeddingSettings().changed(**self._context(), **{self.setting: value})
        once = {repr(value): value for value in self.values}  # a top_c of 1 is a count, one of 1.0 a share
        object.__setattr__(self, "values", tuple(once.values()))

    @property
    def is_spectral(self) -> bool:
        """Whether another value needs other spectral routers."""
        return self.setting in _SPECTRAL

    @property
    def is_numeric(self) -> bool:
        """Whether all values are numbers."""
        return all(isinstance(value, int | float) for value in self.values)

    def _context(self) -> dict[str, Any]:
        return {"method": "moee"} if self.setting == "routing_signal" else {}

    @classmethod
    def of_texts(cls, setting: str, texts: Iterable[str | float]) -> Axis:
        """An axis whose values are spelled as on a command line.

        Raises:
            ValueError: See the class.
        """
        return cls(setting, tuple(_value(setting, text) for text in texts))

    @classmethod
    def parse(cls, text: str) -> Axis:
        """An axis from `setting=value,value,…`.

        Raises:
            ValueError: It is not of that form, or see the class.
        """
        setting, equals, values = text.partition("=")
        if not equals or not values:
            raise ValueError(f"The axis {text!r} is not of the form setting=value,value, such as alpha=0.5,0.9.")
        return cls.of_texts(setting, values.split(","))


@dataclass(frozen=True)
class Point:
    """One combination of values.

    Attributes:
        values: Setting and value, in the order of the axes.
    """

    values: tuple[tuple[str, Any], ...]

    @property
    def spectral(self) -> dict[str, Any]:
        """The settings that need other spectral routers."""
        return {name: value for name, value in self.values if name in _SPECTRAL}

    @property
    def embedding(self) -> dict[str, Any]:
        """The settings that the model can change once it is loaded, but for `hidden_layer`."""
        return {name: value for name, value in self.values if name not in _SPECTRAL}

    @property
    def label(self) -> str:
        """The combination in words, such as `alpha=0.9, top_c=50`."""
        return (
            ", ".join(f"{name}={value_label(name, value)}" for name, value in self.values) or "the model's own settings"
        )

    def __getitem__(self, setting: str) -> Any:
        return dict(self.values)[setting]


def points(axes: Sequence[Axis]) -> list[Point]:
    """Every combination of the axes' values, the last axis fastest.

    Raises:
        ValueError: There is no axis, or a setting has two.
    """
    names = [axis.setting for axis in axes]
    if not names:
        raise ValueError(
            "A sweep varies at least one setting; give for example --alpha 0 0.5 1 or --vary alpha=0,0.5,1."
        )
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} is varied twice; give all its values at once.")
    combinations = itertools.product(*(axis.values for axis in axes))
    return [Point(tuple(zip(names, values, strict=True))) for values in combinations]


def value_label(setting: str, value: Any) -> str:
    """A value as it is shown; a prompt of one's own by its short name."""
    return prompt_label(value) if setting == "prompt" else str(value)


def _value(setting: str, given: str | float) -> Any:
    """A setting's value as its field has it."""
    if setting not in SETTINGS:
        raise ValueError(unknown("setting", setting, SETTINGS))
    if not isinstance(given, str):
        return given
    if setting == "top_c" and not given.isdigit():
        return setting_value(setting, given, 0.05)  # a share; a whole number is a count
    return setting_value(setting, given, (_EMBEDDING | _SPECTRAL)[setting])
