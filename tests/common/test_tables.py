"""One table for Markdown, CSV and the terminal."""

import csv
import io

import pytest
from rich.console import Console

from ssmoe_embed.common.tables import Report, Table, points, signed


def terminal(shown):
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(shown)
    return console.export_text()


def cells(line):
    return [cell.strip() for cell in line.strip("|").split(" | ")]


TABLE = Table(("name", "first", "second"), (("a|b", 1.5, None), ("[red]", 2, "–"), ("c", 2.0, 7)), title="Scores")


def test_markdown_csv_and_the_terminal_hold_the_same_cells():
    head, rule, *rows = TABLE.markdown().splitlines()
    assert cells(head) == ["name", "first", "second"]
    assert cells(rule) == ["---", "---:", "---:"]
    assert [cells(row) for row in rows] == [["a\\|b", "1.5", "–"], ["[red]", "2", "–"], ["c", "2.0", "7"]]
    read = list(csv.reader(io.StringIO(TABLE.csv())))
    assert read == [["name", "first", "second"], ["a|b", "1.5", ""], ["[red]", "2", "–"], ["c", "2.0", "7"]]
    text = terminal(TABLE.rich())
    assert "Scores" in text
    assert "[red]" in text  # a cell is never read as markup
    assert "a|b" in text


def test_the_best_of_a_column_is_bold_and_ties_are_all_bold():
    assert TABLE.with_best().bold == {(1, 1), (2, 1), (2, 2)}
    rows = TABLE.with_best().markdown().splitlines()[2:]
    assert [cells(row)[1] for row in rows] == ["1.5", "**2**", "**2.0**"]
    assert "*" not in TABLE.with_best().csv()


def test_columns_of_text_that_are_empty_everywhere_go_and_bold_cells_stay_in_their_columns():
    table = Table(("a", "b", "x"), (("", "one", 1), ("", "two", 2)), texts=2).with_best().without_empty_columns()
    assert (table.columns, table.rows, table.texts) == (("b", "x"), (("one", 1), ("two", 2)), 1)
    assert table.bold == {(1, 1)}


def test_a_line_break_in_a_cell_does_not_end_the_row():
    row = Table(("a",), (("one\ntwo",),)).markdown().splitlines()[-1]
    assert row == "| one<br>two |"


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="A row of 2 columns has 1 cells"):
        Table(("a", "b"), (("x",),))


def test_a_report_has_its_paragraphs_and_tables_in_order_and_notes_below_the_table():
    table = Table(("a",), (("x",),), title="Of x", notes=("A note.",))
    report = Report("Results", ("First.", table, "Last."))
    assert report.markdown() == "# Results\n\nFirst.\n\n## Of x\n\n| a |\n| --- |\n| x |\n\nA note.\n\nLast.\n"
    text = terminal(report.rich())
    places = [text.index(part) for part in ("Results", "First.", "Of x", "A note.", "Last.")]
    assert places == sorted(places)


def test_a_difference_that_rounds_to_zero_has_no_sign():
    assert [signed(value) for value in (0.04, -0.04, 1.26, -1.24)] == ["0.0", "0.0", "+1.3", "−1.2"]
    assert [points(value, 2) for value in (1.005, None)] == ["1.00", "–"]
