"""Lines of text files end at line feeds, and nowhere else."""

import json

import pytest

from vlad.utils.text_lines import split_lines


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        ("a", ["a"]),
        ("a\n", ["a"]),
        ("a\r\nb\r\n", ["a", "b"]),
        ("a\n\nb", ["a", "", "b"]),
        ("\n", [""]),
    ],
)
def test_lines_end_at_line_feeds(text: str, lines: list[str]) -> None:
    assert split_lines(text) == lines


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"])
def test_json_strings_keep_their_separators(separator: str) -> None:
    rows = [{"prompt": f"a{separator}b"}, {"prompt": "c"}]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    assert [json.loads(line) for line in split_lines(text)] == rows
