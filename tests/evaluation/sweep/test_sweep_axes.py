"""What a sweep varies: settings, their values, and every combination."""

import pytest

from ssmoe_embed.evaluation.sweep.running import Axis, Point, points


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("alpha=0,0.25,1", (0.0, 0.25, 1.0)),
        ("top_c=5,0.05", (5, 0.05)),
        ("hidden_layer=-1,-2", (-1, -2)),
        ("calibration=none,whiten,none", ("none", "whiten")),
        ("prompt=none,echo,metaeol", ("none", "echo", "metaeol")),
        ("routing_signal=none,logits", (None, "logits")),
        ("top_c=1,1.0", (1, 1.0)),
    ],
)
def test_an_axis_reads_its_values_as_the_setting_has_them(text, values):
    read = Axis.parse(text).values
    assert [(type(value), value) for value in read] == [(type(value), value) for value in values]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alpha", r"not of the form setting=value"),
        ("alpah=1", r"setting='alpah' is not known.*Did you mean 'alpha'"),
        ("alpha=2", r"alpha=2.0 is outside"),
        ("alpha=much", r"alpha='much' is not a number"),
        ("hidden_layer=1.5", r"hidden_layer='1.5' is not a whole number"),
        ("top_c=0", r"top_c=0 keeps no eigenvector"),
        ("calibration=white", r"calibration='white' is not known.*Did you mean 'whiten'"),
        ("scale=big", r"scale='big' is not known"),
    ],
)
def test_a_wrong_axis_is_refused_before_anything_is_loaded(text, message):
    with pytest.raises(ValueError, match=message):
        Axis.parse(text)


def test_points_are_all_combinations_in_order():
    made = points([Axis("top_c", (5, 50)), Axis("alpha", (0.0, 1.0))])
    assert [point.label for point in made] == [
        "top_c=5, alpha=0.0",
        "top_c=5, alpha=1.0",
        "top_c=50, alpha=0.0",
        "top_c=50, alpha=1.0",
    ]
    assert (made[1].spectral, made[1].embedding) == ({"top_c": 5}, {"alpha": 1.0})


def test_no_axis_and_one_twice_are_refused():
    with pytest.raises(ValueError, match="at least one setting"):
        points([])
    with pytest.raises(ValueError, match="alpha is varied twice"):
        points([Axis("alpha", (0.0,)), Axis("alpha", (1.0,))])


def test_a_point_names_a_prompt_of_ones_own_shortly():
    assert Point((("prompt", 'A long "{text}" template'),)).label.startswith("prompt=custom-")
