"""Every protocol against cases worked out by hand, with its quirks, strict and corrected."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlad.eval.protocols import PROTOCOLS
from vlad.eval.protocols.anytext import line_similarity
from vlad.eval.protocols.cvtg import word_similarity
from vlad.eval.protocols.longtext import units
from vlad.eval.protocols.protocol import SCORING_MODES, BenchmarkPrompt, OCRResult, metrics_of_terms
from vlad.eval.protocols.textatlas import matched_words
from vlad.layout.polygons import box_polygon
from vlad.models.text_encoder.prompt import find_quotes
from vlad.types import TextLine

BOX = box_polygon(0.1, 0.1, 0.9, 0.3)


def target(prompt: str, *strings: str) -> BenchmarkPrompt:
    """A prompt; its strings are given, or else its quotations."""
    return BenchmarkPrompt("0", prompt, strings or tuple(quote.text for quote in find_quotes(prompt, strict=False)))


def ocr(*lines: str, crops: tuple[str, ...] | None = None) -> OCRResult:
    """Lines under each other."""
    return OCRResult(
        tuple(TextLine(text, box_polygon(0, 0.1 * i, 1, 0.1 * i + 0.08)) for i, text in enumerate(lines)), crops
    )


def values(name: str, mode: str, *images: tuple[BenchmarkPrompt, OCRResult]) -> dict[str, float]:
    protocol = PROTOCOLS[name]
    return metrics_of_terms((protocol.score(prompt, result, mode) for prompt, result in images), protocol.combine)


# MARIO-Eval


def test_mario_averages_over_images_and_takes_f_of_the_means() -> None:
    images = (
        (target("A sign 'Hello World'"), ocr("hello", "WORLD", "x")),  # P 2/3, R 2/2, not exact
        (target("A cup 'Tea'"), ocr("tea")),  # 1, 1, exact
        (target("A mug 'Hot Hot'"), ocr("hot")),  # P 1/1, R 1/2: multisets
        (target("A door 'Open'"), ocr()),  # 0, 0
    )
    precision, recall = (2 / 3 + 1 + 1 + 0) / 4, (1 + 1 + 1 / 2 + 0) / 4
    for mode in SCORING_MODES:
        found = values("mario", mode, *images)
        assert found == pytest.approx(
            {
                "accuracy": 1 / 4,
                "precision": precision,
                "recall": recall,
                "f_measure": 2 * precision * recall / (precision + recall),
            },
            abs=1e-6,
        )
    # The mean of the images' own F would be another figure.
    assert found["f_measure"] != pytest.approx((0.8 + 1 + 2 / 3 + 0) / 4, abs=1e-3)


def test_mario_keeps_punctuation_and_lowers_case() -> None:
    found = values("mario", "strict", (target("'STOP!' here"), ocr("Stop")), (target("'STOP!' here"), ocr("sTOP!")))
    assert (found["accuracy"], found["recall"]) == pytest.approx((0.5, 0.5))


def test_mario_strict_cuts_the_truth_at_an_apostrophe() -> None:
    image = target("A poster 'Don't Panic' on a wall"), ocr("Don't", "Panic")
    # Strict: '...' finds "don" alone. Nothing that was read is it.
    assert values("mario", "strict", image)["recall"] == 0
    assert values("mario", "strict", (image[0], ocr("Don")))["accuracy"] == 1
    assert values("mario", "corrected", image) == pytest.approx(
        {"accuracy": 1, "precision": 1, "recall": 1, "f_measure": 1}, abs=1e-6
    )


def test_mario_strict_accuracy_ignores_word_boundaries() -> None:
    image = target("'ab c'"), ocr("a", "bc")
    assert values("mario", "strict", image) == pytest.approx(
        {"accuracy": 1, "precision": 0, "recall": 0, "f_measure": 0}
    )
    assert values("mario", "corrected", image)["accuracy"] == 0


def test_mario_takes_straight_single_marks_alone_when_strict() -> None:
    image = target('a sign that says "HOUSE"'), ocr("HOUSE")
    # There is no target text, so reading something is wrong, and nothing is right.
    assert values("mario", "strict", image)["accuracy"] == 0
    assert values("mario", "strict", (image[0], ocr())) == pytest.approx(
        {"accuracy": 1, "precision": 0, "recall": 0, "f_measure": 0}
    )
    assert values("mario", "corrected", image)["accuracy"] == 1
    assert values("mario", "corrected", (target("a cat"), ocr("HOUSE"))) == {}


# AnyText


def anytext(*lines: tuple[str, bool]) -> BenchmarkPrompt:
    return BenchmarkPrompt(
        "0", "", tuple(text for text, _ in lines), tuple(TextLine(t, BOX, valid=v) for t, v in lines)
    )


def test_anytext_scores_lines_with_their_case() -> None:
    image = anytext(("HOUSE", True), ("Tea", True)), ocr(crops=("HOUSE", "tea"))
    strict = values("anytext", "strict", image)
    assert strict["sentence_accuracy"] == 1 / 2
    # "Tea" against "tea": one edit of 3 letters.
    assert strict["ned"] == pytest.approx((1 + 1 - 1 / 3.00001) / 2, abs=1e-9)
    assert values("anytext", "corrected", image)["ned"] == pytest.approx((1 + 2 / 3) / 2)


def test_anytext_averages_over_lines_not_images() -> None:
    many = anytext(*[("A", True)] * 3), ocr(crops=("A", "A", "A"))
    one = anytext(("B", True)), ocr(crops=("x",))
    assert values("anytext", "strict", many, one)["sentence_accuracy"] == 3 / 4


def test_anytext_strict_takes_five_legible_lines_of_twenty_characters() -> None:
    long = "abcdefghijklmnopqrstuvwxyz"
    prompt = anytext(("?", False), (long, True), *[(letter, True) for letter in "BCDEF"])
    result = ocr(crops=("?", long[:20], "B", "C", "D", "E", "wrong"))
    assert values("anytext", "strict", (prompt, result))["sentence_accuracy"] == 1
    # Six legible lines; the long one is read short, F is read wrong.
    assert values("anytext", "corrected", (prompt, result))["sentence_accuracy"] == 4 / 6


def test_anytext_ned_of_empty_text() -> None:
    assert line_similarity("", "", "strict") == line_similarity("", "", "corrected") == 1
    assert line_similarity("ab", "", "corrected") == 0
    assert line_similarity("ab", "", "strict") == pytest.approx(1 - 2 / 2.00001)


# CVTG-2K


def test_cvtg_counts_words_over_all_images() -> None:
    images = (
        (target("'Big Sale' and 'Today'"), ocr("big sale", "junk")),  # 2 of 3
        (target("'Open'"), ocr()),  # 0 of 1
    )
    for mode in SCORING_MODES:
        found = values("cvtg", mode, *images)
        assert found["word_accuracy"] == 2 / 4
        # "today" is like none: every word read is 5 edits of 5 letters away. Of nothing, "open" is all edits.
        assert found["ned"] == pytest.approx((1 + 1 + 0 + 0) / 4, abs=1e-5)


def test_cvtg_strict_lets_one_word_satisfy_many() -> None:
    image = target("'go go go'"), ocr("go")
    assert values("cvtg", "strict", image)["word_accuracy"] == 1
    assert values("cvtg", "corrected", image)["word_accuracy"] == 1 / 3


def test_cvtg_strict_takes_difflib_s_nearest_word() -> None:
    # difflib: abcd/xabcdyz 8/11 = 0.73, abcd/abxx 4/8 = 0.5. Levenshtein: 3 edits of 7, and 2 of 4.
    read_words = ["xabcdyz", "abxx"]
    assert word_similarity("abcd", read_words, "strict") == pytest.approx(1 - 3 / 7.00001)
    assert word_similarity("abcd", read_words, "corrected") == pytest.approx(1 - 3 / 7)
    # Of equal ratios (4/8 both) difflib takes the later in the alphabet: 4 edits, where the other has 2.
    assert word_similarity("abcd", ["cdab", "axcx"], "strict") == pytest.approx(1 - 4 / 4.00001, abs=1e-5)
    assert word_similarity("abcd", ["cdab", "axcx"], "corrected") == pytest.approx(1 / 2)


def test_cvtg_takes_the_sentences_of_the_file_when_corrected() -> None:
    image = target("A poster 'Don't Panic'", "Don't Panic"), ocr("don't panic")
    assert values("cvtg", "strict", image)["word_accuracy"] == 0
    assert values("cvtg", "corrected", image)["word_accuracy"] == 1


# LongText-Bench


def test_longtext_counts_words_as_multisets_over_all_images() -> None:
    images = (
        (target("", "The cat, the hat."), ocr("THE cat", "extra")),  # the, cat of the, cat, the, hat
        (target("", "Open"), ocr("open now")),
    )
    for mode in SCORING_MODES:
        assert values("longtext", mode, *images) == {"text_accuracy": 3 / 5}


def test_longtext_counts_chinese_by_characters() -> None:
    image = target("", "生日快乐, 生!"), ocr("乐快 日")
    for mode in SCORING_MODES:
        assert values("longtext", mode, image) == {"text_accuracy": 3 / 5}


def test_longtext_strict_deletes_other_letters() -> None:
    assert units("It's Straße-Café 2!", False, "strict") == ["its", "straecafé", "2"]
    assert units("It's Straße-Café 2!", False, "corrected") == ["its", "straße", "café", "2"]
    # A decomposed é loses its accent's own character.
    assert units("Cafe\u0301", False, "strict") == ["cafe"]
    assert units("Cafe\u0301", False, "corrected") == ["café"]
    assert units("Привет", False, "strict") == []


# GlyphControl


def test_glyphcontrol_searches_the_word_among_detections() -> None:
    images = (
        (target('"Tea"'), ocr("Tea", "x")),  # exact
        (target('"Tea"'), ocr("tea")),  # any case; 1 edit
        (target('"Tea"'), ocr("hot Tea")),  # a detection of two words; 4 edits
        (target('"Tea"'), ocr()),  # nothing found
    )
    assert values("glyphcontrol", "strict", *images) == pytest.approx(
        {"accuracy": 1 / 4, "accuracy_any_case": 2 / 4, "ld": (0 + 1 + 4) / 3}
    )
    assert values("glyphcontrol", "corrected", *images) == pytest.approx(
        {"accuracy": 2 / 4, "accuracy_any_case": 3 / 4, "ld": (0 + 1 + 0 + 3) / 4}
    )


# TextAtlasEval


def test_textatlas_matches_with_tolerance_over_all_images() -> None:
    images = (
        # "hello" is like "hallo" (8/10 = 80), "wurst" not like "world" (4/10), "x" is too much: 1 of 2, read 3.
        (target("", "Hello World"), ocr("hallo", "wurst x")),
        (target("", "open"), ocr("open")),
    )
    for mode in SCORING_MODES:
        found = values("textatlas", mode, *images)
        assert (found["accuracy"], found["precision"]) == (2 / 3, 2 / 4)
        assert found["f_measure"] == pytest.approx(2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2))


def test_textatlas_strict_rounds_its_ratio() -> None:
    a, b = "a" * 31 + "b" * 8, "a" * 31 + "c" * 8  # 2 * 31 / 78 = 79.49 %
    assert matched_words([a], [b], "strict") == matched_words([a], [b], "corrected") == 0
    a, b = "a" * 35 + "b" * 9, "a" * 35 + "c" * 9  # 2 * 35 / 88 = 79.55 %
    assert matched_words([a], [b], "strict") == 1
    assert matched_words([a], [b], "corrected") == 0


def test_textatlas_strict_takes_the_first_free_word() -> None:
    # signs/sign 8/9, signal/sign 8/10, signal/signs 8/11: "signs" takes "sign" and leaves nothing for "signal".
    assert matched_words(["sign", "signs"], ["signs", "signal"], "strict") == 1
    assert matched_words(["sign", "signs"], ["signs", "signal"], "corrected") == 2


def test_textatlas_cer_over_the_longer_text_or_the_target() -> None:
    images = (
        (target("", "abc"), ocr("abcdef")),  # 3 edits: of 6, of 3
        (target("", "Tea"), ocr("tea")),  # case counts: 1 of 3
        (target("", ""), ocr("noise")),  # no target text: no part of CER, but of precision
    )
    strict, corrected = (values("textatlas", mode, *images) for mode in SCORING_MODES)
    assert strict["cer"] == pytest.approx((3 / 6 + 1 / 3) / 2)
    assert corrected["cer"] == pytest.approx((3 / 3 + 1 / 3) / 2)
    assert strict["precision"] == pytest.approx(1 / 3)  # "tea" of abcdef, tea, noise; abc against abcdef is 67


def test_textatlas_corrected_reads_in_reading_order() -> None:
    lines = (TextLine("world", box_polygon(0, 0.5, 1, 0.6)), TextLine("hello", box_polygon(0, 0.1, 1, 0.2)))
    image = target("", "hello world"), OCRResult(lines)
    assert values("textatlas", "strict", image)["cer"] > 0
    assert values("textatlas", "corrected", image)["cer"] == 0


def test_textatlas_without_text_scores_zero() -> None:
    assert values("textatlas", "strict", (target("", "abc"), ocr())) == {
        "accuracy": 0,
        "precision": 0,
        "cer": 1,
        "f_measure": 0,
    }


# All


WORDS = st.lists(st.text(st.sampled_from("abcXY '"), max_size=6), max_size=5)


@given(WORDS, WORDS)
def test_every_protocol_is_bounded_and_best_when_all_is_read(truth: list[str], seen: list[str]) -> None:
    lines = tuple(TextLine(text, BOX) for text in truth)
    prompt = BenchmarkPrompt("0", " ".join(f"'{text}'" for text in truth), tuple(truth), lines)
    crops = tuple((*seen, *[""] * len(truth))[: len(truth)])
    for protocol in PROTOCOLS.values():
        for mode in SCORING_MODES:
            found = metrics_of_terms([protocol.score(prompt, ocr(*seen, crops=crops), mode)], protocol.combine)
            assert set(found) <= set(protocol.metrics)
            assert all(0 <= value <= 1 + 1e-9 or name in ("cer", "ld") for name, value in found.items())
            if mode == "corrected" and all(text.strip() == text and text for text in truth):
                best = metrics_of_terms(
                    [protocol.score(prompt, ocr(*truth, crops=tuple(truth)), mode)], protocol.combine
                )
                assert all(
                    value == pytest.approx(0 if name in protocol.lower_is_better else 1, abs=1e-6)
                    for name, value in best.items()
                )


def test_every_protocol_describes_itself() -> None:
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name
        assert protocol.ranked_by in protocol.metrics
        assert protocol.lower_is_better <= set(protocol.metrics)
