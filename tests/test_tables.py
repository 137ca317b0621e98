"""Tables fit their terminal, keep what matters, and say what they leave out."""

import random

import pytest
from rich.cells import cell_len

from cnnlab.tables import GAP, Column, fit
from cnnlab.wording import format_metric, format_value, shorten

LETTERS = "abcdefghij 0123456789-_/=猫犬é"


def made_up_columns(random_: random.Random) -> list[Column]:
    def text(longest: int) -> str:
        return "".join(random_.choices(LETTERS, k=random_.randint(0, longest)))

    rows = random_.randint(0, 5)
    return [
        Column(
            f"c{number}" + "x" * random_.randint(0, 12),
            [text(random_.choice([3, 10, 200])) for _ in range(rows)],
            number=random_.random() < 0.3,
        )
        for number in range(random_.randint(1, 9))
    ]


@pytest.mark.parametrize("seed", range(50))
def test_tables_fit_and_name_what_is_left_out(seed: int):
    columns = made_up_columns(random.Random(seed))
    for width in (20, 60, 80, 120, 400):
        shown, dropped = fit(columns, width)
        assert len(shown) + len(dropped) == len(columns)
        total = sum(column.width for column in shown) + GAP * (len(shown) - 1)
        assert total <= width or len(shown) == 1
        assert columns[0].name not in dropped, "the first column stays"
        assert {column.name for column in columns} >= set(dropped)
        for column in shown:
            (original,) = [other for other in columns if shorten(other.name, len(column.name)) == column.name][:1]
            if column.number and len(shown) > 1:
                assert list(column.cells) == list(original.cells), "no digit of a number is left out"
    needed = sum(column.width for column in columns) + GAP * (len(columns) - 1)
    assert fit(columns, needed) == (columns, []), "what fits is left alone"


def test_a_long_cell_hides_no_column():
    columns = [Column("run", ["a"]), Column("value", ["0.5"], number=True), Column("changes", ["x" * 500])]
    shown, dropped = fit(columns, 40)
    assert [column.name for column in shown] == ["run", "value", "changes"]
    assert not dropped


@pytest.mark.parametrize("text", ["Golden_Retriever_of_the_north_1", "猫" * 30, "short", ""])
@pytest.mark.parametrize("width", [1, 2, 5, 12, 31])
def test_texts_are_shortened_in_the_middle(text: str, width: int):
    short = shorten(text, width)
    assert cell_len(short) <= width
    if cell_len(text) <= width:
        assert short == text
    elif width >= 5:
        assert "…" in short
        assert short[0] == text[0]
        assert short[-1] == text[-1], "names often differ in their ends"


def test_values_are_read_with_six_digits_and_shares_in_per_cent():
    assert format_value(3e-5) == "3e-05"
    assert format_value(0.1 + 0.2) == "0.3"
    assert format_value(123456.7) == "123457"
    assert format_value(True) == "true"
    assert format_value(None) == "–"
    assert format_metric("val/accuracy", 0.96721) == "96.72%"
    assert format_metric("macro_f1", 1.0) == "100.00%"
    assert format_metric("test/loss", 3.14159265e-5) == "3.142e-05"
