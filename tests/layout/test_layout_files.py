"""Layout files: what is written is read back, and mistakes are reported with line and field."""

import json

import pytest

from vlad.layout.layout_files import layout_from_json, layout_to_json, read_layout, write_layout
from vlad.layout.polygons import box_polygon
from vlad.types import Layout, TextLine
from vlad.utils.errors import UserError

HOUSE = {"text": "HOUSE", "box": [0.1, 0.4, 0.9, 0.6]}


def test_a_written_layout_is_read_back(tmp_path):
    layout = Layout(
        (
            TextLine("CAFÉ", ((0.1, 0.2), (0.7, 0.1), (0.8, 0.4), (0.15, 0.5)), "fr", "serif", "#aa0000", True, 0.75),
            TextLine("?", box_polygon(0, 0.5, 1, 1), valid=False),
        )
    )
    write_layout(layout, tmp_path / "layout.json")
    assert read_layout(tmp_path / "layout.json") == layout


def test_unset_fields_are_left_out():
    layout = Layout((TextLine("A", box_polygon(0, 0, 1, 1)),))
    assert layout_to_json(layout) == {"lines": [{"text": "A", "polygon": [[0, 0], [1, 0], [1, 1], [0, 1]]}]}


def test_a_box_stands_for_its_polygon():
    assert layout_from_json({"lines": [HOUSE]}).lines[0].polygon == box_polygon(0.1, 0.4, 0.9, 0.6)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON: line 1, column 2"),
        ("[]", 'a list "lines"'),
        (json.dumps({"lines": []}), "holds no text"),
        (json.dumps({"lines": [{"text": "A"}]}), 'neither "polygon" nor "box"'),
        (json.dumps({"lines": [HOUSE, {"box": [0, 0, 1, 1]}]}), "line 2 has no text"),
        (json.dumps({"lines": [HOUSE, {"text": " ", "box": [0, 0, 1, 1]}]}), "line 2 has no text"),
        (json.dumps({"lines": [HOUSE | {"color": "red"}]}), "Did you mean 'colour'?"),
        (json.dumps({"lines": [HOUSE | {"font": 3}]}), "font must be a string"),
        (json.dumps({"lines": [HOUSE | {"confidence": "high"}]}), "line 1: confidence must be a number"),
        (json.dumps({"lines": [HOUSE | {"box": [0, 0, 1]}]}), "a box is [left, top, right, bottom]"),
        (json.dumps({"lines": [HOUSE | {"box": [10**400, 0, 1, 1]}]}), "a box is [left, top, right, bottom]"),
        ('{"lines": [{"text": "A", "polygon": [[0, 0], [NaN, 0], [1, 1], [0, 1]]}]}', "four finite points"),
        (json.dumps({"lines": [{"text": "A", "polygon": [[0, 0], [1, 0], [1, 1]]}]}), "at least four"),
        (json.dumps({"lines": [HOUSE | {"box": [0.5, 0.5, 0.5, 0.9]}]}), "covers no area"),
        (json.dumps({"lines": [HOUSE | {"box": [0.9, 0.2, 0.3, 0.4]}]}), "covers no area"),
        (json.dumps({"lines": [HOUSE | {"box": [10, 20, 300, 60]}]}), "outside the image"),
        (json.dumps({"lines": [HOUSE | {"valid": "no"}]}), "line 1: valid must be true or false"),
        (json.dumps({"lines": [{"text": "A", "polygon": [[0, 0]] * 9_000}]}), "line 1: its polygon has 9000 points"),
    ],
)
def test_mistakes_are_reported(tmp_path, content, said):
    path = tmp_path / "layout.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_layout(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert not str(caught.value).endswith(("?.", ".."))


def test_a_missing_file_and_one_that_is_not_text_are_reported(tmp_path):
    with pytest.raises(UserError, match="no layout file"):
        read_layout(tmp_path / "none.json")
    (tmp_path / "image.json").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        read_layout(tmp_path / "image.json")


def test_a_written_layout_has_one_line_of_text_per_line(tmp_path):
    lines = tuple(
        TextLine(text, box_polygon(0.1, top, 0.9, top + 0.25)) for text, top in (("Straße", 0.25), ("“2”", 0.5))
    )
    path = tmp_path / "layout.json"
    write_layout(Layout(lines), path)
    assert [number for number, line in enumerate(path.read_text("utf-8").splitlines()) if '"text"' in line] == [1, 2]
    assert read_layout(path) == Layout(lines)
    write_layout(Layout(()), path)
    assert json.loads(path.read_text("utf-8")) == {"lines": []}
