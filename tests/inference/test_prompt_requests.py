"""Prompts, seeds and layouts from the command line, files and standard input."""

import io
import json
import sys
from pathlib import Path

import pytest

from vlad.inference.options import parse_seeds
from vlad.inference.prompt_requests import PromptRequest, RejectedPrompt, read_prompts
from vlad.utils.errors import UserError


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("7", (7,)),
        ("0-3", (0, 1, 2, 3)),
        ("5,1, 8-9", (5, 1, 8, 9)),
        ("2,2,1-2", (2, 1)),
        (str(2**63 - 1), (2**63 - 1,)),
    ],
)
def test_seeds_are_parsed(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    "text", ["", "-1", "3-1", "a", "1,,2", "1.5", str(2**63), "0-1000000000", "0-60000,70000-120000"]
)
def test_invalid_seeds_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="seeds"):
        parse_seeds(text)


def test_a_text_file_has_a_prompt_on_each_line(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\ufeffone\n\n  two  \n\n", encoding="utf-8")
    found = read_prompts(["zero"], [str(tmp_path / "prompts.txt")])
    assert [(request.prompt.text, request.place) for request in found if isinstance(request, PromptRequest)] == [
        ("zero", "--prompt"),
        ("one", f"{tmp_path / 'prompts.txt'}, line 1"),
        ("two", f"{tmp_path / 'prompts.txt'}, line 3"),
    ]
    # An empty line between two prompts is rejected, those at the end are ignored.
    (empty,) = [request for request in found if isinstance(request, RejectedPrompt)]
    assert empty.place.endswith("line 2") and "is empty" in empty.reason


def test_a_jsonl_file_gives_seeds_and_layouts_and_its_bad_lines_are_rejected(tmp_path: Path) -> None:
    layout = {"lines": [{"text": "HI", "box": [0.1, 0.1, 0.9, 0.4]}]}
    (tmp_path / "hi.json").write_text(json.dumps(layout), encoding="utf-8")
    lines = [
        {"prompt": "one", "seed": 4, "layout": "hi.json"},
        {"prompt": "two", "seeds": "0-2", "layout": layout},
        {"prompt": "three", "seeds": [1, 9]},
        {"prompt": "four"},
        {"promt": "five"},
        {"prompt": "six", "sed": 1},
        {"prompt": "seven", "seed": -1},
        {"prompt": "eight", "layout": "none.json"},
        {"prompt": "nine", "layout": {"lines": [{"text": "HI", "box": [0.1, 0.1, 1.9, 0.4]}]}},
        {"prompt": "ten", "layout": {"lines": [{"txt": "HI"}]}},
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"prompt": \n', encoding="utf-8")
    found = read_prompts([], [str(path)])
    good = [request for request in found if isinstance(request, PromptRequest)]
    assert [request.seeds for request in good] == [(4,), (0, 1, 2), (1, 9), None]
    assert [request.layout is not None for request in good] == [True, True, False, False]
    assert good[0].layout == good[1].layout
    bad = [rejected for rejected in found if isinstance(rejected, RejectedPrompt)]
    assert [rejected.place.rsplit(" ", 1)[1] for rejected in bad] == ["5", "6", "7", "8", "9", "10", "11"]
    for rejected, message in zip(
        bad,
        (
            "write one",
            "Did you mean 'seed'?",
            "seeds",
            "none.json",
            "outside",
            "Did you mean 'text'?",
            "write an object",
        ),
        strict=True,
    ):
        assert message in rejected.reason
        assert not rejected.reason.endswith(("?.", ".."))


def test_standard_input_is_text_or_jsonl(monkeypatch: pytest.MonkeyPatch) -> None:
    for said, seeds in (("a sign\n", None), ('\n{"prompt": "a sign", "seed": 3}\n', (3,))):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(said.encode())))
        (request,) = read_prompts([], ["-"])
        assert isinstance(request, PromptRequest)
        assert (request.prompt.text, request.seeds) == ("a sign", seeds)
        assert request.place.startswith("standard input, line ")


def test_no_prompt_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    for prompts, files, said in (
        ([], [], "--prompt"),
        ([], [str(tmp_path / "empty.txt")], "holds no prompt"),
        ([], [str(tmp_path / "latin.txt")], "not UTF-8"),
        ([], [str(tmp_path / "none.txt")], "no prompt file"),
    ):
        with pytest.raises(UserError, match=said):
            read_prompts(prompts, files)
