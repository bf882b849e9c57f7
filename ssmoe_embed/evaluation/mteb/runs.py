"""What is evaluated: a method and a prompt of a model, under one corruption, with some settings changed."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ssmoe_embed.common.choices import unknown
from ssmoe_embed.embedding.prompts import ENSEMBLES, TEMPLATES
from ssmoe_embed.embedding.settings import PRESETS, EmbeddingSettings
from ssmoe_embed.evaluation.tasks.corruption import CLEAN, Corruption, ladder
from ssmoe_embed.evaluation.vision.encoder import LADDER as IMAGE_LADDER
from ssmoe_embed.evaluation.vision.encoder import ImageCorruption, names_image_corruption
from ssmoe_embed.evaluation.vision.encoder import ladder as image_ladder
from ssmoe_embed.routing.named import canonical
from ssmoe_embed.spectral.settings import SpectralSettings

_NO_CORRUPTION = ("none", CLEAN)
_LADDER = "ladder"
_OWN = "own"
OF_THE_TASK = "task"
"""As `instruction`: each task's own, as mteb has it; the paper's release takes those of E5, which are the same."""


@dataclass(frozen=True)
class Run:
    """One way to evaluate a model.

    Attributes:
        method: The representation, or a preset's name; None for the model's own.
        prompt: The template; None for the model's own.
        corruption: What is done to the texts; None for clean ones.
        overrides: Further fields of `EmbeddingSettings` that replace the model's own.
    """

    method: str | None = None
    prompt: str | None = None
    corruption: Corruption | ImageCorruption | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def on_texts(self) -> Corruption | None:
        """What is done to texts, if anything.

        Raises:
            ValueError: It is images that are to be corrupted.
        """
        if isinstance(self.corruption, ImageCorruption):
            raise ValueError(f"{self.corruption.name} corrupts images; for texts choose replace@0.1, ladder, ….")
        return self.corruption

    @property
    def noise(self) -> ImageCorruption | None:
        """What is done to images, if anything.

        Raises:
            ValueError: It is texts that are to be corrupted.
        """
        if isinstance(self.corruption, Corruption):
            raise ValueError(f"{self.corruption.name} corrupts texts; for images choose gaussian@0.1, image-ladder, ….")
        return self.corruption

    @property
    def corruption_name(self) -> str:
        """The corruption's name, which is also that of the results' folder; `clean` without one."""
        return CLEAN if self.corruption is None else self.corruption.name

    def settings(self, own: EmbeddingSettings) -> EmbeddingSettings:
        """The settings of this run.

        Raises:
            ValueError: A setting is not known, or has a value that is not allowed or does not fit the others.
        """
        changes: dict[str, Any] = {"method": self.method, "prompt": self.prompt}
        changes = {name: value for name, value in changes.items() if value is not None} | dict(self.overrides)
        if self.method is not None and self.method != own.method and self.method not in PRESETS:
            changes = {"routing_signal": None, **changes}  # the saved one belongs to the saved method
        if _reroutes(self.method):
            changes = {"routing": None, **changes}  # likewise
        return own.changed(**changes)

    def deviations(self, own: EmbeddingSettings) -> dict[str, Any]:
        """The settings that differ from the model's own, as plain JSON values."""
        before = own.as_dict()
        return {name: value for name, value in self.settings(own).as_dict().items() if value != before[name]}

    def experiment(self, own: EmbeddingSettings, **loading: Any) -> dict[str, Any] | None:
        """What names this run among the model's results: mteb's `experiment_kwargs`.

        Args:
            own: The model's saved settings.
            **loading: How the model was loaded, where that changes its numbers (`dtype`, `load_in_4bit`).

        Returns:
            None for the model as it is, on clean texts: what a leaderboard takes.
        """
        changed = self.deviations(own) | loading
        if self.corruption is not None:
            changed["corruption"] = self.corruption_name
        if not changed:
            return None
        settings = self.settings(own)
        return {**changed, "method": str(settings.method), "prompt": prompt_label(settings.prompt)}


def prompt_label(prompt: str) -> str:
    """A short name for a prompt, fit for a folder: a template of one's own is named by a digest of its text."""
    if prompt in TEMPLATES or prompt in ENSEMBLES:
        return prompt
    return f"custom-{hashlib.sha256(prompt.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


def grid(
    methods: Sequence[str] | None = None,
    prompts: Sequence[str] | None = None,
    corruptions: Sequence[str | Corruption | None] = (None,),
    overrides: Mapping[str, Any] | None = None,
    *,
    routings: Sequence[str] | None = None,
    train_corrupt: bool = True,
) -> list[Run]:
    """Every combination, corruption first, then prompt, then method.

    Args:
        methods: Representations; None for the model's own.
        prompts: Templates; None for the model's own.
        corruptions: Corruptions or their names; `none`, `clean` or None for clean texts, `ladder` for clean texts and a
            ladder of rates.
        overrides: Fields of `EmbeddingSettings` for all of them.
        routings: Values of `EmbeddingSettings.routing`, `own` for the model's own routers; methods that the mix routes are
            measured without one, once.
        train_corrupt: Corrupt the texts that a task trains its classifier on as well.

    Raises:
        ValueError: A corruption's name cannot be read.
    """
    chosen = _corruptions(corruptions, train_corrupt)
    axes = itertools.product(chosen, prompts or (None,), methods or (None,), routings or (None,))
    runs: list[Run] = []
    for corruption, prompt, method, routing in axes:
        changes = dict(overrides or {})
        if routing is not None:
            changes["routing"] = None if _reroutes(method) or routing == _OWN else canonical(routing)
        run = Run(method, prompt, corruption, changes)
        runs += [] if run in runs else [run]
    return runs


def _reroutes(method: str | None) -> bool:
    """Whether a method is routed by the mix of learned and spectral routers."""
    return method is not None and EmbeddingSettings.of(method=method).representation.reroutes


def _corruptions(
    named: Iterable[str | Corruption | None], train_corrupt: bool
) -> list[Corruption | ImageCorruption | None]:
    found: list[Corruption | ImageCorruption | None] = []
    for one in named:
        if one == _LADDER:
            found += [None, *ladder(train_split=train_corrupt)]
        elif one is None or one in _NO_CORRUPTION:
            found.append(None)
        elif isinstance(one, Corruption | ImageCorruption):
            found.append(one)
        elif names_image_corruption(one):
            found += [None, *image_ladder()] if one == IMAGE_LADDER else [ImageCorruption.parse(one)]
        else:
            suffix = "" if train_corrupt or "train_split=" in one else ",train_split=False"
            found.append(Corruption.parse(one + suffix))
    return found


def parse_settings(pairs: Iterable[str]) -> dict[str, Any]:
    """Fields of `EmbeddingSettings` from `name=value` texts such as `hidden_layer=-2`.

    Raises:
        ValueError: A text is no such pair, its name is no setting or comes twice, or its value is no number where one is
            needed.
    """
    values: dict[str, Any] = {}
    default = EmbeddingSettings().as_dict()
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"The setting {pair!r} is not of the form name=value, such as hidden_layer=-2.")
        if name in SpectralSettings.__dataclass_fields__:
            raise ValueError(
                f"{name} is fixed when a model is built; vary it with `ssmoe sweep MODEL --vary {pair}`, or build another "
                "model with `ssmoe build`."
            )
        if name not in default:
            raise ValueError(unknown("setting", name, default))
        if name in values:
            raise ValueError(f"The setting {name} is given twice, as {values[name]!r} and as {text!r}; give it once.")
        values[name] = setting_value(name, text, default[name])
    return values


def setting_value(name: str, text: str, default: Any) -> Any:
    """A setting's value from its text, of the type of its default.

    Raises:
        ValueError: It should be a number and is none.
    """
    if default is None:
        return None if text == "none" else text
    try:
        return type(default)(text)
    except ValueError:
        kind = "whole number" if isinstance(default, int) else "number"
        raise ValueError(f"{name}={text!r} is not a {kind}; write it like {name}={default}.") from None
