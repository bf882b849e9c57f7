"""Templates that a text is put into before it is read; the model's state is taken where the template ends.

Sources: PromptEOL, https://arxiv.org/abs/2307.16645; one-word templates for several aspects after MetaEOL,
https://arxiv.org/abs/2402.18458.
"""

from __future__ import annotations

from dataclasses import dataclass

from ssmoe_embed.choices import unknown

_PLACE = "{text}"
_ENDINGS = (".", "?", "!", '"', "'")


@dataclass(frozen=True)
class Template:
    """What stands before and after a text.

    Attributes:
        prefix: Before it.
        suffix: After it.
        quoted: The text stands in double quotes, so its own become single ones, underscores become spaces and it gets
            a full stop if it ends without punctuation, as the paper's release does.
    """

    prefix: str = ""
    suffix: str = ""
    quoted: bool = False

    def clean(self, text: str) -> str:
        """The text as it is put into the template."""
        if not self.quoted:
            return text
        text = text.replace('"', "'").replace("_", " ")
        return text if text.endswith(_ENDINGS) else f"{text}."


def _one_word(aspect: str) -> Template:
    """A template that asks for one aspect of the text in one word."""
    return Template(f'The {aspect} of this sentence : "', '" in one word is:"', quoted=True)


TEMPLATES = {
    "none": Template(),
    "prompteol": Template('This sentence : "', '" means in one word:"', quoted=True),
    "release-none": Template('"', '"', quoted=True),
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
"""The templates that have a name."""


def template(prompt: str) -> Template:
    """The template of that name, or the custom one that `prompt` spells out.

    Args:
        prompt: A name from `TEMPLATES`, or a string that holds `{text}` once.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(prompt, str) and prompt in TEMPLATES:
        return TEMPLATES[prompt]
    if isinstance(prompt, str) and prompt.count(_PLACE) == 1:
        prefix, suffix = prompt.split(_PLACE)
        return Template(prefix, suffix)
    if isinstance(prompt, str) and prompt.count(_PLACE) > 1:
        raise ValueError(f"prompt={prompt!r} holds {_PLACE} more than once; a template takes the text at one place.")
    raise ValueError(
        f"{unknown('prompt', prompt, TEMPLATES)} Or pass a template of your own that holds {_PLACE}, such as "
        f"'Topic of \"{_PLACE}\":'."
    )
