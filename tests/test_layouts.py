"""The table that compares layouts: its order, and what it counts."""

from __future__ import annotations

from layouts import Row, table


def test_the_slowest_layer_is_first_and_those_above_the_limit_are_counted() -> None:
    spaces = ("dense_direct", "row_lanes")
    rows = [Row("even", 7.0, 7.0, 1.0, spaces), Row("slow", 5.0, 20.0, 4.0, spaces), Row("at", 10.0, 11.0, 1.1, spaces)]
    text = table(rows)
    assert [line.split()[0] for line in text.splitlines()[2:5]] == ["slow", "at", "even"]
    assert text.endswith("3 layers: geometric mean 1.64, 1 above 1.10")
