"""Templates that a text is put into before it is read; the model's state is taken where the template ends.

Sources: PromptEOL, https://arxiv.org/abs/2307.16645; one-word templates for several aspects, and their mean, after
MetaEOL, https://arxiv.org/abs/2402.18458; the text given twice, https://arxiv.org/abs/2402.15449.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ssmoe_embed.common.choices import unknown

_PLACE = "{text}"
_ENDINGS = (".", "?", "!", '"', "'")
_INSTRUCTED = "<|user|>\n{instruction}\n<|embed|>\n"
"""How the releases of MoEE and SSMoE put a task before a text."""


@dataclass(frozen=True)
class Template:
    """What stands around a text.

    Attributes:
        pattern: The template, with `{text}` wherever the text goes, once or more often.
        quoted: The text stands in double quotes, so its own become single ones, underscores become spaces and it gets
            a full stop if it ends without punctuation, as the paper's release does; an empty text stays empty.
    """

    pattern: str = _PLACE
    quoted: bool = False

    def clean(self, text: str) -> str:
        """The text as it is put into the template."""
        if not self.quoted:
            return text
        text = text.replace('"', "'").replace("_", " ")
        return text if not text or text.endswith(_ENDINGS) else f"{text}."

    def instructed(self, instruction: str) -> Template:
        """The template with a task in words before the text, where the text's own first word would be."""
        before = _INSTRUCTED.replace("{instruction}", instruction)
        if self.quoted:
            before = before.replace('"', "'").replace("_", " ")
        return replace(self, pattern=self.pattern.replace(_PLACE, before + _PLACE))

    def wrap(self, text: str) -> str:
        """The template with a cleaned text in it."""
        return self.pattern.replace(_PLACE, text)

    @property
    def repeats(self) -> int:
        """How often the text stands in it."""
        return self.pattern.count(_PLACE)


def _one_word(aspect: str) -> Template:
    """A template that asks for one aspect of the text in one word."""
    return Template(f'The {aspect} of this sentence : "{_PLACE}" in one word is:"', quoted=True)


_ASPECTS = {
    "style": _one_word("style"),
    "sentiment": _one_word("sentiment"),
    "tone": _one_word("tone"),
    "intent": _one_word("intent"),
    "complexity": _one_word("complexity"),
    "subjectivity": _one_word("subjectivity"),
    "topic": _one_word("topic"),
    "language-style": _one_word("language style"),
    "grammar-structure": _one_word("grammatical structure"),
}
TEMPLATES = {
    "none": Template(),
    "prompteol": Template(f'This sentence : "{_PLACE}" means in one word:"', quoted=True),
    "release-none": Template(f'"{_PLACE}"', quoted=True),
    "echo": Template(f"Rewrite the sentence: {_PLACE}\nThe rewritten sentence: {_PLACE}"),
    **_ASPECTS,
}
"""The templates that have a name. `echo` is read at the end of the second copy, where the model has seen all of the text."""
ENSEMBLES = {"metaeol": tuple(_ASPECTS.values())}
"""Names of several templates, whose features are averaged at the price of as many forward passes."""


def templates(prompt: str, instruction: str = "") -> tuple[Template, ...]:
    """The templates of that name, or the custom one that `prompt` spells out.

    Args:
        prompt: A name from `TEMPLATES` or `ENSEMBLES`, or a string that holds `{text}`.
        instruction: A task in words, put before the text inside each template; empty for none.

    Returns:
        One template; several for an ensemble.

    Raises:
        ValueError: `prompt` is neither, or `instruction` is no string or holds `{text}`.
    """
    if not isinstance(instruction, str) or _PLACE in instruction:
        raise ValueError(
            f"instruction={instruction!r} is not a sentence to put before every text; leave {_PLACE} to the prompt."
        )
    found = _named(prompt)
    return tuple(template.instructed(instruction) for template in found) if instruction else found


def _named(prompt: str) -> tuple[Template, ...]:
    """The templates without an instruction."""
    if isinstance(prompt, str) and prompt in ENSEMBLES:
        return ENSEMBLES[prompt]
    if isinstance(prompt, str) and prompt in TEMPLATES:
        return (TEMPLATES[prompt],)
    if isinstance(prompt, str) and _PLACE in prompt:
        return (Template(prompt),)
    raise ValueError(
        f"{unknown('prompt', prompt, [*TEMPLATES, *ENSEMBLES])} Or pass a template of your own that holds {_PLACE}, such "
        f"as 'Topic of \"{_PLACE}\":'."
    )
