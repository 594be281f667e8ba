"""Lines of held-out posters: a run generates rendered posters' captions, an OCR engine reads the images line by line.

row                 what makes the image
refit, raw, ...     as of signs (`spelling_evaluation.py`)
glyph map pasted    no model: the true layout's glyph map in the lines' colours on a plain background of the true mean
                    colour, or in black or white where a line's colour would not stand out: what copying z would score
rendered truth      the poster itself: the engine's own ceiling
..., unseen styles  typefaces and backgrounds are held out from training sets as well, not the words alone
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from vlad.config.schema import Config
from vlad.data.posters.backgrounds import PALETTE
from vlad.data.posters.contrast import LUMINANCES, MINIMUM_CONTRAST, contrast, relative_luminance
from vlad.data.posters.render import RENDERER_VERSION, held_out_posters
from vlad.eval.held_out_words.evaluation_rows import HeldOutSet, ScoreRow, evaluate_rows, modes_of, write_images
from vlad.eval.held_out_words.spelling_evaluation import GRID_HEADS, grid_images
from vlad.eval.intervals import Share, share_of
from vlad.eval.options import GenerationMode
from vlad.layout.glyph_map import render_glyph_map
from vlad.metrics.colours import line_boxes
from vlad.metrics.line_attributes import AttributeScore, score_line_colours, score_line_places
from vlad.metrics.line_matching import HEIGHT_BANDS, ImageReading, height_band, match_lines
from vlad.metrics.ocr import poster_enlarge_factor, run_ocr
from vlad.pipeline.vlad_pipeline import VLADPipeline
from vlad.reports.image_grids import GridRow, sample_grid
from vlad.types import Layout, Sample

PROTOCOL = (
    "images enlarged (bicubic) to 512 pixels, at most 4 times; a line is read where its boxes in one row are its text,"
    " case and spaces ignored; a poster where all lines are and nothing else is"
)
PASTED, TRUTH, UNSEEN = "glyph map pasted", "rendered truth", ", unseen styles"
GRID_ROWS = 24
GRID_COLUMNS = 2
MISREAD_SHOWN = 8


@dataclass(frozen=True)
class GroundScore:
    """Backgrounds (what is outside of all lines' boxes) against the true ones, in values of 0..255.

    `rmse`: of the pixels; None where the image follows another layout than the true one. `colour_error`: mean distance
    in RGB of the mean colours. `contrast`: the mean standard deviation of a background over that of the true ones, 0
    for a plain colour. All are None where lines cover every image.
    """

    rmse: float | None
    colour_error: float | None
    contrast: float | None


@dataclass(frozen=True)
class PosterScore:
    """One row: lines and whole posters read, attributes bound to the right line, backgrounds, and time.

    `lines_with_case`: share of the lines that are read in their own letter case too. `extra`: boxes read that belong
    to no line. `seconds_per_image`: None where no model generates. Heights are those of the layout that the image was
    generated with, the true one where there is none.
    """

    lines: Share
    posters: Share
    lines_with_case: float
    letter_accuracy: float
    extra: int
    by_height: dict[str, Share]
    by_lines: dict[str, Share]
    colours: AttributeScore
    places: AttributeScore
    ground: GroundScore
    seconds_per_image: float | None
    misread: tuple[tuple[str, str], ...]  # a line, what was read of it


@dataclass(frozen=True)
class PosterImages:
    """Images of posters (H W 3, uint8), the layouts that they follow (None: not known), and what a grid shows."""

    images: list[np.ndarray]
    layouts: list[Layout] | None
    headings: tuple[str, ...]
    shown: Sequence[tuple[Image.Image, ...]]
    seconds: float | None = None
    has_true_layout: bool = False


def evaluate_posters(
    run: Path, count: int = 300, engine: str = "rapidocr", modes: Sequence[GenerationMode] | None = None
) -> dict[str, Any]:
    """Scores a finished run on held-out posters, as its `data.posters` renders them, in `modes` (None: all).

    Writes RUN/evaluation/ and returns the metrics.

    Rows that were scored before, of as many posters by the same engine with the same weights, keep their figures.
    """

    def rows_of(config: Config, pipeline: VLADPipeline) -> dict[str, ScoreRow]:
        assert config.data.posters is not None, "the run trains on signs"
        sized = replace(config.data.posters, size_pixels=config.data.image_pixels)
        posters = held_out_posters(sized, count)
        unseen = held_out_posters(replace(sized, held_out_typefaces=True, held_out_backgrounds=True), count)

        def row(name: str, mode: GenerationMode | None, samples: list[Sample]) -> ScoreRow:
            return ScoreRow(mode, lambda out: asdict(_evaluate_row(pipeline, samples, name, mode, engine, out)))

        possible = modes_of(pipeline)
        rows = {str(mode): row(mode, mode, posters) for mode in possible}
        rows |= {name: row(name, None, posters) for name in (PASTED, TRUTH)}
        main = f"{possible[0]}{UNSEEN}", f"{TRUTH}{UNSEEN}"
        return rows | {main[0]: row(main[0], possible[0], unseen), main[1]: row(main[1], None, unseen)}

    protocol = f"{PROTOCOL} (posters of version {RENDERER_VERSION})"
    metrics = evaluate_rows(run, HeldOutSet("posters", count, protocol), engine, modes, rows_of)
    draw_line_accuracy(metrics["modes"], run / "evaluation" / "lines.png")
    return metrics


def _evaluate_row(
    pipeline: VLADPipeline, posters: list[Sample], name: str, mode: GenerationMode | None, engine: str, out: Path
) -> PosterScore:
    """Scores one row; writes its images and its grid."""
    if mode is not None:
        made = generated_posters(pipeline, posters, mode)
    elif name == PASTED:
        pasted = [paste_glyph_map(poster, pipeline.config.glyph_font) for poster in posters]
        made = _without_model(pasted, posters)
    else:
        made = _without_model([poster.image for poster in posters], posters)
    with tqdm(total=len(posters), desc=f"reading, {name}", unit="image") as bar:
        factor = poster_enlarge_factor(made.images[0].shape[0])
        boxes = run_ocr(engine, made.images, factor, on_progress=lambda done: bar.update(done - bar.n))
        readings = [match_lines(read, _strings(poster)) for read, poster in zip(boxes, posters, strict=True)]
    rows = [
        GridRow(f"{'' if reading.is_exact else 'MISREAD  '}{poster.caption}", shown)
        for reading, poster, shown in zip(readings, posters, made.shown[:GRID_ROWS], strict=False)
    ]
    cell = min(256, 2 * made.images[0].shape[0])
    grid = sample_grid(rows, made.headings, cell_pixels=cell, columns=GRID_COLUMNS)
    write_images(out, name, [Image.fromarray(image) for image in made.images], grid)
    return score_posters(posters, made, readings)


def generated_posters(pipeline: VLADPipeline, posters: list[Sample], mode: GenerationMode) -> PosterImages:
    """Images that the pipeline generates of the posters' captions in one mode."""
    images: list[Image.Image] = []
    followed: list[Layout] = []
    shown: list[tuple[Image.Image, ...]] = []
    batch = pipeline.settings().batch_size
    started = time.monotonic()
    with tqdm(total=len(posters), desc=f"generating, {mode}", unit="image") as bar:
        for start in range(0, len(posters), batch):
            part = posters[start : start + batch]
            generated = pipeline(
                [poster.caption for poster in part],
                list(range(start, start + len(part))),
                [poster.layout for poster in part] if mode == "true layout" else None,
                refit=mode != "raw",
            )
            images += generated.images
            followed += generated.layouts
            for poster, plan, layout, image in zip(
                part, generated.glyph_maps, generated.layouts, generated.images, strict=True
            ):
                shown.append((*grid_images(mode, plan, layout, image), Image.fromarray(poster.image)))
            bar.update(len(part))
    seconds = time.monotonic() - started
    return PosterImages(
        images=[np.asarray(image) for image in images],
        layouts=None if mode == "no layout" else followed,
        headings=(*GRID_HEADS[mode], TRUTH),
        shown=shown,
        seconds=seconds,
        has_true_layout=mode == "true layout",
    )


def _without_model(images: list[np.ndarray], posters: list[Sample]) -> PosterImages:
    """Images that follow the posters' own layouts."""
    shown = [
        (Image.fromarray(image), Image.fromarray(poster.image)) for image, poster in zip(images, posters, strict=True)
    ]
    return PosterImages(images, [poster.layout for poster in posters], ("image", TRUTH), shown, has_true_layout=True)


def paste_glyph_map(poster: Sample, font: str) -> np.ndarray:
    """The poster's glyph map in the lines' colours on a plain background: H W 3, uint8."""
    height, width = poster.image.shape[:2]
    outside = _outside(poster.layout, width, height)
    ground = poster.image[outside].mean(axis=0) if outside.any() else poster.image.mean(axis=(0, 1))
    luminance = float(relative_luminance(ground))
    canvas = np.broadcast_to(ground, poster.image.shape).copy()
    for line in poster.layout.lines:
        ink = render_glyph_map(Layout((line,), font), width, height)[..., None]  # H W 1
        colour = line.colour or "black"
        if contrast(LUMINANCES[colour], luminance) < MINIMUM_CONTRAST:
            colour = max(("black", "white"), key=lambda name: contrast(LUMINANCES[name], luminance))
        canvas += ink * (np.array(PALETTE[colour]) - canvas)
    return canvas.round().astype(np.uint8)


def score_posters(posters: Sequence[Sample], made: PosterImages, readings: Sequence[ImageReading]) -> PosterScore:
    """The figures of images of posters, as an engine has read them."""
    layouts = made.layouts or [poster.layout for poster in posters]
    captions = [poster.caption for poster in posters]
    exact: list[bool] = []
    heights: list[str] = []
    counts: list[str] = []
    for poster, layout, reading, image in zip(posters, layouts, readings, made.images, strict=True):
        assert [line.text for line in layout.lines] == _strings(poster)
        exact += [line.is_exact for line in reading.lines]
        heights += [height_band(line, *image.shape[:2]) for line in layout.lines]
        counts += [str(len(layout.lines))] * len(layout.lines)
    lines = [line for reading in readings for line in reading.lines]
    return PosterScore(
        lines=share_of(sum(exact), len(exact)),
        posters=share_of(sum(reading.is_exact for reading in readings), len(readings)),
        lines_with_case=sum(line.has_case for line in lines) / len(lines),
        letter_accuracy=1 - sum(line.edits for line in lines) / sum(line.letters for line in lines),
        extra=sum(len(reading.extra) for reading in readings),
        by_height=_shares(heights, exact, HEIGHT_BANDS),
        by_lines=_shares(counts, exact, sorted(set(counts))),
        colours=score_line_colours(made.images, readings, captions),
        places=score_line_places(readings, captions),
        ground=_score_grounds(posters, made, layouts),
        seconds_per_image=None if made.seconds is None else made.seconds / len(posters),
        misread=tuple(
            (text, " ".join(box.text for box in line.boxes))
            for poster, reading in zip(posters, readings, strict=True)
            for text, line in zip(_strings(poster), reading.lines, strict=True)
            if not line.is_exact
        ),
    )


def _strings(poster: Sample) -> list[str]:
    return [line.text for line in poster.layout.lines]


def _shares(bins: Sequence[str], exact: Sequence[bool], order: Sequence[str]) -> dict[str, Share]:
    """The share of lines read in each bin that has any, in order."""
    found = {name: [is_read for own, is_read in zip(bins, exact, strict=True) if own == name] for name in order}
    return {name: share_of(sum(read), len(read)) for name, read in found.items() if read}


def _outside(layout: Layout, width: int, height: int) -> np.ndarray:
    """The pixels (H W) outside of all lines' boxes, grown by a pixel."""
    return ~line_boxes(layout.lines, width, height)[1]


def _score_grounds(posters: Sequence[Sample], made: PosterImages, layouts: Sequence[Layout]) -> GroundScore:
    squares, distances, deviations, true_deviations = [], [], [], []
    for poster, image, layout in zip(posters, made.images, layouts, strict=True):
        height, width = image.shape[:2]
        outside = _outside(poster.layout, width, height) & _outside(layout, width, height)
        if not outside.any():
            continue
        own, true = image[outside].astype(np.float64), poster.image[outside].astype(np.float64)  # n 3
        squares.append(float(np.square(own - true).mean()))
        distances.append(float(np.linalg.norm(own.mean(axis=0) - true.mean(axis=0))))
        deviations.append(float(own.std(axis=0).mean()))
        true_deviations.append(float(true.std(axis=0).mean()))
    if not squares:
        return GroundScore(None, None, None)
    return GroundScore(
        rmse=float(np.mean(squares)) ** 0.5 if made.has_true_layout else None,
        colour_error=float(np.mean(distances)),
        contrast=sum(deviations) / max(sum(true_deviations), 1e-9),
    )


def draw_line_accuracy(rows: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """The share of lines read of every row (as JSON), by letter height and by lines on the poster, as one image."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for axis, key, title in zip(
        axes, ("by_height", "by_lines"), ("letter height, pixels", "lines on the poster"), strict=True
    ):
        known = {name for row in rows.values() for name in row[key]}
        order = [name for name in (*HEIGHT_BANDS, *sorted(known - set(HEIGHT_BANDS))) if name in known]
        for name, row in rows.items():
            places = [place for place, band in enumerate(order) if band in row[key]]
            shares = [row[key][order[place]] for place in places]
            spans = [[one["share"] - one["low"] for one in shares], [one["high"] - one["share"] for one in shares]]
            axis.errorbar(
                places,
                [one["share"] for one in shares],
                yerr=spans,
                label=name,
                marker="o",
                linestyle="--" if name.endswith(UNSEEN) else "-",
                linewidth=1.2,
                elinewidth=0.7,
                capsize=2,
                markersize=3.5,
            )
        axis.set_xticks(range(len(order)), order)
        axis.set(xlabel=title, ylim=(-0.02, 1.02))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("share of lines read exactly, 95 % intervals")
    axes[1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def poster_summary(metrics: dict[str, Any], run: Path) -> str:
    """The scores for a terminal."""
    lines = [
        f"{metrics['posters']} held-out posters, {metrics['engine']}, {metrics['protocol']}",
        "colour and place of lines, %: right, swapped with another line's, wrong, line missing; ground: RMSE, error of"
        " the mean colour, contrast over the true one's",
        f"{'':30}{'lines read':>25}{'posters':>9}{'letters':>9}{'colour':>24}{'place':>24}{'ground':>20}{'s/image':>9}",
    ]
    for name, score in metrics["modes"].items():
        read, ground, seconds = score["lines"], score["ground"], score["seconds_per_image"]
        span = f"{read['share']:.1%} ({read['low']:.1%} to {read['high']:.1%})"
        lines.append(
            f"{name:30}{span:>25}{score['posters']['share']:9.1%}{score['letter_accuracy']:9.1%}"
            f"{_attribute_cell(score['colours']):>24}{_attribute_cell(score['places']):>24}"
            f"{_cell(ground['rmse'], 7, 1)}{_cell(ground['colour_error'], 7, 1)}{_cell(ground['contrast'], 6, 2)}"
            f"{_cell(seconds, 9, 2)}"
        )
    for name, score in metrics["modes"].items():
        shown = ", ".join(f"{text}>{read or '-'}" for text, read in score["misread"][:MISREAD_SHOWN])
        if shown:
            lines.append(f"{name}, misread: {shown}")
    return "\n".join([*lines, f"Images, grids, lines.png: {run / 'evaluation'}"])


def _attribute_cell(score: dict[str, int]) -> str:
    """Percentages right, swapped, wrong and missing."""
    named = max(1, score["named"])
    return "".join(f"{100 * score[name] / named:6.1f}" for name in ("right", "swapped", "wrong", "missing"))


def _cell(value: float | None, width: int, digits: int) -> str:
    return f"{'-' if value is None else f'{value:.{digits}f}':>{width}}"
