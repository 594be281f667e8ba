"""Layouts from `--line` options and planner files, and the mistakes reported."""

from pathlib import Path

import pytest

from vlad.layout.planner_lines import parse_line_options, read_planner_file
from vlad.layout.polygons import box_polygon
from vlad.utils.errors import UserError


def test_boxes_and_polygons_on_the_command_line() -> None:
    first, second = parse_line_options(["me@home@0.1,0.1,0.9,0.3", "UP@0,0,1,0.2,1,0.4,0,0.2"]).lines
    assert (first.text, first.polygon) == ("me@home", box_polygon(0.1, 0.1, 0.9, 0.3))
    assert second.polygon == ((0, 0), (1, 0.2), (1, 0.4), (0, 0.2))


@pytest.mark.parametrize(
    "said", ["SALE", "SALE@", "@0.1,0.1,0.9,0.3", "SALE@1,2,3", "SALE@a,b,c,d", "SALE@0,0,nan,1", "SALE@0,0,1,0,1"]
)
def test_a_malformed_line_option_is_reported_with_an_example(said: str) -> None:
    with pytest.raises(UserError, match="is not TEXT@LEFT,TOP,RIGHT,BOTTOM; give"):
        parse_line_options([said])


def test_a_box_needs_an_area() -> None:
    with pytest.raises(UserError, match="left must be less than right"):
        parse_line_options(["SALE@0.9,0.1,0.1,0.3"])


def test_planner_lines_are_read_on_a_grid_of_128(tmp_path: Path) -> None:
    (tmp_path / "plan.txt").write_text("big sale 16,32,112,64\n\nnow -5,70,140,96\n", encoding="utf-8")
    first, second = read_planner_file(tmp_path / "plan.txt").lines
    assert (first.text, first.polygon) == ("big sale", box_polygon(0.125, 0.25, 0.875, 0.5))
    assert second.polygon == box_polygon(0, 70 / 128, 1, 0.75)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sale 1,2,3", "line 1: 'sale 1,2,3' is not TEXT"),
        ("a 1,1,9,9\nb 9,9,1,1", "line 2: .* no area"),
        ("\n", "no text"),
    ],
)
def test_a_malformed_planner_line_is_reported(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "plan.txt").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=said):
        read_planner_file(tmp_path / "plan.txt")
