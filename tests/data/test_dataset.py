"""The stream of batches: exact over a resume, with any workers, ranks and shards."""

import dataclasses
import io
import itertools
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from vlad.data.buckets import stretch_image
from vlad.data.collate import collate
from vlad.data.dataset import ShardBatches, first_samples
from vlad.data.decoding import decode_sample, encode_sample
from vlad.data.options import StreamOptions, SyntheticOptions
from vlad.data.shard_sets import check_enough_samples, open_sets
from vlad.data.shards.writer import write_manifest, write_shards
from vlad.data.signs import render_sign
from vlad.data.storage.retries import StorageError
from vlad.utils.errors import UserError

COUNT = 50
SIGNS = [render_sign(SyntheticOptions(size_pixels=16), index) for index in range(COUNT)]
OPTIONS = StreamOptions(image_pixels=16, batch_size=4, workers=1, seed=3, shuffle_window=8)


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
    return open_sets({str(directory): 1.0})


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
    batch = next(iter(ShardBatches(open_sets({str(tmp_path): 1.0}), OPTIONS, batches=1)))
    assert len(batch.keys) == 4
    assert not target.exists()
    pickle.loads(payload)  # the payload itself works
    assert target.exists()


# The stream


def read_batches(sets, workers, batches, first_batch=0, quarantine=None, **options):
    chosen = dataclasses.replace(OPTIONS, workers=workers, max_bad_share=0.5, **options)
    dataset = ShardBatches(sets, chosen, batches, first_batch, quarantine)
    context = "fork" if workers else None
    return list(DataLoader(dataset, batch_size=None, num_workers=workers, multiprocessing_context=context))


def test_glyph_maps_are_in_the_font_of_the_options_and_so_are_their_crops(shards):
    sets = open_sets({str(shards): 1.0})
    mono, proportional = (read_batches(sets, 0, 1, glyph_font=font)[0] for font in ("mono-bold", "proportional"))
    assert mono.keys == proportional.keys
    assert not torch.equal(mono.ink_bytes, proportional.ink_bytes)
    assert {layout.glyph_font for layout in proportional.layouts} == {"proportional"}
    cropped = read_batches(sets, 0, 1, glyph_font="proportional", max_aspect=2.0, bucket_step_pixels=16)[0]
    assert {layout.glyph_font for layout in cropped.layouts} == {"proportional"}


def test_spawned_workers_give_the_same_batches_where_there_is_no_fork(shards, monkeypatch):
    sets = open_sets({str(shards): 1.0})
    forked = read_batches(sets, 2, 4)
    monkeypatch.delattr(os, "fork")
    dataset = ShardBatches(sets, dataclasses.replace(OPTIONS, workers=2), 4)
    spawned = list(DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="spawn"))
    for batch, other in zip(forked, spawned, strict=True):
        assert batch.keys == other.keys
        assert torch.equal(batch.image_bytes, other.image_bytes) and torch.equal(batch.ink_bytes, other.ink_bytes)


def keys_of(batches):
    return [batch.keys for batch in batches]


@pytest.fixture
def as_rank(monkeypatch):
    def become(rank, world_size):
        monkeypatch.setattr("vlad.utils.distributed.rank", lambda: rank)
        monkeypatch.setattr("vlad.utils.distributed.world_size", lambda: world_size)

    return become


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_an_epoch_gives_every_sample_once(shards, as_rank, ranks):
    """Two epochs of batches of one: each rank has its own samples, all have the same count."""
    sets, each = open_sets({str(shards): 1.0}), COUNT // ranks
    by_rank = []
    for rank in range(ranks):
        as_rank(rank, ranks)
        by_rank.append([key for keys in keys_of(read_batches(sets, 0, 2 * each, batch_size=1)) for key in keys])
    for epoch in range(2):
        seen = [key for keys in by_rank for key in keys[epoch * each : (epoch + 1) * each]]
        assert len(seen) == len(set(seen)) == ranks * each


def test_every_epoch_has_an_order_of_its_own(shards):
    keys = keys_of(read_batches(open_sets({str(shards): 1.0}), 0, 20, batch_size=5))
    first, second = (list(itertools.chain(*keys[start : start + 10])) for start in (0, 10))
    assert sorted(first) == sorted(second) == [sign.key for sign in SIGNS]
    assert len({tuple(first), tuple(second), tuple(sorted(first))}) == 3


def test_without_a_window_samples_come_in_the_shards_order(shards):
    keys = [
        *itertools.chain(*keys_of(read_batches(open_sets({str(shards): 1.0}), 0, 10, batch_size=5, shuffle_window=0)))
    ]
    starts = [keys.index(f"{number:08d}") for number in (0, 20, 40)]
    assert all(keys[start + 1] == f"{number + 1:08d}" for start, number in zip(starts, (0, 20, 40), strict=True))


@pytest.mark.parametrize("bad", [set(), {0, 3, 4, 5, 6, 20, 41}], ids=["all good", "some bad"])
def test_whatever_the_workers_the_batches_are_the_same(tmp_path, bad):
    sets = write_with_bad(tmp_path, bad)
    whole = keys_of(read_batches(sets, 0, 30))
    for workers in (1, 4):
        assert keys_of(read_batches(sets, workers, 30)) == whole


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("bad", [set(), {0, 3, 4, 5, 6, 20, 41}], ids=["all good", "some bad"])
def test_a_resumed_run_reads_what_an_uninterrupted_one_would(tmp_path, as_rank, workers, ranks, bad):
    sets = write_with_bad(tmp_path, bad)
    for rank in range(ranks):
        as_rank(rank, ranks)
        whole = read_batches(sets, workers, 30)
        assert len(whole) == 30  # more than two epochs
        for first in (1, 7, 22):
            tail = read_batches(sets, workers, 30 - first, first)
            assert keys_of(tail) == keys_of(whole[first:])
            assert np.array_equal(tail[-1].image_bytes, whole[-1].image_bytes)


def test_two_ranks_of_four_workers_resume_within_an_epoch_of_many_shards(tmp_path, as_rank):
    """Shuffled shards and samples, uneven shards, three epochs and more, stopped twice, in the middle of the second."""
    for number, (first, last) in enumerate(itertools.pairwise((0, 5, 16, 18, 33, 41, COUNT))):
        write_shards(SIGNS[first:last], tmp_path, first_shard=number)
    sets = open_sets({str(tmp_path): 1.0})
    assert sets.shards == 6
    logs = []
    for rank in range(2):
        as_rank(rank, 2)
        whole = keys_of(read_batches(sets, 4, 40, batch_size=2))
        parts = [keys_of(read_batches(sets, 4, count, first, batch_size=2)) for first, count in ((0, 19), (19, 2))]
        assert [*parts[0], *parts[1], *keys_of(read_batches(sets, 3, 19, 21, batch_size=2))] == whole
        logs.append([key for keys in whole for key in keys])
    for epoch in range(3):
        seen = [key for log in logs for key in log[25 * epoch : 25 * (epoch + 1)]]
        assert sorted(seen) == [sign.key for sign in SIGNS]
    assert logs[0][:25] != logs[0][25:50]


def test_a_resume_reads_nothing_of_what_came_before(shards, monkeypatch):
    read = []
    monkeypatch.setattr(
        "vlad.data.dataset.decode_sample",
        lambda members, key, *room: read.append(key) or decode_sample(members, key, *room),
    )
    batches = read_batches(open_sets({str(shards): 1.0}), 0, 2, first_batch=1000)
    assert read == list(itertools.chain(*keys_of(batches)))


def test_two_sets_are_mixed_by_their_weights(tmp_path):
    for name, first in (("a", 0), ("b", 1000)):
        (tmp_path / name).mkdir()
        write_shards(
            [dataclasses.replace(sign, key=f"{first + n:08d}") for n, sign in enumerate(SIGNS)], tmp_path / name
        )
    sets = open_sets({str(tmp_path / "a"): 3.0, str(tmp_path / "b"): 1.0})
    batches = keys_of(read_batches(sets, 0, 500))
    keys = [int(key) for batch in batches for key in batch]
    assert sum(key >= 1000 for key in keys) == 500  # a quarter of 2000, exactly
    assert {key % 1000 for key in keys if key >= 1000} == set(range(COUNT))
    assert keys_of(read_batches(sets, 0, 3, 490)) == batches[490:493]


def test_a_weight_below_a_thousandth_is_refused(shards):
    with pytest.raises(UserError, match="under a thousandth"):
        open_sets({str(shards): 1.0, f"{shards}/000000.tar": 1e-4})


def test_batches_come_in_buckets(tmp_path):
    shapes = [(64, 64), (96, 40), (40, 96), (64, 60)]  # width, height
    samples = [
        dataclasses.replace(sign, image=np.zeros((*shapes[number % 4][::-1], 3), np.uint8))
        for number, sign in enumerate(SIGNS)
    ]
    write_shards(samples, tmp_path, samples_per_shard=20)
    sets = open_sets({str(tmp_path): 1.0})
    options = {"image_pixels": 64, "max_aspect": 3.0, "bucket_step_pixels": 16}
    whole = read_batches(sets, 0, 50, **options)
    assert {tuple(batch.image_bytes.shape[2:]) for batch in whole} == {(64, 64), (32, 96), (96, 32)}
    seen = [key for batch in whole for key in batch.keys]
    assert len(set(seen[:COUNT])) > COUNT - 12  # those that wait for their batch come with the next epoch's
    assert set(seen) == {sign.key for sign in SIGNS}
    for workers in (0, 2):
        assert keys_of(read_batches(sets, workers, 20, 30, **options)) == keys_of(whole[30:])


def test_a_bad_sample_is_left_out_and_every_batch_is_full(tmp_path):
    bad = {3, 17, 18}
    batches = read_batches(write_with_bad(tmp_path, bad), 0, 25)
    assert all(len(batch.keys) == 4 for batch in batches)
    seen = {key for batch in batches for key in batch.keys}
    assert seen == {sign.key for number, sign in enumerate(SIGNS) if number not in bad}


def test_a_batch_of_bad_samples_alone_is_filled_from_its_bucket(tmp_path):
    bad = set(range(0, COUNT, 3))
    batches = read_batches(write_with_bad(tmp_path, bad), 0, COUNT, batch_size=1)
    assert {key for batch in batches for key in batch.keys} == {
        sign.key for number, sign in enumerate(SIGNS) if number not in bad
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_are_listed_once(tmp_path, workers):
    sets = write_with_bad(tmp_path, {3, 17})
    for _ in range(2):  # a resumed run finds them again
        read_batches(sets, workers, 40, quarantine=tmp_path / "quarantine.jsonl")
    records = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert sorted(record["key"] for record in records) == ["00000003", "00000017"]
    assert all(record["shard"].endswith("000000.tar") and "json" in record["reason"] for record in records)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_worker_is_one_sentence(tmp_path, workers):
    sets = write_with_bad(tmp_path, set(range(COUNT)))
    with pytest.raises(UserError, match=r"^data\.shards: 20 of the first 20 samples.*quarantine\.jsonl") as caught:
        read_batches(sets, workers, 13)
    assert "Traceback" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_shard_that_is_cut_off_during_the_run_counts_as_bad_samples(tmp_path):
    sets = write_with_bad(tmp_path, set())
    whole = tmp_path / "000000.tar"
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size * 3 // 4])
    quarantine = tmp_path / "quarantine.jsonl"
    batches = read_batches(sets, 0, 13, quarantine=quarantine)
    assert {key for batch in batches for key in batch.keys} < {sign.key for sign in SIGNS}
    assert "the shard is damaged" in quarantine.read_text()


def test_fewer_samples_than_a_batch_of_every_rank_are_refused(shards):
    sets = open_sets({str(shards): 1.0})
    check_enough_samples(sets, COUNT, 1)
    with pytest.raises(UserError, match="50 samples are too few for 1 rank x batches of 51"):
        check_enough_samples(sets, COUNT + 1, 1)
    with pytest.raises(UserError, match="at least 52"):
        check_enough_samples(sets, 26, 2)


def test_errors_name_the_option_that_names_the_shards(shards, tmp_path):
    """data.shards is only the usual one."""
    for option, patterns in (
        ("data.shards", {"pipe:cat": 1.0}),
        ("data.mix", {str(shards): 1.0, str(tmp_path / "none"): 1.0}),
        ("data.mix", {str(shards): 1.0, "x" * 300: 1.0}),
    ):
        with pytest.raises(UserError, match=f"^{option}: "):
            open_sets(patterns)
    with pytest.raises(UserError, match=r"^data\.held_out: there are no shards"):
        open_sets({str(tmp_path / "none"): 1.0}, option="data.held_out")
    held_out = open_sets({str(shards): 1.0}, option="data.held_out")
    for shard in held_out.indexes[0].paths:
        Path(shard).unlink()
    with pytest.raises(StorageError, match=r"^data\.held_out: .* cannot be opened"):
        first_samples(held_out, StreamOptions(), 1)


def test_the_first_samples_leave_bad_ones_out(tmp_path):
    sets = write_with_bad(tmp_path, {3, 17, 18})
    samples = first_samples(sets, dataclasses.replace(OPTIONS, max_bad_share=0.5), 100)
    assert len(samples) == COUNT - 3


def test_wrong_sizes_beside_a_shard_are_reported(tmp_path):
    """Buckets were planned with them: images would be cropped without need."""
    write_manifest(tmp_path, write_shards(SIGNS, tmp_path), {})
    beside = tmp_path / "000000.sizes.json"
    record = json.loads(beside.read_text())
    record["sizes"][7:30] = [[32, 16]] * 23
    beside.write_text(json.dumps(record))
    options = dataclasses.replace(OPTIONS, max_aspect=2.0, bucket_step_pixels=4)
    with pytest.raises(UserError, match=r"has 16 x 16 pixels, but the file of sizes .* remove that file"):
        list(ShardBatches(open_sets({str(tmp_path): 1.0}), options, 13))
    beside.unlink()
    list(ShardBatches(open_sets({str(tmp_path): 1.0}), options, 13))


# Batches


def test_a_batch_has_images_and_glyph_maps_between_minus_one_and_one():
    batch = collate([stretch_image(sign, 32) for sign in SIGNS[:3]])
    assert batch.images.shape == batch.glyph_maps.shape == (3, 3, 32, 32)
    assert batch.pixel_weights is None
    for pixels in (batch.images, batch.glyph_maps):
        assert -1 <= pixels.min() < pixels.max() <= 1
    assert batch.captions == tuple(sign.caption for sign in SIGNS[:3])
    assert batch.objects == tuple(sign.objects for sign in SIGNS[:3])


def test_invalid_text_has_no_weight():
    first, second = SIGNS[:2]
    line = dataclasses.replace(first.layout.lines[0], valid=False)
    batch = collate([dataclasses.replace(first, layout=type(first.layout)((line,))), second])
    assert batch.pixel_weights.shape == (2, 1, 16, 16)
    assert batch.pixel_weights[0].min() == 0
    assert batch.pixel_weights[1].min() == 1
    assert batch.glyph_maps[0].max() == -1


def test_an_image_of_another_shape_is_stretched():
    wide = SIGNS[0].image[:8]
    sample = dataclasses.replace(SIGNS[0], image=wide)
    assert stretch_image(sample, 24).image.shape == (24, 24, 3)
    assert stretch_image(SIGNS[0], 16) is SIGNS[0]
