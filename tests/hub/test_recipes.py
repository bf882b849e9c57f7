"""The names that users type: complete, consistent, and settings that the package takes."""

from datetime import date

import pytest

from ssmoe_embed.embedding.settings import EmbeddingSettings
from ssmoe_embed.hub.names import RECIPES, recipe
from ssmoe_embed.spectral.settings import SpectralSettings

NAMES = {
    "ssmoe/olmoe-7b",
    "ssmoe/olmoe-7b-instruct",
    "ssmoe/qwen1.5-moe",
    "ssmoe/deepseek-moe-16b",
    "ssmoe/phi-tiny-moe",
    "ssmoe/qwen3-30b-a3b",
    "ssmoe/qwen3-next-80b",
    "ssmoe/gpt-oss-20b",
    "ssmoe/gpt-oss-120b",
    "ssmoe/ernie-4.5-21b",
    "ssmoe/mixtral-8x7b",
    "ssmoe/gemma-4-26b",
    "ssmoe/nemotron-3-nano",
    "ssmoe/glm-4.7-flash",
    "ssmoe/qwen3.5-35b-a3b",
    "ssmoe/granite-4-tiny",
    "ssmoe/lfm2-8b-a1b",
}


def test_every_promised_name_has_a_recipe_with_a_base_of_its_own():
    assert set(RECIPES) >= NAMES
    bases = [chosen.base for chosen in RECIPES.values()]
    assert len(set(bases)) == len(bases)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipes_settings_are_settings_of_the_package(name):
    settings = dict(recipe(name).settings)
    spectral = {key: settings.pop(key) for key in SpectralSettings.__dataclass_fields__ if key in settings}
    SpectralSettings(**spectral)
    chosen = EmbeddingSettings.of(**settings)
    assert (chosen.method, chosen.prompt) == ("ssmoe", "prompteol")
    assert 0.5 <= chosen.alpha <= 0.9  # the paper's best range


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_says_what_a_model_card_and_a_leaderboard_ask_for(name):
    chosen = recipe(name)
    assert date.fromisoformat(chosen.released) < date.today()
    assert chosen.license == chosen.license.lower() != ""
    for language in chosen.languages:
        code, script = language.split("-")
        assert len(code) == 3
        assert len(script) == 4


def test_an_unknown_name_is_refused_with_all_that_there_are():
    with pytest.raises(ValueError, match="ssmoe/olmo-7b") as refusal:
        recipe("ssmoe/olmo-7b")
    assert all(name in str(refusal.value) for name in RECIPES)
