"""A task that a person has named may have a long title: it is broken into lines, not cut off."""

from __future__ import annotations

from kdsuite.report import drawing


def test_a_long_title_of_a_panel_stands_in_lines() -> None:
    with drawing.styled():
        target, [(axes,)] = drawing.canvas("any", "Any", "About it.", [1.5])
        axes.set(title="Customer questions of a bank, all of them, in their own words $x_1$")
        drawing.for_page(target)
    lines = axes.get_title("left").split("\n")
    assert len(lines) == 2 and max(map(len, lines)) <= 40
