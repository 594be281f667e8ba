"""Scenes of the open benchmark that ask an encoder what a prompt means: counting, relations, synonyms, templates.

    relations   a red ring above a blue sign, and the sign says "OAK"   swapped: order, colours     same: below
    counting    three green crosses below a white sign that says ...    swapped: every other count  same: 3
    synonyms    the same as relations, each in three further wordings   swapped: order, colours
    templates   a blue sign that says "OAK"                             zero-shot: its word, its colour

Swapped prompts of `order` and `colours` are made of the very words of their prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from vlad.data.signs import PALETTE
from vlad.eval.alignment.alignment_prompts import Asked, Swapped, ZeroShot
from vlad.eval.open_benchmark.scenes import SHAPES, Carrier, Draws, board, with_article

NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
# Each relation with its inverse and with another way to say it; where the first and the second thing stand.
LEFT, RIGHT = (0.05, 0.22, 0.47, 0.78), (0.53, 0.22, 0.95, 0.78)
TOP, BOTTOM = (0.18, 0.05, 0.82, 0.47), (0.18, 0.53, 0.82, 0.95)
RELATIONS = {
    "to the left of": ("to the right of", "on the left side of", LEFT, RIGHT),
    "to the right of": ("to the left of", "on the right side of", RIGHT, LEFT),
    "above": ("below", "over", TOP, BOTTOM),
    "below": ("above", "beneath", BOTTOM, TOP),
}
OTHER_NAMES = {"circle": "disc", "diamond": "rhombus", "ring": "hoop", "sign": "board", "purple": "violet"}
WORD_TEMPLATES = (
    'a sign that says "{}"',
    'a board that reads "{}"',
    'the word "{}"',
    'a photo of the word "{}"',
    'a picture of a sign with the text "{}"',
    '"{}" in large letters',
    'someone wrote "{}" on a board',
    'here you can read "{}"',
)
COLOUR_TEMPLATES = (
    "{} sign",
    "a sign painted {}",
    "a photo of a sign, and the sign is {}",
    "the colour of the sign is {}",
    "a picture of a board in {}",
    "a sign whose ground is {}, with a word on it",
)
Box = tuple[float, float, float, float]
Thing = tuple[str, str]  # what it is, and its colour
Told = tuple[str, tuple[Carrier, ...], Asked]


def _thing(thing: Thing) -> str:
    kind, colour = thing
    return with_article(f"{colour} {kind}")


def _otherwise(thing: Thing) -> Thing:
    kind, colour = thing
    return OTHER_NAMES.get(kind, kind), OTHER_NAMES.get(colour, colour)


def _related(first: Thing, relation: str, second: Thing, word: str, sign: str = "sign", verb: str = "says") -> str:
    return f'{_thing(first)} {relation} {_thing(second)}, and the {sign} {verb} "{word}"'


def _sign(draws: Draws, word: str, box: Box, ground: str) -> Carrier:
    return replace(board(draws, [word], box, 0.16, ground), kind="sign")


def _shape(kind: str, colour: str, box: Box) -> Carrier:
    return Carrier(kind, colour, colour, box, ())


def _two_things(draws: Draws, shapes: tuple[str, ...]) -> tuple[Thing, str, Thing, str, tuple[Carrier, ...]]:
    """A sign with a word and a shape, in either order: the first, its relation, the second, the word; how they look."""
    relation = draws.one(tuple(RELATIONS))
    *_, first_box, second_box = RELATIONS[relation]
    colours = draws.several(tuple(PALETTE), 2)
    (word,) = draws.words(1)
    kinds = ("sign", draws.one(shapes))
    if draws.rng.random() < 0.5:
        kinds = kinds[::-1]
    first, second = zip(kinds, colours, strict=True)
    carriers = tuple(
        _sign(draws, word, box, colour) if kind == "sign" else _shape(kind, colour, box)
        for (kind, colour), box in ((first, first_box), (second, second_box))
    )
    return first, relation, second, word, carriers


def _swaps(first: Thing, relation: str, second: Thing, word: str) -> tuple[Swapped, ...]:
    """What the image does not show, in the words of its prompt."""
    return (
        Swapped("order", _related(second, relation, first, word)),
        Swapped("colours", _related((first[0], second[1]), relation, (second[0], first[1]), word)),
    )


def _relations(draws: Draws) -> Told:
    """A sign and a shape, one to the left or right of the other, above or below it."""
    first, relation, second, word, carriers = _two_things(draws, SHAPES)
    inverse = RELATIONS[relation][0]
    asked = Asked(_swaps(first, relation, second, word), (_related(second, inverse, first, word),))
    return _related(first, relation, second, word), carriers, asked


def _synonyms(draws: Draws) -> Told:
    """The same, said in other words, the other way round, and in another sentence."""
    shapes = tuple(shape for shape in SHAPES if shape in OTHER_NAMES)
    first, relation, second, word, carriers = _two_things(draws, shapes)
    inverse, otherwise, *_ = RELATIONS[relation]
    a, b = _otherwise(first), _otherwise(second)
    sign, shape, of_sign = (first, b, inverse) if first[0] == "sign" else (second, a, relation)
    same = (
        _related(a, otherwise, b, word, OTHER_NAMES["sign"], "reads"),
        _related(b, RELATIONS[inverse][1], a, word, OTHER_NAMES["sign"], "reads"),
        f'"{word}" is written on {_thing(sign)}, and {_thing(shape)} is {of_sign} it',
    )
    return _related(first, relation, second, word), carriers, Asked(_swaps(first, relation, second, word), same)


def _counting(draws: Draws) -> Told:
    """Two to six shapes in a row, above or below a sign."""
    count, shape = draws.count(min(NUMBERS), max(NUMBERS)), draws.one(SHAPES)
    colour, ground = draws.several(tuple(PALETTE), 2)
    (word,) = draws.words(1)
    relation = draws.one(("above", "below"))
    inverse, _, (_, top, _, bottom), sign_box = RELATIONS[relation]
    pitch = 0.92 / max(NUMBERS)
    left = 0.5 - count * pitch / 2
    row = tuple(
        _shape(shape, colour, (left + (n + 0.08) * pitch, top, left + (n + 0.92) * pitch, bottom)) for n in range(count)
    )
    shapes = f"{colour} {shape}{'es' if shape.endswith('s') else 's'}"
    sign = _thing(("sign", ground))

    def told(number: int | str) -> str:
        return f'{number} {shapes} {relation} {sign}, and the sign says "{word}"'

    swapped = tuple(Swapped("count", told(name)) for number, name in NUMBERS.items() if number != count)
    same = (told(count), f'{sign} {inverse} {NUMBERS[count]} {shapes}, and the sign says "{word}"')
    return told(NUMBERS[count]), (*row, _sign(draws, word, sign_box, ground)), Asked(swapped, same)


def _templates(draws: Draws) -> Told:
    """One sign: which word it carries and which colour it has, asked in many ways."""
    (word,), ground = draws.words(1), draws.one(tuple(PALETTE))
    asked = (ZeroShot("word", word, WORD_TEMPLATES), ZeroShot("colour", ground, COLOUR_TEMPLATES))
    carrier = _sign(draws, word, (0.08, 0.12, 0.92, 0.88), ground)
    return f'{_thing(("sign", ground))} that says "{word}"', (carrier,), Asked(zero_shot=asked)


ALIGNMENT_SUBSETS: dict[str, Callable[[Draws], Told]] = {
    "counting": _counting,
    "relations": _relations,
    "synonyms": _synonyms,
    "templates": _templates,
}
