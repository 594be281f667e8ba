"""An open benchmark of rendered images, in place of INNOVATOR-Eval, which is not public.

    seed, split, subset, index -> scene: carriers with lines of text -> prompt, layout, reference image

Each prompt is a function of (seed, split, subset, index) alone, so a larger benchmark begins with the smaller one. The
`test` split's words are held out: rendered training images never carry them. `dev` is for whoever tunes.
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from vlad.data.signs import PALETTE
from vlad.data.words import rare_words
from vlad.eval.alignment.alignment_prompts import Asked
from vlad.eval.open_benchmark.alignment_subsets import ALIGNMENT_SUBSETS
from vlad.eval.open_benchmark.scenes import (
    VERSION,
    Carrier,
    Draws,
    OpenBenchmarkOptions,
    Scene,
    board,
    draw_scene,
    named,
    set_lines,
)
from vlad.layout.fonts import missing_glyphs
from vlad.layout.layout_files import line_to_json
from vlad.utils.errors import UserError

ALIGNMENT_VERSION = 1  # of the subsets in alignment.jsonl, which rise apart from the others
IMAGES = "pictures"  # the folder of version 1, whose digest its name is part of
VERBS = ("says", "reads", "shows the words", "spells")
# Words of scripts that the fonts have and that run from left to right without joining; (language, dev, test).
SCRIPT_WORDS: dict[str, tuple[str, str, str]] = {
    "greek": ("el", "ΝΕΡΟ ΣΠΙΤΙ ΔΡΟΜΟΣ ΠΑΡΚΟ ΓΑΛΑ", "ΘΑΛΑΣΣΑ ΚΑΦΕΣ ΨΩΜΙ ΟΥΡΑΝΟΣ ΑΓΟΡΑ ΕΞΟΔΟΣ"),
    "cyrillic": ("ru", "ДОМ ШКОЛА ПАРК ВОДА ТЕАТР", "ХЛЕБ ЩАВЕЛЬ МОЛОКО РЫНОК ПОЧТА ВЫХОД"),
    "accented": ("fr", "CAFÉ GARÇON MÜLLER ŁÓDŹ", "FORÊT ŒUVRE GRÖSSE ŻÓŁĆ İZMİR SEÑOR"),
}


def _quoted(carrier: Carrier) -> str:
    return " and ".join(f'"{line.text}"' for line in carrier.lines)


def _single(draws: Draws, carrier: Carrier, remark: str = "") -> tuple[str, tuple[Carrier, ...]]:
    letters = f" in {carrier.ink} letters"
    return f"{named(carrier)} that {draws.one(VERBS)} {_quoted(carrier)}{letters}{remark}", (carrier,)


def _objects(draws: Draws) -> tuple[str, tuple[Carrier, ...]]:
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
        board(draws, [word], quarters[name], 0.16, ground)
        for name, word, ground in zip(names, draws.words(count), grounds, strict=True)
    )
    told = [
        f"{named(carrier)} {name} that says {_quoted(carrier)}" for name, carrier in zip(names, carriers, strict=True)
    ]
    return ", ".join(told), carriers


def _lines(draws: Draws) -> tuple[str, tuple[Carrier, ...]]:
    """Three to six lines on one board."""
    return _single(draws, board(draws, draws.words(draws.count(3, 6)), height=0.13))


def _long(draws: Draws) -> tuple[str, tuple[Carrier, ...]]:
    """Two to five strings of two or three words each, in capitals and in small letters."""
    small = draws.rng.random() < 0.5
    texts = [" ".join(draws.words(draws.count(2, 3))) for _ in range(draws.count(2, 5))]
    return _single(draws, board(draws, [text.lower() if small else text for text in texts], height=0.1))


def _digits(draws: Draws) -> tuple[str, tuple[Carrier, ...]]:
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
    return _single(draws, board(draws, texts, height=0.14))


def _small(draws: Draws) -> tuple[str, tuple[Carrier, ...]]:
    """One large word, and one to three lines of 2 to 5 % of the image's height."""
    ground = draws.one(tuple(PALETTE))
    head = board(draws, draws.words(1), (0.08, 0.12, 0.92, 0.5), 0.2, ground)
    texts = [" ".join(draws.words(2)).capitalize() for _ in range(draws.count(1, 3))]
    foot = set_lines(draws, (0.08, 0.55, 0.92, 0.86), texts, draws.between(0.02, 0.05))
    carrier = Carrier(head.kind, ground, head.ink, (0.08, 0.12, 0.92, 0.88), (*head.lines, *foot))
    small = " and ".join(f'"{line.text}"' for line in foot)
    prompt = f"{named(carrier)} that says {_quoted(head)} in {carrier.ink} letters, with small print that reads {small}"
    return prompt, (carrier,)


def _rare(draws: Draws) -> tuple[str, tuple[Carrier, ...]]:
    """One or two rare words; in `dev`, words made of syllables."""
    if draws.split == "test":
        texts = draws.several(tuple(sorted(rare_words())), draws.count(1, 2))
    else:
        syllables = tuple(a + b for a in "BDFGKLMNPRSTVZ" for b in "AEIOU")
        texts = ["".join(draws.several(syllables, 3)) for _ in range(draws.count(1, 2))]
    cased = (str.upper, str.lower, str.capitalize)[draws.count(0, 2)]
    return _single(draws, board(draws, [cased(text) for text in texts]))


def _scripts(draws: Draws) -> tuple[str, tuple[Carrier, ...]]:
    """One or two words in Greek, Cyrillic or accented Latin letters."""
    language, dev, test = SCRIPT_WORDS[draws.one(tuple(SCRIPT_WORDS))]
    words = tuple((test if draws.split == "test" else dev).split())
    return _single(draws, board(draws, draws.several(words, draws.count(1, 2)), language=language))


SUBSETS: dict[str, Callable[[Draws], tuple[str, tuple[Carrier, ...]]]] = {
    "objects": _objects,
    "lines": _lines,
    "long": _long,
    "digits": _digits,
    "small": _small,
    "rare": _rare,
    "scripts": _scripts,
}


def make_scene(options: OpenBenchmarkOptions, subset: str, index: int) -> Scene:
    """Entry number `index` of a subset."""
    draws = Draws(options, subset, index)
    if subset in ALIGNMENT_SUBSETS:
        prompt, carriers, asked = ALIGNMENT_SUBSETS[subset](draws)
    else:
        (prompt, carriers), asked = SUBSETS[subset](draws), Asked()
    taken = {carrier.ground for carrier in carriers}
    backdrop = draws.one(tuple(name for name in PALETTE if name not in taken))
    scene = Scene(f"{subset}-{index:04d}", subset, prompt, backdrop, carriers, asked)
    assert not any(missing_glyphs(line.text) for line in scene.layout.lines)
    return scene


def scenes(options: OpenBenchmarkOptions, subsets: Iterable[str] = SUBSETS) -> Iterator[Scene]:
    """All entries, subset by subset."""
    for subset in subsets:
        for index in range(options.count):
            yield make_scene(options, subset, index)


def scene_record(scene: Scene) -> dict[str, Any]:
    """The entry as a line of its prompt file."""
    return {
        "id": scene.key,
        "subset": scene.subset,
        "prompt": scene.prompt,
        "lines": [line_to_json(line) for line in scene.layout.lines],
        "reference": f"{IMAGES}/{scene.key}.png",
        **scene.asked.to_json(),
    }


def write_benchmark(
    options: OpenBenchmarkOptions, out: Path, on_progress: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Writes OUT/prompts.jsonl, OUT/alignment.jsonl, OUT/pictures/ and, last, OUT/benchmark.json; returns what that
    holds.

    Its `sha256` is over prompts.jsonl and the pixels of its images, in order, `alignment_sha256` over those of
    alignment.jsonl: equal digests are equal benchmarks. A folder from before there was an alignment.jsonl gets it.
    Raises UserError when another benchmark is there.
    """
    about = out / "benchmark.json"
    wanted = {"version": VERSION, **asdict(options), "subsets": list(SUBSETS)}
    aligned = {"alignment_version": ALIGNMENT_VERSION, "alignment_subsets": list(ALIGNMENT_SUBSETS)}
    record: dict[str, Any] = {}
    if about.is_file():
        record = json.loads(about.read_text(encoding="utf-8"))
        # Fields of an older vlad are absent; one of another version differs.
        if {**aligned, **{name: record.get(name) for name in (*wanted, *aligned) if name in record}} != {
            **wanted,
            **aligned,
        }:
            raise UserError(f"{out} holds another benchmark; name another folder with --out, or remove this one.")
        if "alignment_sha256" in record:
            return record
    (out / IMAGES).mkdir(parents=True, exist_ok=True)
    done = 0

    def written(file: str, subsets: Iterable[str]) -> str:
        """Writes a prompt file with its images; gives the digest of both."""
        nonlocal done
        lines, pixels = [], []
        for scene in scenes(options, subsets):
            image = draw_scene(scene, options.size_pixels)
            Image.fromarray(image).save(out / IMAGES / f"{scene.key}.png")
            pixels.append(hashlib.sha256(image.tobytes()).digest())
            lines.append(json.dumps(scene_record(scene), ensure_ascii=False) + "\n")
            done += 1
            if on_progress is not None:
                on_progress(done)
        text = "".join(lines).encode()
        (out / file).write_bytes(text)
        return hashlib.sha256(text + b"".join(pixels)).hexdigest()

    if not record:
        record = {**wanted, "sha256": written("prompts.jsonl", SUBSETS)}
    done = len(SUBSETS) * options.count
    record |= {**aligned, "alignment_sha256": written("alignment.jsonl", ALIGNMENT_SUBSETS)}
    temporary = about.with_suffix(".partial")
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    temporary.replace(about)
    return record
