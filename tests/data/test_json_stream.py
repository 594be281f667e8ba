"""Streaming lists of JSON objects: the same as `json`, in little memory, with errors by line."""

import json
import re
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlad.data.importers import json_stream
from vlad.data.importers.json_stream import read_header, stream_objects
from vlad.data.importers.sources import UnusableEntry
from vlad.utils.errors import UserError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.lists(st.dictionaries(st.text(max_size=5), VALUES, max_size=4), max_size=5)


def parsed(path, list_name=None):
    return [item.parse() for item in stream_objects(path, list_name)]


@given(OBJECTS, st.sampled_from([None, 0, 2]), st.booleans(), st.integers(1, 40))
def test_the_stream_equals_what_json_parses(tmp_path_factory, objects, indent, ascii_only, chunk_bytes):
    """Wherever the chunks of the file end: inside of a string, an escape, a letter's bytes, a number."""
    path = tmp_path_factory.mktemp("json") / "a.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "CHUNK_BYTES", chunk_bytes)
        text = json.dumps(objects, indent=indent, ensure_ascii=ascii_only)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        assert parsed(path) == objects
        header = {"data_root": "x", "n": [1, {"data_list": 2}], "end": -1.5e3}
        whole = {**header, "data_list": objects, "later": {}}
        path.write_bytes(json.dumps(whole, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass"))
        assert parsed(path, "data_list") == objects
        assert read_header(path, "data_list") == header


def test_entries_have_their_number_line_and_position(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('\ufeff[\n {"a":\n 1},\n\n {"b": 2}]\n', encoding="utf-8")
    items = list(stream_objects(path))
    assert [(item.number, item.line) for item in items] == [(1, 2), (2, 5)]
    assert 0 < items[0].share < items[1].share <= 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: the file ends here"),
        ("{}", "line 1: expected a list of entries"),
        ('[\n{"a": 1},\n', "line 3: the file ends here"),
        ('[\n{"a": "x', "line 2: the file ends inside of entry 1"),
        ('[\n{"a": 1}\n{"b": 2}]', "line 3: expected a comma or a bracket after entry 1"),
        ('[{"a": 1},\n 5]', "line 2: entry 2 is no object"),
        ('[{"a": 1},]', "line 1: entry 2 is no object"),
        ('[{"a": ' + "[" * 40, "nested more than 32 deep"),
    ],
)
def test_invalid_json_is_reported_with_its_line(tmp_path, text, said):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(f"a.json, {said}" if said.startswith("line") else said)):
        parsed(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", 'expected an object with a list "data_list"'),
        ('{"a": 1}', 'the file has no list "data_list"'),
        ('{"data_list": 5}', 'expected a list as "data_list"'),
        ('{"a": nul, "data_list": []}', "not JSON"),
        ('{"a" 1}', "expected a colon"),
        ("{a: 1}", "expected a field's name in quotation marks"),
    ],
)
def test_a_file_without_its_list_is_named(tmp_path, text, said):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        parsed(path, "data_list")


def test_a_bad_entry_is_skipped_alone(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"a": nul}, {"a": 1}]')
    first, second = stream_objects(path)
    with pytest.raises(UnusableEntry, match="its entry is not JSON"):
        first.parse()
    assert second.parse() == {"a": 1}


def test_an_entry_that_never_ends_is_not_collected(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "MAX_OBJECT_BYTES", 1000)
    monkeypatch.setattr(json_stream, "CHUNK_BYTES", 100)
    path = tmp_path / "a.json"
    path.write_text('[{"a": "' + "x" * 5000 + '"}]')
    with pytest.raises(UserError, match="entry 1 is over 0 MB long"):
        parsed(path)


def test_a_long_file_needs_little_memory(tmp_path):
    path = tmp_path / "a.json"
    with path.open("w") as stream:
        entry = json.dumps({"img_code": "A" * 200_000, "n": [[1, 2], ["x", 0.5]]})
        stream.write("[" + ",\n".join([entry] * 200) + "]")  # 40 MB
    tracemalloc.start()
    try:
        count = sum(1 for _ in stream_objects(path))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 200
    assert peak_bytes < 8_000_000
