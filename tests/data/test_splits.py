"""The training/held-out split, repeats, trigger words and mixtures."""

from pathlib import Path

import numpy as np
import pytest

from vlad.data.dataset import ShardBatches, first_samples
from vlad.data.options import StreamOptions, SyntheticOptions
from vlad.data.shard_sets import ShardSets, check_enough_samples, open_sets
from vlad.data.shards.writer import write_manifest, write_shards
from vlad.data.signs import render_sign
from vlad.data.splits import hold_out, mix_sets, prefix_captions, repeat_samples
from vlad.types import Layout, Sample
from vlad.utils.errors import UserError


def signs(folder: Path, count: int, seed: int = 0) -> ShardSets:
    options = SyntheticOptions(size_pixels=16, count=count, seed=seed, max_letters=4)
    folder.mkdir()
    samples = (render_sign(options, index) for index in range(count))
    write_manifest(folder, write_shards(samples, folder, 7), {})
    return open_sets({str(folder): 1.0})


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> ShardSets:
    return signs(tmp_path_factory.mktemp("choosing") / "signs", 20)


def keys_read(sets: ShardSets, batches: int, batch_size: int = 5) -> list[str]:
    options = StreamOptions(image_pixels=16, batch_size=batch_size, workers=0, shuffle_window=6, seed=3)
    return [key for batch in ShardBatches(sets, options, batches) for key in batch.keys]


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_held_out_samples_are_never_trained_on_and_all_others_are(sets: ShardSets, share: float) -> None:
    training, held_out = hold_out(sets, share, seed=1)
    held = {sample.key for sample in first_samples(held_out, StreamOptions(image_pixels=16), 100)}
    assert len(held) == max(1, round(share * 20))
    read = keys_read(training, batches=40)
    assert held.isdisjoint(read)
    assert held | set(read) == {f"{index:08d}" for index in range(20)}


def test_the_seed_decides_what_is_held_out(sets: ShardSets) -> None:
    first, again, other = (hold_out(sets, 0.3, seed)[1].choices[0] for seed in (1, 1, 2))
    assert first is not None and again is not None and other is not None
    assert first.tolist() == again.tolist() != other.tolist()


def test_holding_out_all_samples_is_refused(sets: ShardSets) -> None:
    with pytest.raises(UserError, match="leaves none to train on"):
        hold_out(sets, 0.99, 0)


def test_an_epoch_reads_each_sample_as_often_as_repeats_says(sets: ShardSets) -> None:
    training, _ = hold_out(sets, 0.2, 0)
    read = keys_read(repeat_samples(training, 3), batches=4, batch_size=12)  # 16 x 3
    assert sorted(np.unique(read, return_counts=True)[1]) == [3] * 16


def test_repeats_fill_a_batch(sets: ShardSets) -> None:
    with pytest.raises(UserError, match=r"20 samples are too few.*data.repeats=2"):
        check_enough_samples(sets, 30, 1)
    check_enough_samples(repeat_samples(sets, 2), 30, 1)
    assert len(keys_read(repeat_samples(sets, 2), 1, batch_size=30)) == 30


def test_the_fingerprint_covers_the_choice_of_samples(sets: ShardSets) -> None:
    kinds = [
        sets,
        hold_out(sets, 0.2, 0)[0],
        hold_out(sets, 0.2, 1)[0],
        repeat_samples(sets, 2),
        prefix_captions(sets, "neon"),
    ]
    assert len({kind.fingerprint for kind in kinds}) == len(kinds)


def test_a_trigger_word_is_in_every_caption_of_its_own_set_once(sets: ShardSets, tmp_path: Path) -> None:
    other = signs(tmp_path / "other", 10, seed=5)
    both = mix_sets(prefix_captions(sets, "neon style"), other, share=0.25)
    options = StreamOptions(image_pixels=16, batch_size=8, workers=0, shuffle_window=6)
    captions = [caption for batch in ShardBatches(both, options, 250) for caption in batch.captions]
    with_word = [caption for caption in captions if caption.startswith("neon style, a")]
    assert len(with_word) / len(captions) == pytest.approx(0.75, abs=0.002)  # 2000 places: two blocks of the mixture
    assert not [caption for caption in captions if caption not in with_word and "neon" in caption]
    named = first_samples(prefix_captions(sets, "that says"), options, 20)
    assert {sample.caption.count("that says") for sample in named} == {1}


@pytest.mark.parametrize(
    ("word", "caption", "is_there"),
    [
        ("art", "a party at night", False),
        ("art", "art, a sign", True),
        ("art", "a sign, art", True),
        ("art", "an art-deco sign", False),
        ("art", "state-of-the-art", False),
        ("neon style", "neon styles", False),
        ("neon style", "a sign, neon style.", True),
        ("v1.0", "v1x0", False),
        ("[v]", "a [v] sign", True),
        ("élan", "delan", False),
    ],
)
def test_a_prefix_is_there_only_as_words_of_its_own(sets: ShardSets, word: str, caption: str, is_there: bool) -> None:
    prefixed = prefix_captions(sets, word)
    sample = Sample(key="a", caption=caption, image=np.zeros((2, 2, 3), np.uint8), layout=Layout(()))
    assert prefixed.with_prefix(0, sample).caption == (caption if is_there else f"{word}, {caption}")
