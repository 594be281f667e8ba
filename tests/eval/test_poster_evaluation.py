"""Evaluation on held-out posters: what the rendered posters themselves score, and an untrained run end to end."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.pipeline_fixtures import CONFIG
from tests.support.tool_fixtures import Call
from vlad.cli.evaluate import EVALUATE
from vlad.config.load import load_config, save_config
from vlad.data.options import PosterOptions
from vlad.data.posters.render import held_out_posters
from vlad.eval.ablation.ablation_table import read_scores
from vlad.eval.held_out_words import poster_evaluation
from vlad.eval.held_out_words.evaluation_rows import HeldOutSet, stored_metrics
from vlad.eval.held_out_words.poster_evaluation import PosterImages, PosterScore, paste_glyph_map, score_posters
from vlad.inference.export import export_run
from vlad.layout.fonts import CANONICAL_FONT, PROPORTIONAL_FONT
from vlad.metrics.line_matching import match_lines
from vlad.metrics.ocr import poster_enlarge_factor, run_ocr
from vlad.training.build import build_pipeline, new_parts
from vlad.types import Layout, Sample
from vlad.utils.errors import UserError

POSTERS = held_out_posters(PosterOptions(min_letter_height=0.08, max_lines=3), 10)


def scored(images: list[np.ndarray], posters: list[Sample] = POSTERS, true_layout: bool = True) -> PosterScore:
    boxes = run_ocr("rapidocr", images, poster_enlarge_factor(images[0].shape[0]))
    readings = [
        match_lines(read, [line.text for line in poster.layout.lines])
        for read, poster in zip(boxes, posters, strict=True)
    ]
    layouts = [poster.layout for poster in posters]
    return score_posters(posters, PosterImages(images, layouts, (), (), None, true_layout), readings)


def test_rendered_posters_score_what_the_engine_can_read() -> None:
    score = scored([poster.image for poster in POSTERS])

    assert score.lines.count == sum(len(poster.layout.lines) for poster in POSTERS)
    assert score.lines.share > 0.85 and score.letter_accuracy > 0.9
    assert score.lines.low < score.lines.share <= score.lines.high <= 1
    assert score.posters.count == len(POSTERS) and score.posters.share <= score.lines.share
    assert score.colours.right > 0.8 * score.colours.named > 0
    assert score.colours.swapped == 0 and score.places.swapped == score.places.wrong == 0
    assert (score.ground.rmse, score.ground.colour_error, score.ground.contrast) == (0, 0, 1)
    for bands in (score.by_height, score.by_lines):
        assert sum(band.count for band in bands.values()) == score.lines.count
        assert sum(band.right for band in bands.values()) == score.lines.right
    assert len(score.misread) == score.lines.count - score.lines.right


@pytest.mark.parametrize("font", [CANONICAL_FONT, PROPORTIONAL_FONT])
def test_a_pasted_glyph_map_spells_and_loses_the_background(font: str) -> None:
    score = scored([paste_glyph_map(poster, font) for poster in POSTERS[:4]], POSTERS[:4])

    assert score.lines.share > 0.8
    assert score.ground.rmse is not None and score.ground.rmse > 5
    assert score.ground.contrast < 0.1 and score.ground.colour_error < 2


def test_lines_of_another_poster_are_not_read_and_grounds_of_another_layout_have_no_rmse() -> None:
    others = [poster.image for poster in (*POSTERS[1:4], POSTERS[0])]

    score = scored(others, POSTERS[:4], true_layout=False)

    assert score.lines.right == score.posters.right == 0
    # THE FLAG passes for a misread THE GUARD; nothing else is alike.
    assert score.colours.missing >= score.colours.named - 1 and score.places.missing >= score.places.named - 1
    assert score.extra > 0 and score.ground.rmse is None and score.ground.colour_error > 20


def test_pasted_letters_stand_out_whatever_their_colour() -> None:
    poster = POSTERS[0]
    line = replace(poster.layout.lines[0], colour="white")
    white = replace(poster, image=np.full_like(poster.image, 250), layout=Layout((line,)))

    pasted = paste_glyph_map(white, CANONICAL_FONT)

    assert pasted.max() == 250 and pasted.min() < 40


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of posters whose models are not trained."""
    folder = tmp_path_factory.mktemp("posters")
    (folder / "own.yaml").write_text(CONFIG, encoding="utf-8")
    overrides = ["data.image_pixels=64", "data.glyph_font=proportional", "data.posters.max_lines=2"]
    config = load_config(folder / "own.yaml", [*overrides, "composition.max_characters=16", "sample.steps=1"])
    parts = new_parts(config)
    build_pipeline(config, parts).save_pretrained(folder / "pipeline")
    save_config(config, folder / "config.yaml")
    return folder


def test_a_run_of_posters_is_scored_row_by_row_and_once(run: Path, tmp_path: Path, call_verb: Call) -> None:
    code, printed, said = call_verb(EVALUATE, run, "--count", 2, "--ways", "true-layout")
    assert code == 0, said
    out = run / "evaluation"
    honest = ["glyph map pasted", "rendered truth", "rendered truth, unseen styles"]
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert list(metrics["modes"]) == ["true layout", *honest]
    assert (metrics["posters"], metrics["all_ways"]) == (2, False)
    assert "2 held-out posters, rapidocr" in printed and "rendered truth, unseen styles" in printed
    written = (out / "true-layout" / "0001.png").stat().st_mtime_ns

    assert call_verb(EVALUATE, run, "--count", 2)[0] == 0

    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    generated = ["refit", "true layout", "raw"]
    assert list(metrics["modes"]) == [*generated, *honest[:2], "refit, unseen styles", honest[2]]
    assert (out / "true-layout" / "0001.png").stat().st_mtime_ns == written
    for name, score in metrics["modes"].items():
        is_generated = name.split(",")[0] in generated
        assert (score["seconds_per_image"] is not None) == is_generated
        assert (score["ground"]["rmse"] is not None) == (name in ("true layout", *honest))
    with Image.open(out / "lines.png") as plot:
        assert plot.width > 800
    assert (out / "refit-unseen-styles.png").is_file() and (out / "rendered-truth" / "0000.png").is_file()

    # Who else reads the figures: ablations and the demo, and the card of an exported model.
    true, score = read_scores(run)["rendered truth"], metrics["modes"]["rendered truth"]
    assert (true.words, true.letters, true.grounds) == (score["lines"]["share"], score["letter_accuracy"], None)
    assert true.places == score["places"]["right"] / score["places"]["named"]
    card = export_run(run, tmp_path).read_text(encoding="utf-8")
    assert f"| rendered truth | {true.words:.1%} | {score['posters']['share']:.1%} | {true.letters:.1%} |" in card
    assert "2 held-out posters, rapidocr" in card


def test_an_evaluation_that_is_stopped_goes_on_with_the_next_row(
    run: Path, call_verb: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise UserError("the disk is full.")

    monkeypatch.setattr(poster_evaluation, "paste_glyph_map", stop)
    assert call_verb(EVALUATE, run, "--count", 1, "--ways", "raw")[0] == 2
    file = run / "evaluation" / "metrics.json"
    assert list(json.loads(file.read_text(encoding="utf-8"))["modes"]) == ["raw"]
    written = (run / "evaluation" / "raw" / "0000.png").stat().st_mtime_ns
    monkeypatch.undo()

    assert call_verb(EVALUATE, run, "--count", 1, "--ways", "raw")[0] == 0

    metrics = json.loads(file.read_text(encoding="utf-8"))
    assert list(metrics["modes"]) == ["raw", "glyph map pasted", "rendered truth", "rendered truth, unseen styles"]
    assert (run / "evaluation" / "raw" / "0000.png").stat().st_mtime_ns == written
    assert "unfinished" not in metrics


def test_figures_of_signs_are_none_of_posters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "metrics.json"
    held_out = HeldOutSet("posters", 3, "how")
    stored = {"posters": 3, "engine": "e", "weights": "w", "protocol": "how", "modes": {"refit": {"places": {}}}}
    file.write_text(json.dumps(stored), encoding="utf-8")
    assert stored_metrics(file, held_out, "e", "w") == stored
    for other in (HeldOutSet("words", 3, "how"), HeldOutSet("posters", 4, "how"), HeldOutSet("posters", 3, "else")):
        assert stored_metrics(file, other, "e", "w") == {}
        assert "The figures of 3 posters by e" in capsys.readouterr().out


def test_words_of_posters_are_not_edited(run: Path, call_verb: Call) -> None:
    code, _, said = call_verb(EVALUATE, run, "--editing")
    assert (code, "signs" in said) == (2, True)
