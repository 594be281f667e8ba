"""Rendered posters: a function of options and index, polygons at the ink, captions that quote every line."""

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from vlad.data.options import DataOptions, PosterOptions
from vlad.data.posters.backgrounds import HELD_OUT_TEXTURES, PALETTE, TEXTURES, background
from vlad.data.posters.captions import place_words
from vlad.data.posters.contrast import MINIMUM_CONTRAST, contrast, contrasts_with, relative_luminance
from vlad.data.posters.lettering import Setting, cap_height, ink_mask, largest_size, letter
from vlad.data.posters.objects import SHAPES, shape_mask
from vlad.data.posters.render import held_out_posters, render_poster
from vlad.data.posters.scenes import KINDS
from vlad.data.posters.texts import Writer
from vlad.data.render_shards import HELD_OUT_SAMPLES, render_shards
from vlad.data.shards.reader import index_shards
from vlad.data.words import held_out_words, rare_words, training_words
from vlad.layout.polygons import bounding_box
from vlad.layout.typefaces import TYPEFACES, font, typefaces
from vlad.models.text_encoder.prompt import parse_prompt
from vlad.utils.errors import UserError

DENSE = PosterOptions(density=1.0, max_lines=6)


@pytest.mark.parametrize("options", [PosterOptions(density=0.0), DENSE, PosterOptions(size_pixels=256, seed=3)])
def test_a_poster_is_a_function_of_options_and_index(options: PosterOptions) -> None:
    first, again, other = (render_poster(options, index) for index in (7, 7, 8))

    assert (first.image == again.image).all() and first.caption == again.caption and first.layout == again.layout
    assert first.image.shape == (options.size_pixels, options.size_pixels, 3)
    assert (first.image != other.image).any()


def test_captions_quote_every_line_and_no_other() -> None:
    for index in range(60):
        sample = render_poster(DENSE, index)
        quoted = parse_prompt(sample.caption).strings
        assert sorted(quoted) == sorted(line.text for line in sample.layout.lines), sample.caption


def test_lines_stand_inside_the_image_and_are_large_enough() -> None:
    for index in range(60):
        sample = render_poster(DENSE, index)
        assert sample.layout.lines
        for line in sample.layout.lines:
            left, top, right, bottom = bounding_box(line.polygon)
            assert -0.02 <= left < right <= 1.02 and -0.02 <= top < bottom <= 1.02, (index, line)
            # A line of small letters alone is lower than its capitals would be.
            assert bottom - top >= 0.5 * DENSE.min_letter_height


def test_training_posters_hold_no_held_out_word_typeface_or_background() -> None:
    held_out = {*held_out_words(), *rare_words()}
    trained = [render_poster(PosterOptions(), index) for index in range(60)]
    words = {
        word.strip(".,!?'").removesuffix("'S").upper()
        for s in trained
        for line in s.layout.lines
        for word in line.text.split()
    }
    assert not words & held_out
    known = {face.name for face in typefaces(held_out=False)}
    assert {line.font for sample in trained for line in sample.layout.lines} <= known
    tested = dataclasses.replace(
        PosterOptions(),
        held_out_words=True,
        held_out_typefaces=True,
        held_out_backgrounds=True,
        random_string_share=0.0,
    )
    fonts = {line.font for index in range(10) for line in render_poster(tested, index).layout.lines}
    assert fonts <= {face.name for face in typefaces(held_out=True)}
    assert not TEXTURES.keys() & HELD_OUT_TEXTURES.keys()


def test_every_kind_comes_with_each_of_its_numbers_of_lines() -> None:
    for made, counts, _ in KINDS:
        for lines in counts:
            plan = made(np.random.default_rng(0), lines)
            assert len(plan.slots) == lines, made.__name__


@pytest.mark.parametrize(
    "setting",
    [
        Setting("archivo"),
        Setting("eb-garamond", tracking=0.1),
        Setting("oswald", slant=12.0),
        Setting("nunito", turn=-8.0),
        Setting("zilla-slab", arc=70.0),
        Setting("zilla-slab", arc=-50.0),
    ],
)
def test_the_polygon_follows_the_ink(setting: Setting) -> None:
    lettering = letter("Hinge", setting, 40, (100.0, 100.0))
    canvas = np.zeros((200, 200, 3), dtype=np.float32)
    window = lettering.window_of(canvas)
    window += lettering.coverage[: window.shape[0], : window.shape[1], None]
    rows, columns = np.nonzero(canvas[..., 0] > 100)
    outline = np.array(lettering.points, dtype=np.float32)
    inside = [
        cv2.pointPolygonTest(outline, (float(x) + 0.5, float(y) + 0.5), measureDist=True)
        for x, y in zip(columns, rows, strict=True)
    ]
    assert min(inside) > -2, "no ink outside"
    shrunk = [x < 2.5 for x in inside]
    assert any(shrunk), "and the polygon no larger than the ink"
    area = cv2.contourArea(outline)
    straight = ink_mask("Hinge", Setting("archivo" if setting.arc == 0 else setting.typeface), 40)
    assert 0.5 * straight.size < area < 2 * straight.size


def test_the_largest_size_fits_and_a_larger_one_does_not() -> None:
    setting = Setting("anton")
    size = largest_size("Fresh bread", setting, 100, 30)
    height, width = ink_mask("Fresh bread", setting, size).shape
    assert width <= 102 and height <= 31
    height, width = ink_mask("Fresh bread", setting, size + 4).shape
    assert width > 100 or height > 30


def test_every_typeface_has_every_character_that_texts_use() -> None:
    for face in TYPEFACES:
        missing = bytes(font(face.name, 32).getmask("\U0010ffff"))
        for character in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789$£€%&'.,!?:-":
            assert bytes(font(face.name, 32).getmask(character)) != missing, (face.name, character)
        assert cap_height(face.name, 32) > 12


def test_colours_of_lines_stand_out() -> None:
    pixels = np.array([PALETTE["yellow"]] * 10, dtype=float)
    scores = contrasts_with(pixels)
    assert scores["black"] > 10 and scores["cream"] < 2
    assert contrast(1.0, 0.0) == pytest.approx(21.0)
    assert float(relative_luminance(np.array((255.0, 255.0, 255.0)))) == pytest.approx(1.0)
    assert MINIMUM_CONTRAST > 3


def test_objects_have_boxes_and_stand_in_the_caption() -> None:
    found = [render_poster(DENSE, index) for index in range(80)]
    with_objects = [sample for sample in found if len(sample.objects) > 1]
    assert with_objects
    for sample in with_objects:
        for entry in sample.objects[1:]:
            assert entry.phrase in sample.caption
            left, top, right, bottom = entry.box
            assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_fill_their_square(name: str) -> None:
    mask = shape_mask(name, 40)
    assert mask.shape == (40, 40) and 0.15 < (mask > 127).mean() <= 1


@pytest.mark.parametrize("texture", [*TEXTURES, *HELD_OUT_TEXTURES])
def test_backgrounds_keep_their_colour(texture: str) -> None:
    made = background(np.random.default_rng(1), texture, "green", 64)
    assert made.shape == (64, 64, 3) and made.dtype == np.float32 and made.min() >= 0 and made.max() <= 255
    assert made[..., 1].mean() > made[..., 0].mean()


def test_photographs_become_backgrounds(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 120, 3), dtype=np.uint8)).save(tmp_path / "a.jpg")
    sample = render_poster(PosterOptions(photos=str(tmp_path), photo_share=1.0), 0)
    assert sample.image.std() > 20
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"data\.posters\.photos: there is no"):
        render_poster(PosterOptions(photos=str(tmp_path / "none"), photo_share=1.0), 0)
    (tmp_path / "none" / "b.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"b\.png cannot be read"):
        render_poster(PosterOptions(photos=str(tmp_path / "none"), photo_share=1.0), 0)


def test_texts_are_as_long_as_asked_at_most() -> None:
    writer = Writer(np.random.default_rng(0), random_share=0.3)
    for role in ("title", "name", "phrase", "price", "date", "item", "number"):
        for longest in (4, 8, 16):
            assert 0 < len(writer.text(role, longest)) <= longest


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (0.2, 0.2, "in the top left corner"),
        (0.5, 0.9, "at the bottom"),
        (0.5, 0.5, "in the middle"),
        (0.9, 0.5, "on the right"),
    ],
)
def test_places_are_named_by_their_middle(x: float, y: float, words: str) -> None:
    assert place_words(x, y) == words


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_lines": 7}, "at most 6"),
        ({"min_lines": 3, "max_lines": 2}, "min_lines"),
        ({"size_pixels": 32}, "size_pixels"),
        ({"max_characters": 2}, "max_characters"),
        ({"min_letter_height": 0.5}, "min_letter_height"),
        ({"density": 1.5}, "density"),
    ],
)
def test_options_that_no_image_holds_are_refused(given: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PosterOptions(**given)  # type: ignore[arg-type]


def test_a_config_s_posters_become_shards_and_a_held_out_set(tmp_path: Path) -> None:
    data = DataOptions(
        shards=str(tmp_path / "train"),
        held_out=str(tmp_path / "held"),
        posters=PosterOptions(count=12, size_pixels=64),
    )
    render_shards(data)
    assert index_shards(str(tmp_path / "train")).samples == 12
    assert index_shards(str(tmp_path / "held")).samples == HELD_OUT_SAMPLES
    manifest = json.loads((tmp_path / "train" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["about"]["options"]["density"] == 0.5
    trained = {*training_words()}
    for sample in held_out_posters(PosterOptions(), 4):
        for line in sample.layout.lines:
            assert not {word.strip(".,!?'").upper() for word in line.text.split() if len(word) > 6} & trained
