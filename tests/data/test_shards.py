"""Writing, finding and counting shards, and reading any sample by its number."""

import gzip
import io
import itertools
import json
import os
import tarfile

import numpy as np
import pytest

from vlad.data.decoding import decode_sample, encode_sample
from vlad.data.options import SyntheticOptions
from vlad.data.shards.reader import ShardReader, UnreadableSample, image_sizes, index_shards, read_members
from vlad.data.shards.writer import shard_entry, write_manifest, write_shards
from vlad.data.signs import render_sign
from vlad.data.storage.locations import expand_pattern
from vlad.utils.errors import UserError

COUNT = 50
SIGNS = [render_sign(SyntheticOptions(size_pixels=16), index) for index in range(COUNT)]


@pytest.fixture
def shards(tmp_path):
    write_shards(SIGNS, tmp_path, samples_per_shard=20)
    return tmp_path


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


# Writing


def test_what_is_written_is_read_back(shards):
    back = [decode_sample(members, key) for path in expand_pattern(str(shards)) for key, members in read_members(path)]
    assert [sample.key for sample in back] == [sign.key for sign in SIGNS]
    for sample, sign in zip(back, SIGNS, strict=True):
        assert np.array_equal(sample.image, sign.image)
        assert (sample.caption, sample.objects) == (sign.caption, sign.objects)
        assert [line.text for line in sample.layout.lines] == [line.text for line in sign.layout.lines]


def test_shards_are_numbered_and_described(shards):
    assert [path.name for path in sorted(shards.glob("*.tar"))] == ["000000.tar", "000001.tar", "000002.tar"]
    assert index_shards(str(shards)).counts == (20, 20, 10)


def test_the_same_samples_give_the_same_bytes(tmp_path):
    entries = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        entries.append(write_shards(SIGNS[:6], tmp_path / name, samples_per_shard=4))
    assert entries[0] == entries[1]
    assert (tmp_path / "a/000000.tar").read_bytes() == (tmp_path / "b/000000.tar").read_bytes()
    assert [entry["samples"] for entry in entries[0]] == [4, 2]


def test_a_shard_appears_when_it_is_whole(tmp_path, monkeypatch):
    written = itertools.count()

    def encode_until_stopped(sample, extension):
        if next(written) == 6:
            raise KeyboardInterrupt
        return encode_sample(sample, extension)

    monkeypatch.setattr("vlad.data.shards.writer.encode_sample", encode_until_stopped)
    with pytest.raises(KeyboardInterrupt):
        write_shards(SIGNS, tmp_path, samples_per_shard=4)
    assert expand_pattern(str(tmp_path)) == (str(tmp_path / "000000.tar"),)


def test_numbering_continues_from_the_first_shard(tmp_path):
    entries = write_shards(SIGNS[:2], tmp_path) + write_shards(SIGNS[2:4], tmp_path, first_shard=1)
    write_manifest(tmp_path, entries, {"made_by": "a test"})
    record = json.loads((tmp_path / "manifest.json").read_text())
    assert [entry["name"] for entry in record["shards"]] == ["000000.tar", "000001.tar"]
    assert (record["samples"], record["about"]) == (4, {"made_by": "a test"})
    assert not list(tmp_path.glob("*.partial"))


# Finding and counting


def test_shards_are_found_by_directory_glob_and_braces(shards):
    whole = expand_pattern(str(shards))
    assert expand_pattern(f"{shards}/*.tar") == whole
    assert expand_pattern(f"{shards}/{{000000..000002}}.tar") == whole
    assert expand_pattern(f"{shards}/000001.tar") == whole[1:2]


def test_counts_come_from_the_manifest_where_there_is_one(shards):
    entries = [shard_entry(shards / "000000.tar", 7), shard_entry(shards / "000001.tar", 8)]
    write_manifest(shards, entries, {})
    assert index_shards(str(shards)).counts == (7, 8, 10)


def test_a_shard_of_another_length_than_its_manifest_says_is_refused(shards):
    """A copy that stopped between two samples is a whole tar to every reader."""
    write_manifest(shards, [shard_entry(shards / "000001.tar", 20)], {})
    (shards / "000001.tar").write_bytes((shards / "000001.tar").read_bytes()[:10240])
    with pytest.raises(UserError, match=r"000001\.tar has 10240 bytes, but its manifest\.json says"):
        index_shards(str(shards))


def test_a_missing_shard_of_the_manifest_is_refused(shards):
    write_manifest(shards, [shard_entry(path, 20) for path in sorted(shards.glob("*.tar"))], {})
    (shards / "000001.tar").unlink()
    with pytest.raises(UserError, match=r"000001\.tar is missing, but the manifest\.json beside it lists it"):
        index_shards(str(shards))
    assert len(index_shards(str(shards / "*.tar")).shards) == 2  # asked for by a pattern, they are what there is


def test_a_shard_that_holds_more_than_its_manifest_says_gives_nothing(shards):
    write_manifest(shards, [shard_entry(path, 9) for path in sorted(shards.glob("*.tar"))], {})
    with pytest.raises(UnreadableSample, match="the shard holds 20 samples, but its manifest says 9"):
        ShardReader(index_shards(str(shards))).read(3)


@pytest.mark.parametrize("pattern", ["{0..9}.tar", "*.tar", "nowhere"])
def test_no_shards_names_the_tools_that_make_some(tmp_path, pattern):
    with pytest.raises(UserError, match=r"tools/render_shards\.py.*tools/make_shards\.py"):
        expand_pattern(f"{tmp_path}/{pattern}")


def test_programs_are_refused(tmp_path):
    with pytest.raises(UserError, match="would run a program"):
        expand_pattern(f"pipe:touch {tmp_path}/ran")
    with pytest.raises(UserError):
        list(read_members(f"pipe:touch {tmp_path}/ran"))
    assert not (tmp_path / "ran").exists()


def test_a_brace_without_its_partner_is_named(tmp_path):
    with pytest.raises(UserError, match="brace"):
        expand_pattern(f"{tmp_path}/{{0..9.tar")


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, '{"shards": [{"name": "000000.tar", "samples": 1e999}]}'])
def test_a_broken_manifest_is_named(shards, text):
    (shards / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json is no shard manifest"):
        index_shards(str(shards))


@pytest.mark.parametrize("kept_bytes", [0, 300, 700, 5_400])
def test_a_truncated_tar_is_named(shards, kept_bytes):
    broken = shards / "000001.tar"
    broken.write_bytes(broken.read_bytes()[:kept_bytes])
    for read in (lambda: index_shards(str(shards)), lambda: list(read_members(str(broken)))):
        with pytest.raises(UserError) as caught:
            read()
        said = str(caught.value)
        assert "000001.tar is not a whole tar file" in said
        assert "\n" not in said


def test_a_pipe_in_place_of_a_shard_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "000000.tar")
    (tmp_path / "000001.tar").mkdir()
    for name in ("000000.tar", "000001.tar"):
        with pytest.raises(UserError, match=f"{name} cannot be opened"):
            list(read_members(str(tmp_path / name)))


def test_a_manifest_with_impossible_sample_counts_is_refused(shards):
    """Memory is taken for each sample that a manifest names."""
    write_manifest(shards, [{**shard_entry(shards / "000000.tar", 20), "samples": 10**12}], {})
    with pytest.raises(UserError, match=r"no shard manifest .* 1000000000000 samples"):
        index_shards(str(shards))


def test_a_duplicate_member_is_reported(tmp_path):
    write_tar(tmp_path / "0.tar", [("a.png", b""), ("a.PNG", b""), ("a.json", b"")])
    with pytest.raises(UserError, match=r"a: it has two members of kind png"):
        list(read_members(str(tmp_path / "0.tar")))


def test_a_colon_in_a_path_is_no_scheme(tmp_path):
    (tmp_path / "a:b").mkdir()
    write_shards(SIGNS[:2], tmp_path / "a:b")
    assert len(list(read_members(str(tmp_path / "a:b/000000.tar")))) == 2


# Any sample by its number


def test_any_sample_is_read_by_its_number(shards):
    reader = ShardReader(index_shards(str(shards)))
    for number in (0, 19, 20, 49, 3):
        raw = reader.read(number)
        assert raw.key == SIGNS[number].key
        assert np.array_equal(decode_sample(raw.members, raw.key).image, SIGNS[number].image)
    reader.close()


def test_a_reader_keeps_a_bounded_number_of_shards_open(shards, monkeypatch):
    monkeypatch.setattr("vlad.data.shards.reader.OPEN_SHARDS", 2)
    reader = ShardReader(index_shards(str(shards)))
    for number in (0, 20, 40, 1, 21, 41):
        assert reader.read(number).key == SIGNS[number].key
        assert len(reader._open) <= 2


def test_a_shard_with_another_checksum_gives_nothing(shards):
    path = shards / "000001.tar"
    write_manifest(shards, [shard_entry(path, 20)], {})
    changed = bytearray(path.read_bytes())
    changed[changed.index(b'"caption"') + 13] ^= 1  # a letter of a caption: nothing but the checksum can tell
    path.write_bytes(changed)
    index = index_shards(str(shards))
    with pytest.raises(UnreadableSample, match="checksum is not the one in its manifest"):
        ShardReader(index).read(25)
    assert ShardReader(index, verify=False).read(25).key == SIGNS[25].key


def test_samples_before_the_damage_are_still_read(tmp_path):
    write_shards(SIGNS[:10], tmp_path)
    index = index_shards(str(tmp_path))
    path = tmp_path / "000000.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    reader = ShardReader(index)
    assert reader.read(0).key == SIGNS[0].key
    with pytest.raises(UnreadableSample, match="the shard is damaged") as caught:
        reader.read(9)
    assert caught.value.shard == str(path)


def test_image_sizes_come_from_the_file_beside_a_shard_or_its_headers(tmp_path):
    signs = [render_sign(SyntheticOptions(size_pixels=16 + 8 * (index % 3)), index) for index in range(9)]
    entries = write_shards(signs, tmp_path, samples_per_shard=4)
    write_manifest(tmp_path, entries, {})
    expected = [list(sign.image.shape[1::-1]) for sign in signs]
    assert image_sizes(index_shards(str(tmp_path))).tolist() == expected
    for path in tmp_path.glob("*.sizes.json"):
        path.unlink()
    assert image_sizes(index_shards(str(tmp_path))).tolist() == expected


def test_sizes_of_another_shard_are_ignored(tmp_path):
    write_manifest(tmp_path, write_shards(SIGNS[:3], tmp_path), {})
    (tmp_path / "000000.sizes.json").write_text('{"bytes": 1, "sizes": [[1, 2], [3, 4], [5, 6]]}')
    assert image_sizes(index_shards(str(tmp_path))).tolist() == [[16, 16]] * 3


@pytest.mark.parametrize("sizes", [[[1, 2]], [[1, 2]] * 4, [[1, 2, 3]] * 3, [[0, 1]] * 3, [[1, -2]] * 3, 5, [["a"]]])
def test_impossible_sizes_are_ignored(tmp_path, sizes):
    write_manifest(tmp_path, write_shards(SIGNS[:3], tmp_path), {})
    record = {"bytes": (tmp_path / "000000.tar").stat().st_size, "sizes": sizes}
    (tmp_path / "000000.sizes.json").write_text(json.dumps(record))
    assert image_sizes(index_shards(str(tmp_path))).tolist() == [[16, 16]] * 3


# Shards of other programs


def test_members_that_do_not_stand_side_by_side_are_one_sample(tmp_path):
    members = encode_sample(SIGNS[0])
    path = tmp_path / "0.tar"
    parts = [("._a.png", b"x"), ("a.png", members["png"]), ("22.05.png", members["png"])]
    parts += [("a.json", members["json"]), ("22.05.json", members["json"]), ("a.seg.png", b"x")]
    write_tar(path, parts)
    index = index_shards(str(path))
    assert index.passed_over.counts == {"hidden or AppleDouble member": 1, "member of another kind (.seg.png)": 1}
    assert index.samples == 2
    reader = ShardReader(index)
    for number, key in enumerate(("a", "22.05")):
        raw = reader.read(number)
        assert (raw.key, decode_sample(raw.members, raw.key).caption) == (key, SIGNS[0].caption)
    reader.close()


def test_a_compressed_shard_is_refused_with_its_remedy(tmp_path):
    write_tar(tmp_path / "0.tar", [("a.png", b"")])
    (tmp_path / "0.tar").write_bytes(gzip.compress((tmp_path / "0.tar").read_bytes()))
    with pytest.raises(UserError, match=r"0\.tar is not a whole tar file .*compressed with gzip; unpack it"):
        index_shards(str(tmp_path / "0.tar"))
