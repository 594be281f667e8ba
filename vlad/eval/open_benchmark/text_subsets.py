"""The open benchmark's text subsets: many lines, long strings, digits, small print, rare words, other scripts."""

from __future__ import annotations

import string
from collections.abc import Callable

from vlad.data.signs import PALETTE
from vlad.data.words import rare_words
from vlad.eval.open_benchmark.scenes import Carrier, SceneSampler, board, named, set_lines

VERBS = ("says", "reads", "shows the words", "spells")
# Words of scripts that the fonts have and that run from left to right without joining; (language, dev, test).
SCRIPT_WORDS: dict[str, tuple[str, str, str]] = {
    "greek": ("el", "ΝΕΡΟ ΣΠΙΤΙ ΔΡΟΜΟΣ ΠΑΡΚΟ ΓΑΛΑ", "ΘΑΛΑΣΣΑ ΚΑΦΕΣ ΨΩΜΙ ΟΥΡΑΝΟΣ ΑΓΟΡΑ ΕΞΟΔΟΣ"),
    "cyrillic": ("ru", "ДОМ ШКОЛА ПАРК ВОДА ТЕАТР", "ХЛЕБ ЩАВЕЛЬ МОЛОКО РЫНОК ПОЧТА ВЫХОД"),
    "accented": ("fr", "CAFÉ GARÇON MÜLLER ŁÓDŹ", "FORÊT ŒUVRE GRÖSSE ŻÓŁĆ İZMİR SEÑOR"),
}


def _quoted(carrier: Carrier) -> str:
    return " and ".join(f'"{line.text}"' for line in carrier.lines)


def _single(sampler: SceneSampler, carrier: Carrier) -> tuple[str, tuple[Carrier, ...]]:
    letters = f" in {carrier.text_colour} letters"
    return f"{named(carrier)} that {sampler.choice(VERBS)} {_quoted(carrier)}{letters}", (carrier,)


def _objects(sampler: SceneSampler) -> tuple[str, tuple[Carrier, ...]]:
    """Two to four boards of different colours, each with its own word, their positions in the prompt."""
    quarters = {
        "at the top left": (0.04, 0.05, 0.48, 0.48),
        "at the top right": (0.52, 0.05, 0.96, 0.48),
        "at the bottom left": (0.04, 0.52, 0.48, 0.95),
        "at the bottom right": (0.52, 0.52, 0.96, 0.95),
    }
    count = sampler.integer(2, 4)
    chosen = sampler.choices(tuple(quarters), count)
    names = [name for name in quarters if name in chosen]
    backgrounds = sampler.choices(tuple(PALETTE), count)
    carriers = tuple(
        board(sampler, [word], quarters[name], 0.16, background)
        for name, word, background in zip(names, sampler.words(count), backgrounds, strict=True)
    )
    parts = [
        f"{named(carrier)} {name} that says {_quoted(carrier)}" for name, carrier in zip(names, carriers, strict=True)
    ]
    return ", ".join(parts), carriers


def _lines(sampler: SceneSampler) -> tuple[str, tuple[Carrier, ...]]:
    """Three to six lines on one board."""
    return _single(sampler, board(sampler, sampler.words(sampler.integer(3, 6)), height=0.13))


def _long(sampler: SceneSampler) -> tuple[str, tuple[Carrier, ...]]:
    """Two to five strings of two or three words each, in capitals and in small letters."""
    small = sampler.rng.random() < 0.5
    texts = [" ".join(sampler.words(sampler.integer(2, 3))) for _ in range(sampler.integer(2, 5))]
    return _single(sampler, board(sampler, [text.lower() if small else text for text in texts], height=0.1))


def _digits(sampler: SceneSampler) -> tuple[str, tuple[Carrier, ...]]:
    """Prices, dates, times, codes: digits with punctuation, which no rendered training string has."""
    makers: tuple[Callable[[], str], ...] = (
        lambda: f"${sampler.digits(2)}.{sampler.digits(2)}",
        lambda: f"{sampler.digits(2)}% OFF!",
        lambda: f"{sampler.integer(1, 28):02d}.{sampler.integer(1, 12):02d}.20{sampler.digits(2)}",
        lambda: f"{sampler.integer(0, 23):02d}:{sampler.integer(0, 59):02d}",
        lambda: f"No. {sampler.digits(sampler.integer(3, 5))}",
        lambda: f"+{sampler.digits(2)} {sampler.digits(3)}-{sampler.digits(4)}",
        lambda: f"{sampler.choice(tuple(string.ascii_uppercase))}-{sampler.digits(3)}/{sampler.digits(1)}",
        lambda: f"{sampler.words(1)[0].capitalize()}, {sampler.digits(4)}?",
    )
    texts = [makers[sampler.integer(0, len(makers) - 1)]() for _ in range(sampler.integer(1, 2))]
    return _single(sampler, board(sampler, texts, height=0.14))


def _small(sampler: SceneSampler) -> tuple[str, tuple[Carrier, ...]]:
    """One large word, and one to three lines of 2 to 5 % of the image's height."""
    background = sampler.choice(tuple(PALETTE))
    head = board(sampler, sampler.words(1), (0.08, 0.12, 0.92, 0.5), 0.2, background)
    texts = [" ".join(sampler.words(2)).capitalize() for _ in range(sampler.integer(1, 3))]
    foot = set_lines(sampler, (0.08, 0.55, 0.92, 0.86), texts, sampler.uniform(0.02, 0.05))
    carrier = Carrier(head.kind, background, head.text_colour, (0.08, 0.12, 0.92, 0.88), (*head.lines, *foot))
    small = " and ".join(f'"{line.text}"' for line in foot)
    letters = f"in {carrier.text_colour} letters"
    prompt = f"{named(carrier)} that says {_quoted(head)} {letters}, with small print that reads {small}"
    return prompt, (carrier,)


def _rare(sampler: SceneSampler) -> tuple[str, tuple[Carrier, ...]]:
    """One or two rare words; in `dev`, words made of syllables."""
    if sampler.split == "test":
        texts = sampler.choices(tuple(sorted(rare_words())), sampler.integer(1, 2))
    else:
        syllables = tuple(a + b for a in "BDFGKLMNPRSTVZ" for b in "AEIOU")
        texts = ["".join(sampler.choices(syllables, 3)) for _ in range(sampler.integer(1, 2))]
    cased = (str.upper, str.lower, str.capitalize)[sampler.integer(0, 2)]
    return _single(sampler, board(sampler, [cased(text) for text in texts]))


def _scripts(sampler: SceneSampler) -> tuple[str, tuple[Carrier, ...]]:
    """One or two words in Greek, Cyrillic or accented Latin letters."""
    language, dev, test = SCRIPT_WORDS[sampler.choice(tuple(SCRIPT_WORDS))]
    words = tuple((test if sampler.split == "test" else dev).split())
    return _single(sampler, board(sampler, sampler.choices(words, sampler.integer(1, 2)), language=language))


SUBSETS: dict[str, Callable[[SceneSampler], tuple[str, tuple[Carrier, ...]]]] = {
    "objects": _objects,
    "lines": _lines,
    "long": _long,
    "digits": _digits,
    "small": _small,
    "rare": _rare,
    "scripts": _scripts,
}
