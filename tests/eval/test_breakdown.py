"""Which strings count as read, and the bins they fall in."""

from pathlib import Path

import pytest
from PIL import Image

from vlad.eval.benchmark.breakdown import Breakdown, case_of, draw_breakdown, height_share, strings_read
from vlad.eval.intervals import wilson_interval
from vlad.eval.protocols.protocol import OCRResult
from vlad.layout.polygons import box_polygon
from vlad.types import TextLine


def ocr_result(*lines: str) -> OCRResult:
    return OCRResult(tuple(TextLine(text, box_polygon(0, 0.1 * i, 1, 0.1 * i + 0.08)) for i, text in enumerate(lines)))


@pytest.mark.parametrize(
    ("targets", "lines", "found"),
    [
        (("HOUSE",), ("HOUSE",), [(True, True)]),
        (("HOUSE",), ("house",), [(True, False)]),
        (("HOUSE",), ("HOU", "SE"), [(True, True)]),  # taken for two
        (("BIG SALE",), ("BIGSALE now",), [(True, True)]),  # taken for one
        (("HOUSE",), ("HOUSES",), [(False, False)]),
        (("A",), ("BANANA",), [(False, False)]),  # not a part of a word
        (("go", "go"), ("go",), [(True, True), (False, False)]),  # each run serves once
        (("Go",), ("GO", "Go"), [(True, True)]),  # the one in the right case
        (("Go", "GO"), ("GO", "Go"), [(True, True), (True, True)]),
        (("一二",), ("一 二",), [(True, True)]),
        (("x",), (), [(False, False)]),
    ],
)
def test_target_strings_are_found_in_runs_of_words(targets, lines, found):
    assert strings_read(targets, ocr_result(*lines)) == found


@pytest.mark.parametrize(
    ("text", "case"),
    [
        ("HOUSE 7", "upper"),
        ("house", "lower"),
        ("Hello World", "capitalised"),
        ("Hello world", "mixed"),
        ("iPhone", "mixed"),
        ("2024", "none"),
        ("生日", "none"),
    ],
)
def test_letter_case(text, case):
    assert case_of(text) == case


def test_heights_are_shares_of_the_image_s_height_also_of_tilted_text():
    assert height_share(box_polygon(0.1, 0.2, 0.9, 0.3)) == pytest.approx(0.1)
    # Turned by 45 degrees in an image twice as wide as high: sides of (0.05 * 2, 0.1) of its height.
    tilted = ((0.2, 0.2), (0.4, 0.6), (0.35, 0.7), (0.15, 0.3))
    assert height_share(tilted, aspect=2) == pytest.approx(0.02**0.5)


@pytest.mark.parametrize("count", [1, 2, 3, 12, 57, 1000])
def test_an_interval_holds_its_share_also_at_both_ends(count):
    for right in {0, 1, count // 2, count}:
        low, high = wilson_interval(right, count)
        assert 0 <= low <= right / count <= high <= 1
    # The textbook formula for 1 in 12, worked out on paper.
    assert wilson_interval(1, 12) == pytest.approx((0.0149, 0.3539), abs=2e-4)


def test_counts_by_bin(tmp_path: Path):
    breakdown = Breakdown()
    small, large = box_polygon(0, 0, 1, 0.03), box_polygon(0, 0, 1, 0.4)
    breakdown.add(("AB", "Привет"), [(True, True), (False, False)], (large, small))
    breakdown.add(("ab",), [(True, False)], (None,))
    shares = breakdown.to_json()
    assert shares["height"] == {
        "2-4 %": {"strings": 1, "accuracy": 0, "accuracy_with_case": 0},
        "32 % and more": {"strings": 1, "accuracy": 1, "accuracy_with_case": 1},
        "unknown": {"strings": 1, "accuracy": 1, "accuracy_with_case": 0},
    }
    assert list(shares["height"]) == ["2-4 %", "32 % and more", "unknown"]
    assert {name: bin["strings"] for name, bin in shares["lines"].items()} == {"1": 1, "2": 2}
    assert {name: bin["strings"] for name, bin in shares["script"].items()} == {"latin": 2, "cyrillic": 1}
    assert {name: bin["strings"] for name, bin in shares["case"].items()} == {"upper": 1, "capitalised": 1, "lower": 1}
    assert {name: bin["strings"] for name, bin in shares["length"].items()} == {"1-2": 2, "5-6": 1}
    assert breakdown.strings == 3
    draw_breakdown(breakdown, tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").width > 800
