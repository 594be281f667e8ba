"""Prompt files in every benchmark's own format, and refusals of others."""

import json
from pathlib import Path

import pytest

from vlad.eval.benchmark.prompt_files import quoted, read_prompt_files
from vlad.eval.protocols.protocol import BenchmarkPrompt
from vlad.layout.polygons import box_polygon
from vlad.types import TextLine
from vlad.utils.errors import UserError


def only(path: Path, content: str) -> BenchmarkPrompt:
    path.write_text(content, encoding="utf-8")
    (prompt,) = read_prompt_files([path])
    return prompt


def test_lines_of_prompts(tmp_path: Path) -> None:
    path = tmp_path / "TMDBEval500.txt"
    path.write_text("\ufeffA poster 'Don't Panic'\n\nA cat\n", encoding="utf-8")
    assert read_prompt_files([path]) == [
        BenchmarkPrompt("0", "A poster 'Don't Panic'", ("Don't Panic",)),
        BenchmarkPrompt("1", "A cat", ()),
    ]


def test_a_list_of_words_becomes_simplebench_prompts(tmp_path: Path) -> None:
    prompt = only(tmp_path / "words.txt", "assembly\n")
    assert (prompt.text, prompt.strings) == ('A sign that says "assembly".', ("assembly",))


def test_prompts_of_a_script_without_spaces_are_no_word_list(tmp_path: Path) -> None:
    prompt = only(tmp_path / "zh.txt", "一个写着“你好”的牌子\n")
    assert (prompt.text, prompt.strings) == ("一个写着“你好”的牌子", ("你好",))


def test_a_table_with_a_prompt_column(tmp_path: Path) -> None:
    row = 'Prompt\tCategory\nA sign that says "Very Deep".\tOutdoor Scenes\n'
    prompt = only(tmp_path / "parti.tsv", row.replace('"', '""').replace("A sign", '"A sign').replace(".\t", '."\t'))
    assert (prompt.strings, prompt.subset) == (("Very Deep",), "Outdoor Scenes")


def test_anytext_json(tmp_path: Path) -> None:
    polygon = [[128, 256], [128, 128], [384, 128], [384, 256]]  # begins at the bottom left, as real ones do
    annotations = [
        {"polygon": polygon, "text": "SALE", "language": "Latin", "valid": True},
        {"polygon": polygon, "text": "###", "valid": False},
    ]
    record = {"img_name": "a/001.jpg", "caption": "a shop", "annotations": annotations}
    prompt = only(tmp_path / "test1k.json", json.dumps({"data_list": [record]}))
    assert prompt.key == "001"
    assert prompt.text == 'a shop, that reads "SALE"'
    assert prompt.strings == ("SALE",)
    assert prompt.lines[0] == TextLine("SALE", box_polygon(0.25, 0.25, 0.75, 0.5), "Latin")
    assert [line.valid for line in prompt.lines] == [True, False]


def test_cvtg_json(tmp_path: Path) -> None:
    record = {"index": 7, "prompt": "A 'Big' sign", "carrier_list": ["sign"], "sentence_list": ["Big Sale"]}
    prompt = only(tmp_path / "2.json", json.dumps({"data_list": [record]}))
    assert (prompt.key, prompt.strings) == ("7", ("Big Sale",))


def test_textatlas_json(tmp_path: Path) -> None:
    record = {"image_path": "out/12.png", "prompt": "a page", "raw_text": "Lorem ipsum", "original_image_path": "r.png"}
    prompt = only(tmp_path / "atlas.json", json.dumps([record]))
    assert (prompt.key, prompt.strings, prompt.reference) == ("12", ("Lorem ipsum",), str(tmp_path / "r.png"))


def test_longtext_jsonl(tmp_path: Path) -> None:
    record = {"prompt_id": 3, "prompt": "a board", "text": ["One", "Two"], "category": "signboards"}
    prompt = only(tmp_path / "text_prompts.jsonl", json.dumps(record) + "\n\n")
    assert (prompt.key, prompt.strings, prompt.subset) == ("3", ("One", "Two"), "signboards")
    # U+2028 parts lines of text, and none of JSON.
    assert only(tmp_path / "a.jsonl", '{"prompt": "a\u2028b"}\n').text == "a\u2028b"


def test_files_of_one_name_are_subsets_named_after_their_folders(tmp_path: Path) -> None:
    record = json.dumps({"data_list": [{"index": 7, "prompt": "A 'Big' sign"}]})
    for name in ("CVTG", "CVTG-Style"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "2.json").write_text(record, encoding="utf-8")
    found = read_prompt_files(sorted(tmp_path.glob("*/2.json")))
    assert [(prompt.key, prompt.subset) for prompt in found] == [
        ("CVTG-2-7", "CVTG-2"),
        ("CVTG-Style-2-7", "CVTG-Style-2"),
    ]


def test_several_files_are_subsets(tmp_path: Path) -> None:
    for name in ("DrawBenchText", "TMDBEval500"):
        (tmp_path / f"{name}.txt").write_text("A 'B'\n", encoding="utf-8")
    found = read_prompt_files(sorted(tmp_path.glob("*.txt")))
    assert [(prompt.key, prompt.subset) for prompt in found] == [
        ("DrawBenchText-0", "DrawBenchText"),
        ("TMDBEval500-0", "TMDBEval500"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{"images": []}', 'neither a list nor an object with a "data_list".* Accepted: a text file'),
        ("a.json", '[{"caption": "x"}]', r"entry 1: there is no string \"prompt\" \(it has 'caption'\)"),
        ("a.json", "[1]", "entry 1 is no object"),
        ("a.json", "{", "is not JSON: line 1, column 2"),
        ("a.json", '{"data_list": [{"caption": "x", "annotations": [{"text": "a"}]}]}', 'field "polygon" is no list'),
        (
            "a.json",
            '{"data_list": [{"caption": "x", "annotations": []}, {"caption": "y"}]}',
            "entry 2: .*is no list of",
        ),
        ("a.jsonl", '{"prompt": "a"}\n\n{"prompt": ', "line 3 is not JSON: column 12.* Accepted: a text file"),
        ("a.csv", "prompt\n" + "x" * 200_000, "in no known format: field larger than"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": 3}', "line 2: there is no string"),
        ("a.jsonl", '{"prompt": "a", "text": 3}', 'line 1: "text" is neither a string nor a list'),
        ("a.jsonl", '{"prompt": "a", "lines": [{"text": "x"}]}', 'line 1: line 1 has neither "polygon" nor "box"'),
        ("a.jsonl", '{"id": 1, "prompt": "a"}\n{"id": 1, "prompt": "b"}', "Two prompts have the same id '1'"),
        ("a.tsv", "a\tb\n1\t2", "no column is named prompt or caption"),
        ("a.txt", "\n \n", "holds no prompt"),
    ],
)
def test_unknown_formats_are_refused_with_the_known_ones(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        only(tmp_path / name, content)


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no prompt file"):
        read_prompt_files([tmp_path / "none.txt"])
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        read_prompt_files([tmp_path / "a.txt"])


def test_a_quoted_string_in_several_lines_is_one_target() -> None:
    assert quoted('a sign that says "HELLO\nNEW\\nWORLD"') == ("HELLO NEW WORLD",)
