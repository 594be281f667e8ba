"""Shards: written whole, read as an exact stream, and nothing in them can run code."""

import io
import itertools
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from vlad.data.decoding import decode_sample, encode_sample
from vlad.data.shards import (
    SampleStream,
    ShardBatches,
    StreamOptions,
    collate,
    find_shards,
    fit_picture,
    index_shards,
    read_members,
)
from vlad.data.synthetic import SyntheticOptions, render_sign
from vlad.data.writing import shard_entry, write_manifest, write_shards
from vlad.errors import UserError

COUNT = 50
SIGNS = [render_sign(SyntheticOptions(size_pixels=16), index) for index in range(COUNT)]
OPTIONS = StreamOptions(picture_pixels=16, batch_size=4, workers=1, seed=3, shuffle_buffer=8)


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


def write_with_bad(directory, bad):
    """All signs in one shard; those whose numbers are in `bad` have a broken record."""
    members = []
    for number, sign in enumerate(SIGNS):
        encoded = encode_sample(sign)
        members.append((f"{sign.key}.png", encoded["png"]))
        members.append((f"{sign.key}.json", b"{" if number in bad else encoded["json"]))
    write_tar(directory / "000000.tar", members)
    return index_shards(str(directory))


# Writing


def test_what_is_written_is_read_back(shards):
    back = [decode_sample(members, key) for path in find_shards(str(shards)) for key, members in read_members(path)]
    assert [sample.key for sample in back] == [sign.key for sign in SIGNS]
    for sample, sign in zip(back, SIGNS, strict=True):
        assert np.array_equal(sample.picture, sign.picture)
        assert (sample.caption, sample.objects) == (sign.caption, sign.objects)
        assert [line.text for line in sample.layout.lines] == [line.text for line in sign.layout.lines]


def test_shards_are_numbered_and_described(shards):
    assert [path.name for path in sorted(shards.iterdir())] == ["000000.tar", "000001.tar", "000002.tar"]
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

    monkeypatch.setattr("vlad.data.writing.encode_sample", encode_until_stopped)
    with pytest.raises(KeyboardInterrupt):
        write_shards(SIGNS, tmp_path, samples_per_shard=4)
    assert find_shards(str(tmp_path)) == (str(tmp_path / "000000.tar"),)


def test_a_later_run_goes_on_with_the_next_number(tmp_path):
    entries = write_shards(SIGNS[:2], tmp_path) + write_shards(SIGNS[2:4], tmp_path, first_shard=1)
    write_manifest(tmp_path, entries, {"made_by": "a test"})
    record = json.loads((tmp_path / "manifest.json").read_text())
    assert [entry["name"] for entry in record["shards"]] == ["000000.tar", "000001.tar"]
    assert (record["samples"], record["about"]) == (4, {"made_by": "a test"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000.tar", "000001.tar", "manifest.json"]


# Finding and counting


def test_shards_are_found_by_directory_glob_and_braces(shards):
    whole = find_shards(str(shards))
    assert find_shards(f"{shards}/*.tar") == whole
    assert find_shards(f"{shards}/{{000000..000002}}.tar") == whole
    assert find_shards(f"{shards}/000001.tar") == whole[1:2]


def test_counts_come_from_the_manifest_where_there_is_one(shards):
    entries = [shard_entry(shards / "000000.tar", 7), shard_entry(shards / "000001.tar", 8)]
    write_manifest(shards, entries, {})
    assert index_shards(str(shards)).counts == (7, 8, 10)


def test_a_shard_of_another_length_than_its_manifest_says_is_named(shards):
    """A copy that stopped between two samples is a whole tar to every reader."""
    write_manifest(shards, [shard_entry(shards / "000001.tar", 20)], {})
    (shards / "000001.tar").write_bytes((shards / "000001.tar").read_bytes()[:10240])
    with pytest.raises(UserError, match=r"000001\.tar has 10240 bytes, but its manifest\.json says"):
        index_shards(str(shards))


@pytest.mark.parametrize("pattern", ["{0..9}.tar", "*.tar", "nowhere"])
def test_no_shards_names_the_tools_that_make_some(tmp_path, pattern):
    with pytest.raises(UserError, match=r"tools/render_shards\.py.*tools/make_shards\.py"):
        find_shards(f"{tmp_path}/{pattern}")


def test_programs_are_refused(tmp_path):
    with pytest.raises(UserError, match="would run a program"):
        find_shards(f"pipe:touch {tmp_path}/ran")
    with pytest.raises(UserError):
        list(read_members(f"pipe:touch {tmp_path}/ran"))
    assert not (tmp_path / "ran").exists()


def test_a_brace_without_its_partner_is_named(tmp_path):
    with pytest.raises(UserError, match="brace"):
        find_shards(f"{tmp_path}/{{0..9.tar")


def test_a_broken_manifest_is_named(shards):
    (shards / "manifest.json").write_text("{")
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
        assert "BufferedReader" not in said


def test_a_member_that_stands_twice_is_named(tmp_path):
    write_tar(tmp_path / "0.tar", [("a.png", b""), ("a.PNG", b""), ("a.json", b"")])
    with pytest.raises(UserError, match=r"a\.PNG: duplicate"):
        list(read_members(str(tmp_path / "0.tar")))


def test_a_colon_in_a_path_is_no_scheme(tmp_path):
    (tmp_path / "a:b").mkdir()
    write_shards(SIGNS[:2], tmp_path / "a:b")
    assert len(list(read_members(str(tmp_path / "a:b/000000.tar")))) == 2


# Nothing runs


class _Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("extension", ["pyd", "pkl", "pickle", "pth", "pt", "npy", "npz", "pyd.gz"])
def test_a_pickle_is_never_opened(tmp_path, extension):
    target = tmp_path / "ran"
    payload = pickle.dumps(_Payload(target))
    members = []
    for sign in SIGNS[:8]:
        encoded = encode_sample(sign)
        members += [(f"{sign.key}.{name}", data) for name, data in encoded.items()]
        members.append((f"{sign.key}.{extension}", payload))
    write_tar(tmp_path / "000000.tar", members)
    batch = next(iter(ShardBatches(index_shards(str(tmp_path)), OPTIONS, batches=1)))
    assert len(batch.keys) == 4
    assert not target.exists()
    pickle.loads(payload)  # the payload itself works
    assert target.exists()


# The stream


def test_two_streams_share_every_epoch_between_them(shards):
    index = index_shards(str(shards))
    streams = [SampleStream(index, OPTIONS, number, 2, None).samples() for number in range(2)]
    for _ in range(3):
        halves = [{sample.key for sample in itertools.islice(stream, COUNT // 2)} for stream in streams]
        assert halves[0].isdisjoint(halves[1])
        assert halves[0] | halves[1] == {sign.key for sign in SIGNS}


def test_every_epoch_has_an_order_of_its_own(shards):
    stream = SampleStream(index_shards(str(shards)), OPTIONS, 0, 1, None).samples()
    first, second = ([sample.key for sample in itertools.islice(stream, COUNT)] for _ in range(2))
    assert sorted(first) == sorted(second)
    assert first != second
    assert first != sorted(first)


def test_without_a_buffer_samples_come_in_the_shards_order(shards):
    options = StreamOptions(picture_pixels=16, batch_size=4, shuffle_buffer=0)
    keys = [s.key for s in itertools.islice(SampleStream(index_shards(str(shards)), options, 0, 1, None).samples(), 50)]
    starts = [keys.index(f"{number:08d}") for number in (0, 20, 40)]
    assert sorted(keys) == [sign.key for sign in SIGNS]
    assert all(keys[start + 1] == f"{number + 1:08d}" for start, number in zip(starts, (0, 20, 40), strict=True))


def read_batches(index, workers, batches, first_batch=0, quarantine=None):
    options = StreamOptions(**{**OPTIONS.__dict__, "workers": workers, "max_bad_share": 0.5})
    dataset = ShardBatches(index, options, batches, first_batch, quarantine)
    context = "fork" if workers else None
    loader = DataLoader(dataset, batch_size=None, num_workers=workers, multiprocessing_context=context)
    return list(loader)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("bad", [set(), {0, 3, 4, 5, 6, 20, 41}], ids=["all good", "some bad"])
def test_a_resumed_run_reads_what_an_uninterrupted_one_would(tmp_path, workers, bad):
    index = write_with_bad(tmp_path, bad)
    whole = read_batches(index, workers, 18)
    assert len(whole) == 18  # more than an epoch
    for first in (1, 2, 7, 13):
        tail = read_batches(index, workers, 18 - first, first)
        assert [batch.keys for batch in tail] == [batch.keys for batch in whole[first:]]
        assert np.array_equal(tail[-1].pictures, whole[-1].pictures)


def test_a_bad_sample_is_left_out_and_every_batch_is_full(tmp_path):
    bad = {3, 17, 18}
    batches = read_batches(write_with_bad(tmp_path, bad), 0, 13)
    assert all(len(batch.keys) == len(set(batch.keys)) == 4 for batch in batches[:11])
    seen = {key for batch in batches for key in batch.keys}
    assert seen == {sign.key for number, sign in enumerate(SIGNS) if number not in bad}


def test_bad_samples_are_listed(tmp_path):
    index = write_with_bad(tmp_path, {3, 17})
    read_batches(index, 0, 13, quarantine=tmp_path / "quarantine.jsonl")
    records = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert {record["key"] for record in records} == {"00000003", "00000017"}
    assert all(record["shard"].endswith("000000.tar") and "json" in record["reason"] for record in records)


def test_too_many_bad_samples_stop_the_run(tmp_path):
    index = write_with_bad(tmp_path, set(range(0, COUNT, 5)))
    stream = SampleStream(index, OPTIONS, 0, 1, tmp_path / "quarantine.jsonl").samples()
    with pytest.raises(UserError, match=r"max_bad_share = 0\.05.*quarantine\.jsonl"):
        list(itertools.islice(stream, COUNT))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_worker_s_mistake_is_told_in_one_sentence(tmp_path, workers):
    index = write_with_bad(tmp_path, set(range(COUNT)))
    with pytest.raises(UserError, match=r"^data\.shards: 20 of the first 20 samples") as caught:
        read_batches(index, workers, 13)
    assert "Traceback" not in str(caught.value)
    assert "\n" not in str(caught.value)
    index = write_with_bad(tmp_path, set())
    whole = tmp_path / "000000.tar"
    whole.write_bytes(whole.read_bytes()[:5_400])
    with pytest.raises(UserError, match=r"^data\.shards: .*is not a whole tar file"):
        read_batches(index, workers, 13)


def test_too_few_samples_are_refused_at_the_door(shards):
    index = index_shards(str(shards))
    ShardBatches(index, StreamOptions(batch_size=COUNT), batches=1)
    with pytest.raises(UserError, match="50 samples are too few for 1 ranks x 1 workers x batches of 51"):
        ShardBatches(index, StreamOptions(batch_size=COUNT + 1), batches=1)
    with pytest.raises(UserError, match="at least 52"):
        ShardBatches(index, StreamOptions(batch_size=26, workers=2), batches=1)


# Batches


def test_a_batch_has_pictures_and_glyph_maps_between_minus_one_and_one():
    batch = collate(SIGNS[:3], 32)
    assert batch.pictures.shape == batch.glyph_maps.shape == (3, 3, 32, 32)
    assert batch.loss_weights.shape == (3, 1, 32, 32)
    for pixels in (batch.pictures, batch.glyph_maps):
        assert -1 <= pixels.min() < pixels.max() <= 1
    assert batch.loss_weights.min() == 1
    assert batch.captions == tuple(sign.caption for sign in SIGNS[:3])


def test_a_picture_of_another_shape_is_fitted():
    wide = SIGNS[0].picture[:8]
    sample = type(SIGNS[0])("key", wide, "a sign", SIGNS[0].layout)
    assert fit_picture(sample, 24).picture.shape == (24, 24, 3)
    assert fit_picture(SIGNS[0], 16) is SIGNS[0]
