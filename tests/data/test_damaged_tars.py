"""Damaged shards: no crash, no hang, and no sample that silently becomes another one."""

import dataclasses
import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlad.data.dataset import ShardBatches
from vlad.data.decoding import BadSample, decode_sample
from vlad.data.options import StreamOptions, SyntheticOptions
from vlad.data.shard_sets import open_sets
from vlad.data.shards.reader import ShardReader, UnreadableSample, index_shards
from vlad.data.shards.writer import MANIFEST, shard_entry, write_manifest, write_shards
from vlad.data.signs import render_sign
from vlad.utils.errors import UserError

SIGNS = [render_sign(SyntheticOptions(size_pixels=16), index) for index in range(6)]
OPTIONS = StreamOptions(image_pixels=16, batch_size=2, workers=0, shuffle_window=4, max_bad_share=1.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    write_shards(SIGNS, directory)
    return (directory / "000000.tar").read_bytes()


BLOCK = 512


def mutate(data: bytes, seed: int) -> bytes:
    """One to four injuries: bits, bytes, blocks and lengths, in headers as often as in members."""
    rng, damaged = random.Random(seed), bytearray(data)

    def place() -> int:
        if rng.random() < 0.5:  # within a block that begins like a header
            return min(len(damaged) - 1, rng.randrange(len(damaged) // BLOCK) * BLOCK + rng.randrange(BLOCK))
        return rng.randrange(len(damaged))

    for _ in range(rng.randint(1, 4)):
        if len(damaged) < BLOCK:
            break
        kind, at = rng.randrange(8), place()
        block = at // BLOCK * BLOCK
        if kind == 0:
            damaged[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            damaged[at] = rng.choice((0, 0x30, 0x37, 0x7F, 0x80, 0xFF))
        elif kind == 2:
            del damaged[at : at + rng.randint(1, 2 * BLOCK)]
        elif kind == 3:
            damaged[at:at] = rng.randbytes(rng.randint(1, BLOCK))
        elif kind == 4:
            damaged[block : block + BLOCK] = bytes(BLOCK)
        elif kind == 5:
            del damaged[at:]
        elif kind == 6:
            other = rng.randrange(len(damaged) // BLOCK) * BLOCK
            damaged[block : block + BLOCK] = damaged[other : other + BLOCK]
        else:  # a header that is valid, but whose length, kind or name is another
            header = bytearray(damaged[block : block + BLOCK])
            start, field = rng.choice(
                ((124, b"77777777777\0"), (124, b"\x80" + bytes(10) + b"\x01"), (124, b"\xff" * 12), (156, b"xgLKS12")),
            )
            header[start : start + len(field)] = field if start == 124 else rng.choice([b"%c" % b for b in field])
            header[148:156] = b" " * 8
            header[148:156] = b"%06o\0 " % sum(header)
            damaged[block : block + len(header)] = header
    return bytes(damaged)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


@settings(max_examples=max(200, settings.default.max_examples))
@given(seed=st.integers(0, 2**63))
def test_a_damaged_shard_with_a_manifest_gives_its_own_samples_or_none(whole, place, seed):
    """The checksum covers all of it; without one, see below."""
    write_and_describe(place, whole, described=whole)
    (place / "000000.tar").write_bytes(mutate(whole, seed))
    try:
        index = index_shards(str(place))
    except UserError as error:
        assert "000000.tar" in str(error)
        return
    reader = ShardReader(index)
    for number, sign in enumerate(SIGNS):
        try:
            raw = reader.read(number)
        except UnreadableSample as error:
            assert error.shard.endswith("000000.tar")
            continue
        assert np.array_equal(decode_sample(raw.members, raw.key).image, sign.image)
        assert raw.key == sign.key
    reader.close()


@settings(max_examples=max(200, settings.default.max_examples))
@given(seed=st.integers(0, 2**63))
def test_every_sample_of_a_damaged_shard_is_read_or_listed(whole, place, seed):
    """With a manifest of the damaged file's checksum, so that everything behind the checksum is tested."""
    write_and_describe(place, mutate(whole, seed), described=None)
    quarantine = place / "quarantine.jsonl"
    quarantine.unlink(missing_ok=True)
    try:
        sets = open_sets({str(place): 1.0})
        batches = list(ShardBatches(sets, dataclasses.replace(OPTIONS, batch_size=6), 1, quarantine=quarantine))
    except UserError as error:
        assert "\n" not in str(error)
        return
    listed = quarantine.read_text().splitlines() if quarantine.exists() else []
    assert all(json.loads(line)["reason"] for line in listed)
    keys = batches[0].keys
    assert len(keys) == 6
    # A stand-in repeats a sample: six places, six samples or as many lines as are missing.
    assert len(set(keys)) + len(listed) >= 6 or len(set(keys)) == 1
    for image in batches[0].images:
        assert np.isfinite(image.numpy()).all()


@settings(max_examples=max(200, settings.default.max_examples))
@given(seed=st.integers(0, 2**63))
def test_a_damaged_record_or_image_is_a_bad_sample(whole, seed):
    rng = random.Random(seed)
    sign = SIGNS[seed % len(SIGNS)]
    from vlad.data.decoding import encode_sample

    members = encode_sample(sign, rng.choice(("png", "jpg", "webp")))
    name = rng.choice(sorted(members))
    data = bytearray(members[name])
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(data))
        data[at : at + rng.randint(0, 3)] = rng.randbytes(rng.randint(0, 3))
    members[name] = bytes(data)
    try:
        sample = decode_sample(members, "key")
    except BadSample as error:
        assert str(error)
        return
    assert sample.image.ndim == 3
    assert sample.caption.strip()


def write_and_describe(directory, data, described):
    path = directory / "000000.tar"
    path.write_bytes(data if described is None else described)
    write_manifest(directory, [shard_entry(path, len(SIGNS))], {})
    assert (directory / MANIFEST).is_file()
