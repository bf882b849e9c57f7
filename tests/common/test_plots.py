"""The house style of plots."""

import matplotlib

from ssmoe_embed.common.plots import house_style, label_axes, legend_below, line_style, new_figure, png, svg


@house_style
def drawn(save):
    figure, panels = new_figure(4, 3, 1, 2)
    for axes in panels.flat:
        for place in range(3):
            axes.plot([1, 2], [place, 3], label=f"line {place}", **line_style(place))
        label_axes(axes, "title", "x", "y")
    legend_below(figure)
    return save(figure), figure


def test_the_same_picture_gives_the_same_bytes():
    for save in (png, svg):
        assert drawn(save)[0] == drawn(save)[0]
    assert b"<dc:date>" not in drawn(svg)[0]


def test_the_style_is_that_of_this_package_only_while_it_draws():
    before = dict(matplotlib.rcParams)
    _, figure = drawn(png)
    assert figure.axes[0].title.get_fontsize() == 9
    assert dict(matplotlib.rcParams) == before
    assert len(figure.legends) == 1
    assert len(figure.legends[0].texts) == 3  # what both panels show is named once


def test_no_two_of_many_lines_look_alike():
    styles = {tuple(line_style(place).values()) for place in range(32)}
    assert len(styles) == 32
