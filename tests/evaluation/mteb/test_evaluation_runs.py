"""What a run is called and which settings it has."""

import itertools

import pytest

from ssmoe_embed.embedding.settings import EmbeddingSettings
from ssmoe_embed.evaluation.mteb.runs import Run, grid, parse_settings, prompt_label
from ssmoe_embed.evaluation.tasks.corruption import Corruption

OWN = EmbeddingSettings(method="moee", routing_signal="weights", prompt="prompteol", alpha=0.7)


def test_the_model_as_it_is_on_clean_texts_is_no_experiment():
    assert Run().experiment(OWN) is None
    assert Run(method="moee", prompt="prompteol", overrides={"alpha": 0.7}).experiment(OWN) is None


def test_an_experiment_names_method_prompt_and_every_deviation():
    run = Run(method="ssmoe", corruption=Corruption(rate=0.1), overrides={"calibration": "whiten"})
    assert run.experiment(OWN) == {
        "method": "ssmoe",
        "prompt": "prompteol",
        "routing_signal": None,
        "calibration": "whiten",
        "corruption": "replace@0.1",
    }


def test_another_method_does_not_inherit_the_routing_signal_of_the_saved_one():
    assert Run(method="router").settings(OWN).routing_signal is None
    assert Run(method="paper").settings(OWN).routing_signal == "logits"
    assert Run(overrides={"alpha": 0.1}).settings(OWN).routing_signal == "weights"


def test_a_grid_has_every_combination_once_corruption_first():
    runs = grid(["router", "smoe"], ["none", "prompteol"], ["none", "clean", "insert@0.2"])
    assert [(run.corruption_name, run.prompt, run.method) for run in runs] == list(
        itertools.product(["clean", "insert@0.2"], ["none", "prompteol"], ["router", "smoe"])
    )


def test_the_ladder_holds_clean_texts_and_rising_rates_of_both_operations():
    names = [run.corruption_name for run in grid(corruptions=["ladder"])]
    assert names[0] == "clean"
    for operation in ("replace", "insert"):
        rates = [float(name.partition("@")[2]) for name in names if name.startswith(operation)]
        assert len(rates) > 3
        assert rates == sorted(rates)


def test_clean_training_texts_make_another_corruption():
    [run] = grid(corruptions=["replace@0.1"], train_corrupt=False)
    assert run.corruption == Corruption(rate=0.1, train_split=False)
    assert run.corruption_name != Corruption(rate=0.1).name


def test_prompts_of_ones_own_that_differ_in_a_sign_only_have_names_of_their_own():
    labels = [prompt_label(prompt) for prompt in ("{text}?", "{text}*", "{text}|", "none", "metaeol")]
    assert len(set(labels)) == len(labels)
    assert labels[3:] == ["none", "metaeol"]
    assert all(set('<>:"|?*\\/\n').isdisjoint(label) for label in labels)


def test_settings_are_read_by_the_type_of_their_field():
    pairs = ["hidden_layer=-2", "alpha=1", "calibration=none", "routing_signal=none", "prompt=a={text}"]
    assert parse_settings(pairs) == {
        "hidden_layer": -2,
        "alpha": 1.0,
        "calibration": "none",
        "routing_signal": None,
        "prompt": "a={text}",
    }


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("alpha", "name=value"),
        ("alhpa=1", "Did you mean 'alpha'"),
        ("hidden_layer=last", "not a whole number"),
        ("alpha=high", r"alpha='high' is not a number; write it like alpha=0.5"),
        ("top_c=5", r"top_c is fixed when a model is built; .*--vary top_c=5"),
    ],
)
def test_a_setting_that_cannot_be_read_is_refused(pair, message):
    with pytest.raises(ValueError, match=message):
        parse_settings([pair])


def test_a_setting_that_is_given_twice_is_refused():
    with pytest.raises(ValueError, match=r"alpha is given twice, as 0\.1 and as '0\.2'"):
        parse_settings(["alpha=0.1", "alpha=0.2"])
