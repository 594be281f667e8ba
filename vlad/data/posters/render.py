"""A rendered poster: a function of (options, seed, index) alone.

    scene -> background, panels, objects -> lines: text, typeface, size, colour that stands out where it is -> caption

Every line's polygon follows its ink, every object has its box. `tools/benchmark.py render` measures the rate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vlad.data.options import PosterOptions
from vlad.data.posters.backgrounds import (
    HELD_OUT_TEXTURES,
    NAMED,
    PALETTE,
    TEXTURES,
    background,
    jittered,
    photograph,
    shade,
)
from vlad.data.posters.captions import LineWords, caption, place_words, with_article
from vlad.data.posters.contrast import LUMINANCES, MINIMUM_CONTRAST, contrast, contrasts_with, outline_of
from vlad.data.posters.lettering import Lettering, Setting, cap_height, largest_size, letter, paint, shifted, widened
from vlad.data.posters.objects import SHAPES, shape_mask
from vlad.data.posters.panels import paint_panel
from vlad.data.posters.scenes import LEAD, Box, Scene, Slot, scene
from vlad.data.posters.texts import Writer
from vlad.layout.typefaces import Typeface, typefaces
from vlad.types import Layout, ObjectBox, Sample, TextLine

RENDERER_VERSION = 1  # rises whenever the same options render other samples
SMALL, LARGE = 0.075, 0.13  # cap heights as shares of the image: captions call smaller ones small, larger ones large
LEAST_OBJECT_CONTRAST = 1.8
TRIES = 6  # at a text that fits its slot


def render_poster(options: PosterOptions, index: int) -> Sample:
    """Poster number `index` of the set."""
    rng = np.random.default_rng((options.seed, index))
    lines = int(rng.integers(options.min_lines, options.max_lines + 1))
    plan = scene(rng, lines, jitter=0.006 + 0.012 * options.density)
    colour, lead = (list(PALETTE)[number] for number in rng.choice(len(PALETTE), 2, replace=False))
    texture = _texture(rng, plan, options)
    canvas = (
        photograph(rng, options.photos, options.size_pixels)
        if texture == "photo" and options.photos is not None
        else background(rng, texture, colour, options.size_pixels)
    )
    _paint_panels(canvas, plan, colour, lead, rng)
    objects = _paint_objects(canvas, plan, options, rng)
    words, placed = _write_lines(canvas, plan, options, rng)
    carrier = _carrier(plan, texture, colour, lead)
    phrases = [f"{noun} {place}" if rng.random() < 0.5 else noun for noun, place, _ in objects]
    return Sample(
        key=f"{index:08d}",
        image=canvas.clip(0, 255).round().astype(np.uint8),
        caption=caption(carrier, words, phrases, _setting(plan, texture, colour, rng), rng),
        layout=Layout(tuple(placed)),
        objects=(
            ObjectBox(with_article(carrier), (0.0, 0.0, 1.0, 1.0)),
            *(ObjectBox(noun, box) for noun, _, box in objects),
        ),
        source="vlad posters",
        licence="CC0-1.0",
    )


def _texture(rng: np.random.Generator, plan: Scene, options: PosterOptions) -> str:
    """The name of a texture, or "photo"."""
    if options.photos is not None and rng.random() < options.photo_share:
        return "photo"
    if options.held_out_backgrounds:
        return list(HELD_OUT_TEXTURES)[rng.integers(len(HELD_OUT_TEXTURES))]
    if rng.random() > 0.25 + 0.65 * options.density:
        return "plain"
    names = plan.textures or tuple(TEXTURES)
    return names[rng.integers(len(names))]


def _carrier(plan: Scene, texture: str, colour: str, lead: str) -> str:
    """What carries the text, with its colour."""
    if plan.has_lead:
        return f"{lead} {plan.carrier}"
    return plan.carrier if texture == "photo" else f"{colour} {plan.carrier}"


def _setting(plan: Scene, texture: str, colour: str, rng: np.random.Generator) -> str | None:
    """How a caption says what is behind; None where it does not."""
    if rng.random() < 0.35:
        return None
    if texture == "photo":
        return "over a photograph"
    if not plan.has_lead:
        return f"with a {texture} background" if texture in NAMED else None
    surface = {"brick": "brick wall", "wooden": "wooden board"}.get(texture, "background")
    if texture == "paper":
        return f"on {colour} paper"
    named = f"{texture} " if texture in NAMED and surface == "background" else ""
    return f"on {with_article(f'{colour} {named}{surface}')}"


def _paint_panels(canvas: np.ndarray, plan: Scene, colour: str, lead: str, rng: np.random.Generator) -> None:
    for panel in plan.panels:
        if panel.colour is None:
            tone = shade(jittered(rng, "cream" if colour in ("black", "navy") else colour), panel.shade)
        else:
            tone = jittered(rng, lead if panel.colour == LEAD else panel.colour)
        paint_panel(canvas, panel, tone.astype(np.float32), rng)


def _paint_objects(
    canvas: np.ndarray, plan: Scene, options: PosterOptions, rng: np.random.Generator
) -> list[tuple[str, str, Box]]:
    """Paints shapes into the scene's rooms; returns their nouns, places and boxes."""
    size, found = options.size_pixels, []
    for left, top, right, bottom in plan.rooms:
        if rng.random() > 0.2 + 0.6 * options.density:
            continue
        side = min(right - left, bottom - top, 0.34) * rng.uniform(0.75, 1.0)
        x, y = rng.uniform(left, right - side), rng.uniform(top, bottom - side)
        x0, y0, pixels = round(x * size), round(y * size), round(side * size)
        window = canvas[y0 : y0 + pixels, x0 : x0 + pixels]
        scores = contrasts_with(window[::3, ::3].reshape(-1, 3))
        fitting = [name for name, score in scores.items() if score > LEAST_OBJECT_CONTRAST]
        if not fitting:
            continue
        tone, name = fitting[rng.integers(len(fitting))], SHAPES[rng.integers(len(SHAPES))]
        mask = shape_mask(name, pixels)[: window.shape[0], : window.shape[1], None]
        window += mask.astype(np.float32) / 255 * (jittered(rng, tone) - window)
        place = place_words(x + side / 2, y + side / 2)
        found.append((with_article(f"{tone} {name}"), place, (x, y, x + side, y + side)))
    return found


@dataclass(frozen=True)
class _Face:
    """How the lines of one face look: typeface, case, tracking (em), slant (degrees)."""

    typeface: Typeface
    case: str
    tracking: float
    slant: float

    def cased(self, text: str) -> str:
        """The text as this face writes it."""
        if self.typeface.capitals or self.case == "upper":
            return text.upper()
        return text.lower() if self.case == "lower" else text


def _faces(options: PosterOptions, rng: np.random.Generator) -> tuple[_Face, _Face]:
    """The title's face and that of the other lines."""
    known = typefaces(options.held_out_typefaces)
    title, body = (known[rng.integers(len(known))] for _ in range(2))
    if rng.random() < 0.4:
        body = title

    def face(typeface: Typeface) -> _Face:
        joined = typeface.kind in ("script", "hand")  # letters that hang together, and are unread in capitals
        case = "title" if joined and rng.random() < 0.8 else ("upper", "title", "title", "lower")[rng.integers(4)]
        tracked = not joined and rng.random() < 0.3 * options.density
        slanted = rng.random() < 0.2 * options.density
        return _Face(
            typeface,
            case,
            float(rng.uniform(0.03, 0.18)) if tracked else 0.0,
            float(rng.uniform(6, 16)) if slanted else 0.0,
        )

    return face(title), face(body)


def _write_lines(
    canvas: np.ndarray, plan: Scene, options: PosterOptions, rng: np.random.Generator
) -> tuple[list[LineWords], list[TextLine]]:
    """Writes a line into each slot and paints it."""
    size, faces = options.size_pixels, _faces(options, rng)
    writer = Writer(rng, options.random_string_share, options.held_out_words)
    words: list[LineWords] = []
    lines: list[TextLine] = []
    for slot in plan.slots:
        face = faces[slot.face]
        fitted = _fitted(slot, face, writer, [line.text for line in lines], options, rng)
        if fitted is None:
            continue
        text, setting, pixels = fitted
        lettering = letter(text, setting, pixels, _centre(slot, text, setting, pixels, size))
        tone, effect = _paint_line(canvas, lettering, options, rng)
        polygon = lettering.polygon(size)
        xs, ys = zip(*polygon, strict=True)
        height = cap_height(setting.typeface, pixels) / size
        called = face.typeface.called[rng.integers(len(face.typeface.called))]
        words.append(
            LineWords(
                text,
                ((min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2),
                "large" if height > LARGE else "small" if height < SMALL else None,
                tone,
                f"slanted {called}" if setting.slant else called,
                effect,
            )
        )
        lines.append(TextLine(text, polygon, "en", setting.typeface, tone))
    return words, lines


def _fitted(
    slot: Slot, face: _Face, writer: Writer, used: list[str], options: PosterOptions, rng: np.random.Generator
) -> tuple[str, Setting, int] | None:
    """A text for the slot with its setting and size (pixels an em); None where not even a short one fits."""
    size = options.size_pixels
    left, top, right, bottom = (value * size for value in slot.box)
    arc = slot.arc * min(1.0, 0.3 + options.density)
    setting = Setting(face.typeface.name, face.tracking, 0.0 if arc else face.slant, slot.turn * options.density, arc)
    longest, least = options.max_characters, options.min_letter_height * size
    for _ in range(TRIES):
        text = face.cased(writer.text(slot.role, longest))
        pixels = largest_size(text, setting, right - left, bottom - top)
        if pixels >= 1 and cap_height(setting.typeface, pixels) >= least and text not in used:
            # Not always as large as can be, but never under the smallest size that can be read.
            shrunk = int(pixels * rng.uniform(0.78, 1.0))
            readable = shrunk >= 1 and cap_height(setting.typeface, shrunk) >= least
            return text, setting, shrunk if readable else pixels
        longest = max(4, min(longest, len(text)) * 3 // 4)
    return None


def _centre(slot: Slot, text: str, setting: Setting, pixels: int, size: int) -> tuple[float, float]:
    """Where the middle of the line's ink goes, in pixels, by the slot's alignment."""
    left, top, right, bottom = (value * size for value in slot.box)
    middle = (top + bottom) / 2
    if slot.align == "centre" or setting.arc:
        return (left + right) / 2, middle
    ends = [x for x, _ in letter(text, setting, pixels, (0.0, 0.0)).points]
    return (left - min(ends), middle) if slot.align == "left" else (right - max(ends), middle)


def _paint_line(
    canvas: np.ndarray, lettering: Lettering, options: PosterOptions, rng: np.random.Generator
) -> tuple[str, str | None]:
    """Paints a line in a colour that stands out where it is; returns the colour and the words for an effect."""
    unit = max(1, round(len(canvas) / 128))
    scores = contrasts_with(lettering.window_of(canvas)[::3, ::3].reshape(-1, 3))
    fitting = [name for name, score in scores.items() if score >= MINIMUM_CONTRAST]
    tone = fitting[rng.integers(len(fitting))] if fitting else max(scores, key=lambda name: scores[name])
    effect, chance = None, rng.random() / max(options.density, 1e-6)
    if not fitting or chance < 0.18:  # nothing stands out on a busy background without an outline
        edge = outline_of(tone)
        paint(canvas, widened(lettering, unit), jittered(rng, edge))
        effect = f"with {with_article(edge)} outline"
    elif chance < 0.36 and contrast(LUMINANCES[tone], 0.0) > 5:
        paint(canvas, shifted(lettering, unit, unit), np.array((16, 16, 18), dtype=np.float32), 0.7)
        effect = "with a shadow"
    paint(canvas, lettering, jittered(rng, tone))
    return tone, effect


HELD_OUT_SEED = 20_000  # of evaluation sets: no training set is rendered with it


def held_out_posters(options: PosterOptions, count: int) -> list[Sample]:
    """Posters as training renders them, but of words that training never holds."""
    tested = replace(options, seed=HELD_OUT_SEED, held_out_words=True, random_string_share=0.0, count=count)
    return [render_poster(tested, index) for index in range(count)]
