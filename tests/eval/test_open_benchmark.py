"""The open benchmark: the same everywhere, held out from training, and readable."""

import json
import string
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlad.data import signs as synthetic
from vlad.data.options import SyntheticOptions
from vlad.data.words import all_words, held_out_words, rare_words, training_words
from vlad.eval.alignment.alignment_prompts import read_alignment_prompts
from vlad.eval.alignment.alignment_scores import bag_of_words
from vlad.eval.benchmark.prompt_files import quoted, read_prompt_files
from vlad.eval.open_benchmark import scenes as benchmark_scenes
from vlad.eval.open_benchmark.alignment_subsets import ALIGNMENT_SUBSETS, NUMBERS
from vlad.eval.open_benchmark.scenes import SHAPES
from vlad.eval.open_benchmark.text_subsets import SUBSETS
from vlad.eval.open_benchmark.write_benchmark import make_scene, render_scene, scenes, write_benchmark
from vlad.eval.options import OpenBenchmarkOptions
from vlad.eval.prompt_facts import facts_of
from vlad.layout.fonts import missing_glyphs
from vlad.layout.polygons import bounding_box
from vlad.models.text_encoder.prompt import parse_prompt
from vlad.utils.errors import UserError

SMALL = OpenBenchmarkOptions(count=3, size_pixels=64)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_options_make_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_benchmark(SMALL, tmp_path / name)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert len(list((tmp_path / "a" / "pictures").glob("*.png"))) == 3 * (len(SUBSETS) + len(ALIGNMENT_SUBSETS))
    # Once more where it is: nothing is done, and another benchmark is refused.
    assert write_benchmark(SMALL, tmp_path / "a") == json.loads(files(tmp_path / "b")["benchmark.json"])
    with pytest.raises(UserError, match="holds another benchmark"):
        write_benchmark(OpenBenchmarkOptions(count=4, size_pixels=64), tmp_path / "a")


def test_the_text_subsets_are_those_of_version_1_and_an_older_folder_gets_the_others(tmp_path: Path) -> None:
    about = write_benchmark(SMALL, tmp_path)
    # Version 1 as it was written before there were other subsets.
    assert about["sha256"] == "c52caac98374a99e331382e38a69fdc3fb08c67593b92a5f0d65915c2d0a1135"
    whole = files(tmp_path)
    older = {name: value for name, value in about.items() if not name.startswith("alignment")}
    (tmp_path / "benchmark.json").write_text(json.dumps(older), encoding="utf-8")
    for name in ("alignment.jsonl", *(f"pictures/{subset}-0001.png" for subset in ALIGNMENT_SUBSETS)):
        (tmp_path / name).unlink()
    assert write_benchmark(SMALL, tmp_path) == about
    assert files(tmp_path) == whole
    (tmp_path / "benchmark.json").write_text(json.dumps({**about, "alignment_version": 0}), encoding="utf-8")
    with pytest.raises(UserError, match="holds another benchmark"):
        write_benchmark(SMALL, tmp_path)


def test_a_larger_benchmark_begins_with_the_smaller_one() -> None:
    large = {scene.key: scene for scene in scenes(OpenBenchmarkOptions(count=5, size_pixels=512))}
    assert all(large[scene.key] == scene for scene in scenes(SMALL))
    assert make_scene(OpenBenchmarkOptions(seed=1), "lines", 0) != large["lines-0000"]


def test_the_prompt_file_is_read_back_with_polygons_and_references(tmp_path: Path) -> None:
    write_benchmark(SMALL, tmp_path)
    prompts = read_prompt_files([tmp_path / "prompts.jsonl"])
    for prompt, scene in zip(prompts, scenes(SMALL), strict=True):
        assert (prompt.key, prompt.subset, prompt.text) == (scene.key, scene.subset, scene.prompt)
        # What the prompt quotes is what the image shows, in this order.
        assert prompt.strings == quoted(scene.prompt) == tuple(line.text for line in scene.layout.lines)
        assert prompt.reference is not None
        assert (np.asarray(Image.open(prompt.reference)) == render_scene(scene, 64)).all()


@pytest.mark.parametrize("split", ["dev", "test"])
def test_every_entry_can_be_drawn_and_stands_inside_its_image(split: str) -> None:
    subsets = (*SUBSETS, *ALIGNMENT_SUBSETS)
    for scene in scenes(OpenBenchmarkOptions(split=split, count=30), subsets):  # type: ignore[arg-type]
        assert parse_prompt(scene.prompt).strings
        for line in scene.layout.lines:
            assert not missing_glyphs(line.text)
            left, top, right, bottom = bounding_box(line.polygon)
            assert 0 < left < right < 1 and 0 < top < bottom < 1
        boxes = [carrier.box for carrier in scene.carriers]
        assert len(set(boxes)) == len(boxes)


def test_small_print_is_small() -> None:
    heights = []
    for index in range(30):
        _, *small = make_scene(OpenBenchmarkOptions(), "small", index).layout.lines
        heights += [bounding_box(line.polygon)[3] - bounding_box(line.polygon)[1] for line in small]
    assert 0.018 < min(heights) < 0.03 < max(heights) <= 0.05


def can_be_drawn_in_training(text: str) -> bool:
    """Whether the training images' renderer may write this: training words, and runs of capitals and digits."""
    if text in training_words():
        return True
    reserved = text in held_out_words() or text in rare_words()
    return not reserved and set(text) <= set(string.ascii_uppercase + string.digits)


def test_training_never_draws_what_the_test_split_asks_for() -> None:
    subsets = (*SUBSETS, *ALIGNMENT_SUBSETS)
    asked = {line.text for scene in scenes(OpenBenchmarkOptions(count=60), subsets) for line in scene.layout.lines}
    assert len(asked) > 400
    assert not any(map(can_be_drawn_in_training, asked))
    # Words that a prompt writes small or joins are held out as well.
    words = {word.upper() for text in asked for word in text.split() if word.isascii() and word.isalpha()}
    assert words.isdisjoint(training_words())
    assert words & rare_words() and words & set(held_out_words())


def test_rare_words_are_no_training_words_and_random_strings_are_checked_against_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert rare_words().isdisjoint(all_words())
    monkeypatch.setattr(synthetic, "LETTERS", "AB")
    monkeypatch.setattr(synthetic, "rare_words", lambda: frozenset({"AAA", "AAB", "ABA", "ABB", "BBB", "BBA", "BAB"}))
    options = SyntheticOptions(min_letters=3, max_letters=3, random_string_share=1.0, digit_share=0.0)
    rng = np.random.default_rng(0)
    assert {synthetic._choose_string(rng, options, ()) for _ in range(50)} == {"BAA"}


@pytest.mark.parametrize("wrong", [{"count": 0}, {"size_pixels": 8}, {"seed": -1}, {"split": "train"}])
def test_options_that_make_no_benchmark_are_refused(wrong: dict) -> None:
    with pytest.raises(UserError, match="The benchmark needs"):
        OpenBenchmarkOptions(**wrong)


@pytest.mark.parametrize("subset", ["relations", "synonyms"])
def test_hard_negatives_use_the_words_of_their_prompt(subset: str) -> None:
    for scene in scenes(OpenBenchmarkOptions(count=30), [subset]):
        facts, texts = facts_of(scene.prompt), [one.prompt for one in scene.texts.negatives]
        assert len(facts.relations) == 1 and len(facts.colours) == 2
        bags = bag_of_words([scene.prompt, *texts])
        assert all((bags[text] == bags[scene.prompt]).all() for text in texts)
        assert [one.kind for one in scene.texts.negatives] == ["order", "colours"]
        order, colours = map(facts_of, texts)
        assert (order.colours, order.objects) == (facts.colours, facts.objects) and order.relations != facts.relations
        assert colours.relations == facts.relations and colours.colours.isdisjoint(facts.colours)
        # What is reworded says the same, in other words.
        for text in scene.texts.paraphrases:
            assert facts_of(text).colours == facts.colours
            assert quoted(text) == quoted(scene.prompt)
            if not text.endswith(" it"):
                assert facts_of(text).relations == facts.relations
    assert len(scene.texts.paraphrases) == {"relations": 1, "synonyms": 3}[subset]


def runs(marks: np.ndarray) -> int:
    """How many unbroken runs of True there are."""
    return int(np.diff(np.concatenate([[0], marks.astype(int), [0]])).clip(min=0).sum())


def test_counted_shapes_are_rendered() -> None:
    counts = set()
    for scene in scenes(OpenBenchmarkOptions(count=20), ["counting"]):
        *shapes, sign = scene.carriers
        image = render_scene(scene, 256)
        # Columns in which a shape's colour stands, on the shapes' side of the sign.
        left, top, right, bottom = (round(value * 256) for value in shapes[0].box)
        own = (image[top:bottom] == image[(top + bottom) // 2, left : (left + right) // 2 + 1][-1]).all(axis=2)
        if shapes[0].kind != "ring":  # whose middle is bare
            assert runs(own.any(axis=0)) == len(shapes)
        said = scene.prompt if scene.prompt.split()[0] in NUMBERS.values() else ""
        assert said.startswith(NUMBERS[len(shapes)])
        others = {one.prompt.split()[0] for one in scene.texts.negatives}
        assert others == set(NUMBERS.values()) - {NUMBERS[len(shapes)]}
        assert scene.texts.paraphrases[0].startswith(f"{len(shapes)} ") and sign.kind == "sign"
        counts.add(len(shapes))
    assert counts == set(NUMBERS)


def test_shape_masks_cover_the_middle_or_the_edge_and_no_corner() -> None:
    for kind in SHAPES:
        covered = benchmark_scenes._shape_mask(kind, 40, 60)
        assert covered.shape == (40, 60)
        assert not covered[0, 0] and not covered[20, 2]  # the box is wider than the shape
        assert covered[20, 30] == (kind != "ring")
        assert 0.2 < covered.sum() / 40**2 < 0.85
        # The same mirrored.
        assert (covered == covered[:, ::-1]).all()


def test_a_templates_image_is_asked_for_its_word_and_its_colour(tmp_path: Path) -> None:
    write_benchmark(SMALL, tmp_path)
    entries = [entry for entry in read_alignment_prompts(tmp_path / "alignment.jsonl") if entry.subset == "templates"]
    for entry in entries:
        word, colour = entry.texts.zero_shot
        assert entry.prompt.endswith(f' {colour.answer} sign that says "{word.answer}"')
        assert (word.task, colour.task) == ("word", "colour")
        assert all(quoted(template.replace("{}", word.answer)) == (word.answer,) for template in word.templates)
        assert len(word.templates) >= 5 and len(colour.templates) >= 5
