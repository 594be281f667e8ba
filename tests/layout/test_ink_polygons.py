"""Polygons of OCR engines tightened to the ink of their lines."""

import numpy as np
import pytest

from vlad.data.options import SyntheticOptions
from vlad.data.poster_template import render_poster
from vlad.data.signs import render_sign
from vlad.layout.glyph_map import render_glyph_map, render_line
from vlad.layout.ink_polygons import tighten_polygon
from vlad.layout.polygons import box_polygon, polygon_iou
from vlad.types import Layout, TextLine

TILTED = ((0.2, 0.35), (0.78, 0.25), (0.8, 0.45), (0.22, 0.55))


def enlarged(line: TextLine, room: float) -> TextLine:
    """The line with a margin of `room` times its height on each side, as a text detector leaves it."""
    quad = np.array(line.polygon)
    along, down = quad[1] - quad[0], quad[3] - quad[0]
    step = along / np.linalg.norm(along) * np.linalg.norm(down) * room, down * room
    signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    moved = [tuple(point + a * step[0] + b * step[1]) for point, (a, b) in zip(quad, signs, strict=True)]
    return TextLine(line.text, tuple((float(x), float(y)) for x, y in moved))


def painted(line: TextLine, size: int, ground: tuple[int, int, int], ink: tuple[int, int, int]) -> np.ndarray:
    coverage = render_glyph_map(Layout((line,)), size, size)[..., None]
    return (np.array(ground) + coverage * (np.array(ink) - np.array(ground))).round().astype(np.uint8)


@pytest.mark.parametrize("size", [64, 256])
def test_a_region_with_a_margin_is_tightened_to_the_line_s_own_polygon(size):
    before, after = [], []
    for index in range(20):
        sample = render_sign(SyntheticOptions(size_pixels=size, line_shares=(1.0, 0.0, 0.0)), index)
        (line,) = sample.layout.lines
        loose = enlarged(line, 0.3)
        before.append(polygon_iou(loose.polygon, line.polygon))
        after.append(polygon_iou(tighten_polygon(loose, sample.image).polygon, line.polygon))
    assert np.mean(before) < 0.65
    assert np.mean(after) > 0.9
    assert min(after) > 0.8


def test_rules_and_shapes_beside_the_letters_are_left_out():
    found = []
    for index in range(20):
        poster = render_poster(index)  # a double frame at both sides, a sun below
        (line,) = poster.layout.lines
        found.append(polygon_iou(tighten_polygon(enlarged(line, 0.3), poster.image).polygon, line.polygon))
    assert np.mean(found) > 0.9


def test_tilted_lines_stay_tilted():
    line = TextLine("TILTED", TILTED)
    image = painted(line, 256, (240, 230, 40), (20, 30, 120))
    found = tighten_polygon(enlarged(line, 0.25), image)
    assert polygon_iou(found.polygon, TILTED) > 0.9


def test_a_tilt_of_a_pixel_is_the_engine_s_rounding():
    line = TextLine("STRAIGHT", box_polygon(0.1, 0.4, 0.9, 0.55))
    image = painted(line, 64, (255, 255, 255), (0, 0, 0))
    rounded = TextLine("STRAIGHT", ((4 / 64, 22 / 64), (60 / 64, 23 / 64), (60 / 64, 39 / 64), (4 / 64, 38 / 64)))
    found = tighten_polygon(rounded, image)
    assert len({y for _, y in found.polygon}) == 2
    assert polygon_iou(found.polygon, line.polygon) > 0.9


def test_the_glyph_map_of_a_tightened_polygon_covers_the_image_s_ink():
    for text in ("ILL", "Jumpy", "A", "1 to 7"):  # narrow and hanging letters, a single one, spaces
        line = TextLine(text, box_polygon(0.3, 0.4, 0.3 + 0.08 * len(text), 0.55))
        image = painted(line, 256, (250, 250, 250), (10, 10, 10))
        found = tighten_polygon(enlarged(line, 0.3), image)
        ink, drawn = (render_glyph_map(Layout((each,)), 256, 256) > 0.5 for each in (line, found))
        assert (ink & drawn).sum() / (ink | drawn).sum() > 0.8, text


def test_a_line_without_separable_ink_stays_unchanged():
    box = box_polygon(0.2, 0.4, 0.8, 0.6)
    rng = np.random.default_rng(0)
    plain = np.full((64, 64, 3), 90, dtype=np.uint8)
    faint = plain.copy()
    faint[30:34, 20:44] += 8
    noise = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
    dot = plain.copy()
    dot[31:33, 31:33] = 255
    for image in (plain, faint, dot):
        assert tighten_polygon(TextLine("WORD", box), image).polygon == box
    assert polygon_iou(tighten_polygon(TextLine("WORD", box), noise).polygon, box) > 0.8
    curved = (*box[:2], (0.8, 0.5), *box[2:], (0.2, 0.5))
    assert tighten_polygon(TextLine("WORD", curved), noise).polygon == curved
    assert tighten_polygon(TextLine(" ", box), noise).polygon == box


def test_a_region_without_a_margin_keeps_its_first_letter():
    """Tesseract's boxes end where the letters do."""
    coverage = np.zeros((128, 128), dtype=np.uint8)
    box = box_polygon(0.2, 0.4, 0.8, 0.6)
    render_line(coverage, "SAIL", box)
    image = np.repeat(coverage[..., None], 3, axis=2)
    assert polygon_iou(tighten_polygon(TextLine("SAIL", box), image).polygon, box) > 0.9


@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("grounds", [((20, 30, 120), (200, 40, 40)), ((0, 0, 0), (120, 90, 60))])
def test_letters_that_cross_two_grounds_are_tightened(across, grounds):
    """A poster's panel ends within the line: neither colour alone is the background."""
    line = TextLine("MARKET", box_polygon(0.2, 0.4, 0.8, 0.55))
    first, second = (painted(line, 256, ground, (255, 255, 255)) for ground in grounds)
    split = np.arange(256) < (128 if across else 122)
    image = np.where(split[None, :, None] if across else split[:, None, None], first, second)
    found = tighten_polygon(enlarged(line, 0.3), image)
    assert polygon_iou(found.polygon, line.polygon) > 0.85


def test_a_gradient_is_one_ground():
    line = TextLine("MARKET", box_polygon(0.2, 0.4, 0.8, 0.55))
    coverage = render_glyph_map(Layout((line,)), 256, 256)[..., None]
    ground = np.linspace((0, 0, 60), (200, 60, 60), 256)[None].repeat(256, axis=0)
    image = (ground + coverage * (255 - ground)).round().astype(np.uint8)
    assert polygon_iou(tighten_polygon(enlarged(line, 0.3), image).polygon, line.polygon) > 0.85
