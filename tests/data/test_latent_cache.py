"""Cached latents: round trip, resume, and refusal of a cache with another fingerprint."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from vlad.data.dataset import ShardBatches
from vlad.data.latent_cache.precompute import data_fingerprint, open_cache, weights_digest, write_cache
from vlad.data.options import StreamOptions, SyntheticOptions
from vlad.data.shard_sets import open_sets
from vlad.data.shards.writer import write_shards
from vlad.data.signs import render_sign
from vlad.types import CachedStates, TextStates
from vlad.utils.errors import UserError

SIGNS = [render_sign(SyntheticOptions(size_pixels=16 + 8 * (index % 2)), index) for index in range(23)]
OPTIONS = StreamOptions(image_pixels=16, batch_size=4, workers=0, shuffle_window=8)


def encode(batch):
    """In place of the models: distinct states, of as many tokens as the caption has letters."""
    mean = batch.images[:, :2, ::8, ::8]
    lengths = [len(caption) for caption in batch.captions]
    tokens = torch.zeros(len(lengths), max(lengths), 3)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    tokens[mask] = torch.arange(int(mask.sum()))[:, None].float() % 100
    phrases = torch.tensor([len(key) % 3 for key in batch.keys])
    local_mask = torch.arange(2) < phrases[:, None]
    local = local_mask[..., None] * torch.ones(3)
    text = TextStates(tokens, mask, tokens.sum(dim=1) % 100, local, local_mask)
    return CachedStates(mean, mean.abs(), batch.glyph_maps[:, :2, ::8, ::8], None, text, mean.mean(dim=(2, 3)))


def encode_drawn(batch):
    states = encode(batch)
    return dataclasses.replace(states, glyph_deviation=states.glyph_mean.abs())


@pytest.fixture
def shards(tmp_path):
    (tmp_path / "shards").mkdir()
    write_shards(SIGNS, tmp_path / "shards", samples_per_shard=10)
    return open_sets({str(tmp_path / "shards"): 1.0})


def made(shards, directory, options=OPTIONS, fingerprint=None, model=encode_drawn):
    directory.mkdir(exist_ok=True)
    fingerprint = data_fingerprint(shards, options) if fingerprint is None else fingerprint
    count = write_cache(shards, options, model, directory, fingerprint, lambda count: None)
    return count, fingerprint


def test_cached_states_equal_those_of_the_models(shards, tmp_path):
    count, fingerprint = made(shards, tmp_path / "cache")
    assert count == len(SIGNS)
    cached = open_cache(str(tmp_path / "cache"), fingerprint)
    for told, read in zip(ShardBatches(shards, OPTIONS, 12), ShardBatches(cached, OPTIONS, 12), strict=True):
        assert (read.keys, read.captions, read.objects) == (told.keys, told.captions, told.objects)
        assert read.image_bytes is None
        states, expected = read.cached, encode_drawn(told)
        for name in ("image_moments", "glyph_moments"):
            for moment, true_moment in zip(getattr(states, name), getattr(expected, name), strict=True):
                assert moment.dtype == torch.float32
                assert torch.equal(moment, true_moment.half().float()), name
        assert torch.allclose(states.v, expected.v, atol=2e-3)
        assert torch.equal(states.text.mask, expected.text.mask)
        assert torch.equal(states.text.local_mask.any(dim=1), expected.text.local_mask.any(dim=1))
        assert states.text.tokens.shape == expected.text.tokens.shape


def test_cached_batches_come_in_buckets_too(shards, tmp_path):
    options = dataclasses.replace(OPTIONS, resolutions=(16, 24), max_aspect=1.0)
    _, fingerprint = made(shards, tmp_path / "cache", options)
    cached = open_cache(str(tmp_path / "cache"), fingerprint)
    shapes = {tuple(batch.cached.image_mean.shape[2:]) for batch in ShardBatches(cached, options, 20)}
    assert shapes == {(2, 2), (3, 3)}
    told = [batch.keys for batch in ShardBatches(shards, options, 20)]
    assert [batch.keys for batch in ShardBatches(cached, options, 20)] == told


def test_an_interrupted_cache_resumes_after_its_last_finished_shard(shards, tmp_path):
    read = []

    def stops(batch):
        read.extend(batch.keys)
        if len(read) > 15:
            raise KeyboardInterrupt
        return encode_drawn(batch)

    with pytest.raises(KeyboardInterrupt):
        made(shards, tmp_path / "cache", model=stops)
    with pytest.raises(UserError, match="no finished cache"):
        open_cache(str(tmp_path / "cache"), data_fingerprint(shards, OPTIONS))
    read.clear()

    def remembers(batch):
        read.extend(batch.keys)
        return encode_drawn(batch)

    count, fingerprint = made(shards, tmp_path / "cache", model=remembers)
    assert sorted(read) == [sign.key for sign in SIGNS[10:]]
    made(shards, tmp_path / "at_once")
    assert count == len(SIGNS)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == sorted(
        path.name for path in (tmp_path / "at_once").iterdir()
    )
    for path in (tmp_path / "cache").iterdir():
        assert path.read_bytes() == (tmp_path / "at_once" / path.name).read_bytes()
    assert open_cache(str(tmp_path / "cache"), fingerprint).samples == len(SIGNS)


@pytest.mark.parametrize("name", ["shards", "shapes", "fonts", "autoencoder"])
def test_a_stale_cache_is_refused_and_says_what_differs(shards, tmp_path, name):
    fingerprint = {**data_fingerprint(shards, OPTIONS), "autoencoder": "abc"}
    made(shards, tmp_path / "cache", fingerprint=fingerprint)
    with pytest.raises(UserError, match=rf"was made from something else \({name} differ\)"):
        open_cache(str(tmp_path / "cache"), {**fingerprint, name: "something else"})


@pytest.mark.parametrize("manifest", [b"{", b"\xff", b"[]", b"[" * 100_000, b'{"about": {"fingerprint": ["shards"]}}'])
def test_a_manifest_of_other_shards_is_not_a_cache(shards, tmp_path, manifest):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "manifest.json").write_bytes(manifest)
    with pytest.raises(UserError, match=r"^data\.cache: .*manifest\.json is not the manifest of a cache"):
        open_cache(str(tmp_path / "cache"), data_fingerprint(shards, OPTIONS))
    for place in (tmp_path / "none", "x" * 300, "pipe:cat", "s3://bucket/cache"):
        with pytest.raises(UserError, match=r"^data\.cache: "):
            open_cache(str(place), data_fingerprint(shards, OPTIONS))


def test_errors_about_a_damaged_cache_name_data_cache(shards, tmp_path):
    _, fingerprint = made(shards, tmp_path / "cache")
    shard = tmp_path / "cache/000000.tar"
    shard.write_bytes(shard.read_bytes()[:10240])
    with pytest.raises(UserError, match=r"^data\.cache: .*000000\.tar has 10240 bytes.* make the cache .* again"):
        open_cache(str(tmp_path / "cache"), fingerprint)
    shard.unlink()
    with pytest.raises(UserError, match=r"^data\.cache: .*000000\.tar is missing"):
        open_cache(str(tmp_path / "cache"), fingerprint)
    for path in (tmp_path / "cache").glob("*.tar"):
        path.unlink()
    with pytest.raises(UserError, match=r"^data\.cache: there are no shards"):
        open_cache(str(tmp_path / "cache"), fingerprint)


def test_a_cache_whose_samples_do_not_read_is_named(shards, tmp_path):
    _, fingerprint = made(shards, tmp_path / "cache")
    for path in (tmp_path / "cache").glob("*.tar"):
        path.write_bytes(path.read_bytes().replace(b"NUMPY", b"MUNPY"))
    cached = open_cache(str(tmp_path / "cache"), fingerprint)
    with pytest.raises(UserError, match=r"^data\.cache: 20 of the first 20 .* make the cache again"):
        list(ShardBatches(cached, OPTIONS, 20))


def test_other_shards_are_never_overwritten(shards, tmp_path):
    made(shards, tmp_path / "cache")
    with pytest.raises(UserError, match="holds a finished cache or shards"):
        made(shards, tmp_path / "cache")
    with pytest.raises(UserError, match="holds shards already"):
        made(shards, tmp_path / "shards")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/begun.json").write_text(json.dumps({"cache_version": 0}))
    with pytest.raises(UserError, match="begun for other models"):
        made(shards, tmp_path / "begun")


def test_states_beyond_float16_are_reported(shards, tmp_path):
    def overflows(batch):
        return dataclasses.replace(encode_drawn(batch), v=torch.full((len(batch.keys), 3), 1e6))

    with pytest.raises(UserError, match="exceed float16"):
        made(shards, tmp_path / "cache", model=overflows)


def test_arrays_with_objects_are_bad_samples(shards, tmp_path):
    from vlad.data.decoding import BadSample
    from vlad.data.latent_cache.format import LATENTS, decode_cached

    payload = tmp_path / "array.npy"
    np.save(payload, np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(BadSample, match="not an array of float16"):
        decode_cached({"json": b'{"caption": "a"}', LATENTS: payload.read_bytes()}, "key")
    claims_more = b"\x93NUMPY\x01\x00v\x00{'descr': '<f2', 'fortran_order': False, 'shape': (99999999999,), }"
    with pytest.raises(BadSample):
        decode_cached({"json": b'{"caption": "a"}', LATENTS: claims_more.ljust(128) + b"\n"}, "key")


def test_a_digest_changes_with_any_weight():
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    before = weights_digest(module)
    assert weights_digest(module) == before
    with torch.no_grad():
        module.weight[0, 0] += 1e-6
    assert weights_digest(module) != before
    assert weights_digest(nn.Linear(3, 2).half()) != weights_digest(nn.Linear(3, 2))
