"""An open benchmark of rendered pictures, in place of INNOVATOR-Eval, which is not public.

    seed, split, subset, index -> scene: carriers with lines of text -> prompt, layout, reference picture

Each prompt is a function of (seed, split, subset, index) alone, so a larger benchmark begins with the smaller one. The
`test` split's words are held out: rendered training pictures never carry them. `dev` is for whoever tunes.
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from vlad.data.synthetic import PALETTE, readable_inks
from vlad.data.words import held_out_words, rare_words, training_words
from vlad.errors import UserError
from vlad.layout.files import line_to_json
from vlad.layout.fonts import missing_glyphs
from vlad.layout.glyphmap import draw_line
from vlad.layout.polygons import box_polygon
from vlad.records import Layout, TextLine

Split = Literal["dev", "test"]
VERSION = 1  # rises whenever the same options make another benchmark
FONTS = ("sans-bold", "serif-bold", "mono-bold")
CARRIERS = ("sign", "card", "poster", "label", "banner")
VERBS = ("says", "reads", "shows the words", "spells")
LETTER_ASPECT = 1.5  # height of a line over the width of its letters' cells
LINE_PITCH = 1.3
# Words of scripts that the fonts have and that run from left to right without joining; (language, dev, test).
SCRIPT_WORDS: dict[str, tuple[str, str, str]] = {
    "greek": ("el", "ΝΕΡΟ ΣΠΙΤΙ ΔΡΟΜΟΣ ΠΑΡΚΟ ΓΑΛΑ", "ΘΑΛΑΣΣΑ ΚΑΦΕΣ ΨΩΜΙ ΟΥΡΑΝΟΣ ΑΓΟΡΑ ΕΞΟΔΟΣ"),
    "cyrillic": ("ru", "ДОМ ШКОЛА ПАРК ВОДА ТЕАТР", "ХЛЕБ ЩАВЕЛЬ МОЛОКО РЫНОК ПОЧТА ВЫХОД"),
    "accented": ("fr", "CAFÉ GARÇON MÜLLER ŁÓDŹ", "FORÊT ŒUVRE GRÖSSE ŻÓŁĆ İZMİR SEÑOR"),
}


@dataclass(frozen=True)
class BenchmarkOptions:
    """Which benchmark: `count` prompts a subset, pictures of `size_pixels` a side."""

    seed: int = 0
    split: Split = "test"
    count: int = 50
    size_pixels: int = 512

    def __post_init__(self) -> None:
        if self.count < 1 or self.size_pixels < 64 or self.seed < 0 or self.split not in get_args(Split):
            raise UserError("The benchmark needs count >= 1, size >= 64 pixels, seed >= 0 and a split of dev or test.")


@dataclass(frozen=True)
class Carrier:
    """A coloured board with lines of text in one ink and font; `box` is left, top, right, bottom in 0..1."""

    kind: str
    ground: str
    ink: str
    box: tuple[float, float, float, float]
    lines: tuple[TextLine, ...]


@dataclass(frozen=True)
class Scene:
    """One entry of the benchmark, before it is drawn."""

    key: str
    subset: str
    prompt: str
    backdrop: str
    carriers: tuple[Carrier, ...]

    @property
    def layout(self) -> Layout:
        """All lines, in the prompt's order."""
        return Layout(tuple(line for carrier in self.carriers for line in carrier.lines))


class _Draws:
    """Chance of one scene, with the words of its split."""

    def __init__(self, options: BenchmarkOptions, subset: str, index: int) -> None:
        entropy = f"{VERSION}:{options.seed}:{options.split}:{subset}:{index}"
        self.rng = np.random.default_rng(list(hashlib.sha256(entropy.encode()).digest()))
        self.split: Split = options.split
        self.pool = held_out_words() if options.split == "test" else training_words()

    def one(self, options: tuple[str, ...]) -> str:
        return options[int(self.rng.integers(len(options)))]

    def several(self, options: tuple[str, ...], count: int) -> list[str]:
        return [options[int(i)] for i in self.rng.choice(len(options), size=count, replace=False)]

    def words(self, count: int) -> list[str]:
        """Words of the split, none twice."""
        return self.several(self.pool, count)

    def digits(self, count: int) -> str:
        return "".join(self.one(tuple(string.digits)) for _ in range(count))

    def between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def count(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))


def _set_lines(
    draws: _Draws, box: tuple[float, float, float, float], texts: list[str], height: float, language: str = "en"
) -> tuple[TextLine, ...]:
    """The texts one under the other amid the box, lines at most `height` high, lower where they would not fit."""
    left, top, right, bottom = box
    width, room = 0.9 * (right - left), 0.86 * (bottom - top)
    longest = max(map(len, texts))
    height = min(height, LETTER_ASPECT * width / longest, room / (1 + LINE_PITCH * (len(texts) - 1)))
    first = (top + bottom) / 2 - height * (1 + LINE_PITCH * (len(texts) - 1)) / 2
    font, middle = draws.one(FONTS), (left + right) / 2
    lines = []
    for number, text in enumerate(texts):
        half = len(text) * height / LETTER_ASPECT / 2
        line_top = first + number * LINE_PITCH * height
        lines.append(
            TextLine(text, box_polygon(middle - half, line_top, middle + half, line_top + height), language, font)
        )
    return tuple(lines)


def _board(
    draws: _Draws,
    texts: list[str],
    box: tuple[float, float, float, float] = (0.08, 0.12, 0.92, 0.88),
    height: float = 0.2,
    ground: str | None = None,
    language: str = "en",
) -> Carrier:
    ground = ground or draws.one(tuple(PALETTE))
    ink = draws.one(readable_inks(ground))
    return Carrier(draws.one(CARRIERS), ground, ink, box, _set_lines(draws, box, texts, height, language))


def _named(carrier: Carrier) -> str:
    return f"{'an' if carrier.ground[0] in 'aeiou' else 'a'} {carrier.ground} {carrier.kind}"


def _quoted(carrier: Carrier) -> str:
    return " and ".join(f'"{line.text}"' for line in carrier.lines)


def _single(draws: _Draws, carrier: Carrier, remark: str = "") -> tuple[str, tuple[Carrier, ...]]:
    letters = f" in {carrier.ink} letters"
    return f"{_named(carrier)} that {draws.one(VERBS)} {_quoted(carrier)}{letters}{remark}", (carrier,)


def _objects(draws: _Draws) -> tuple[str, tuple[Carrier, ...]]:
    """Two to four boards of different colours, each with its own word, their places told."""
    quarters = {
        "at the top left": (0.04, 0.05, 0.48, 0.48),
        "at the top right": (0.52, 0.05, 0.96, 0.48),
        "at the bottom left": (0.04, 0.52, 0.48, 0.95),
        "at the bottom right": (0.52, 0.52, 0.96, 0.95),
    }
    count = draws.count(2, 4)
    chosen = draws.several(tuple(quarters), count)
    names = [name for name in quarters if name in chosen]
    grounds = draws.several(tuple(PALETTE), count)
    carriers = tuple(
        _board(draws, [word], quarters[name], 0.16, ground)
        for name, word, ground in zip(names, draws.words(count), grounds, strict=True)
    )
    told = [
        f"{_named(carrier)} {name} that says {_quoted(carrier)}" for name, carrier in zip(names, carriers, strict=True)
    ]
    return ", ".join(told), carriers


def _lines(draws: _Draws) -> tuple[str, tuple[Carrier, ...]]:
    """Three to six lines on one board."""
    return _single(draws, _board(draws, draws.words(draws.count(3, 6)), height=0.13))


def _long(draws: _Draws) -> tuple[str, tuple[Carrier, ...]]:
    """Two to five strings of two or three words each, in capitals and in small letters."""
    small = draws.rng.random() < 0.5
    texts = [" ".join(draws.words(draws.count(2, 3))) for _ in range(draws.count(2, 5))]
    return _single(draws, _board(draws, [text.lower() if small else text for text in texts], height=0.1))


def _digits(draws: _Draws) -> tuple[str, tuple[Carrier, ...]]:
    """Prices, dates, times, codes: digits with punctuation, which no rendered training string has."""
    makers: tuple[Callable[[], str], ...] = (
        lambda: f"${draws.digits(2)}.{draws.digits(2)}",
        lambda: f"{draws.digits(2)}% OFF!",
        lambda: f"{draws.count(1, 28):02d}.{draws.count(1, 12):02d}.20{draws.digits(2)}",
        lambda: f"{draws.count(0, 23):02d}:{draws.count(0, 59):02d}",
        lambda: f"No. {draws.digits(draws.count(3, 5))}",
        lambda: f"+{draws.digits(2)} {draws.digits(3)}-{draws.digits(4)}",
        lambda: f"{draws.one(tuple(string.ascii_uppercase))}-{draws.digits(3)}/{draws.digits(1)}",
        lambda: f"{draws.words(1)[0].capitalize()}, {draws.digits(4)}?",
    )
    texts = [makers[draws.count(0, len(makers) - 1)]() for _ in range(draws.count(1, 2))]
    return _single(draws, _board(draws, texts, height=0.14))


def _small(draws: _Draws) -> tuple[str, tuple[Carrier, ...]]:
    """One large word, and one to three lines of 2 to 5 % of the picture's height."""
    ground = draws.one(tuple(PALETTE))
    head = _board(draws, draws.words(1), (0.08, 0.12, 0.92, 0.5), 0.2, ground)
    texts = [" ".join(draws.words(2)).capitalize() for _ in range(draws.count(1, 3))]
    foot = _set_lines(draws, (0.08, 0.55, 0.92, 0.86), texts, draws.between(0.02, 0.05))
    carrier = Carrier(head.kind, ground, head.ink, (0.08, 0.12, 0.92, 0.88), (*head.lines, *foot))
    small = " and ".join(f'"{line.text}"' for line in foot)
    prompt = (
        f"{_named(carrier)} that says {_quoted(head)} in {carrier.ink} letters, with small print that reads {small}"
    )
    return prompt, (carrier,)


def _rare(draws: _Draws) -> tuple[str, tuple[Carrier, ...]]:
    """One or two rare words; in `dev`, words made of syllables."""
    if draws.split == "test":
        texts = draws.several(tuple(sorted(rare_words())), draws.count(1, 2))
    else:
        syllables = tuple(a + b for a in "BDFGKLMNPRSTVZ" for b in "AEIOU")
        texts = ["".join(draws.several(syllables, 3)) for _ in range(draws.count(1, 2))]
    cased = (str.upper, str.lower, str.capitalize)[draws.count(0, 2)]
    return _single(draws, _board(draws, [cased(text) for text in texts]))


def _scripts(draws: _Draws) -> tuple[str, tuple[Carrier, ...]]:
    """One or two words in Greek, Cyrillic or accented Latin letters."""
    language, dev, test = SCRIPT_WORDS[draws.one(tuple(SCRIPT_WORDS))]
    words = tuple((test if draws.split == "test" else dev).split())
    return _single(draws, _board(draws, draws.several(words, draws.count(1, 2)), language=language))


SUBSETS: dict[str, Callable[[_Draws], tuple[str, tuple[Carrier, ...]]]] = {
    "objects": _objects,
    "lines": _lines,
    "long": _long,
    "digits": _digits,
    "small": _small,
    "rare": _rare,
    "scripts": _scripts,
}


def make_scene(options: BenchmarkOptions, subset: str, index: int) -> Scene:
    """Entry number `index` of a subset."""
    draws = _Draws(options, subset, index)
    prompt, carriers = SUBSETS[subset](draws)
    taken = {carrier.ground for carrier in carriers}
    backdrop = draws.one(tuple(name for name in PALETTE if name not in taken))
    scene = Scene(f"{subset}-{index:04d}", subset, prompt, backdrop, carriers)
    assert not any(missing_glyphs(line.text) for line in scene.layout.lines)
    return scene


def draw_scene(scene: Scene, size_pixels: int) -> np.ndarray:
    """The reference picture (H W 3, uint8)."""
    canvas = np.empty((size_pixels, size_pixels, 3), dtype=np.float32)
    # A wall that is darker below, so that no two rows are alike.
    shade = np.linspace(1.0, 0.75, size_pixels, dtype=np.float32)[:, None, None]
    canvas[:] = np.array(PALETTE[scene.backdrop], dtype=np.float32) * 0.6 * shade + 60
    for carrier in scene.carriers:
        left, top, right, bottom = (round(value * size_pixels) for value in carrier.box)
        canvas[top:bottom, left:right] = PALETTE[carrier.ground]
        ink = np.zeros((size_pixels, size_pixels), dtype=np.uint8)
        for line in carrier.lines:
            draw_line(ink, line.text, line.polygon, line.font or FONTS[0])
        coverage = ink[..., None].astype(np.float32) / 255
        canvas += coverage * (np.array(PALETTE[carrier.ink], dtype=np.float32) - canvas)
    return canvas.clip(0, 255).round().astype(np.uint8)


def scenes(options: BenchmarkOptions) -> Iterator[Scene]:
    """All entries, subset by subset."""
    for subset in SUBSETS:
        for index in range(options.count):
            yield make_scene(options, subset, index)


def scene_record(scene: Scene) -> dict[str, Any]:
    """The entry as a line of prompts.jsonl."""
    return {
        "id": scene.key,
        "subset": scene.subset,
        "prompt": scene.prompt,
        "lines": [line_to_json(line) for line in scene.layout.lines],
        "reference": f"pictures/{scene.key}.png",
    }


def write_benchmark(
    options: BenchmarkOptions, out: Path, on_progress: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Writes OUT/prompts.jsonl, OUT/pictures/ and, last, OUT/benchmark.json; returns what that holds.

    Its `sha256` is over the prompt file and the pixels of all pictures, in order: equal digests are equal benchmarks.
    Raises UserError when another benchmark is there.
    """
    about = out / "benchmark.json"
    wanted = {"version": VERSION, **asdict(options), "subsets": list(SUBSETS)}
    if about.is_file():
        stored: dict[str, Any] = json.loads(about.read_text(encoding="utf-8"))
        if {name: stored.get(name) for name in wanted} == wanted:
            return stored
        raise UserError(f"{out} holds another benchmark; name another folder with --out, or remove this one.")
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    lines, pixels = [], []
    for done, scene in enumerate(scenes(options), start=1):
        picture = draw_scene(scene, options.size_pixels)
        Image.fromarray(picture).save(out / "pictures" / f"{scene.key}.png")
        pixels.append(hashlib.sha256(picture.tobytes()).digest())
        lines.append(json.dumps(scene_record(scene), ensure_ascii=False) + "\n")
        if on_progress is not None:
            on_progress(done)
    text = "".join(lines).encode()
    (out / "prompts.jsonl").write_bytes(text)
    digest.update(text)
    digest.update(b"".join(pixels))
    record = {**wanted, "sha256": digest.hexdigest()}
    temporary = about.with_suffix(".partial")
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    temporary.replace(about)
    return record
