"""The open benchmark's alignment subsets: counting, relations, synonyms, zero-shot templates.

    subset      prompt                                              hard negatives      paraphrases, tasks
    relations   a red ring above a blue sign, and the sign says ... order, colours      one, with the inverse relation
    counting    three green crosses below a white sign that ...     every other count   two, one with a digit
    synonyms    the same as relations                               order, colours      three, in other words
    templates   a blue sign that says "OAK"                         none                zero-shot: its word, its colour

Hard negatives of `order` and `colours` are made of the very words of their prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from vlad.data.posters.captions import with_article
from vlad.data.signs import PALETTE
from vlad.eval.alignment.alignment_prompts import AlignmentTexts, HardNegative, ZeroShotTask
from vlad.eval.open_benchmark.scenes import SHAPES, Carrier, SceneSampler, board
from vlad.eval.options import Box

NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
# Each relation with its inverse, a synonym, and the boxes of the first and the second thing.
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
Thing = tuple[str, str]  # kind, colour
Sampled = tuple[str, tuple[Carrier, ...], AlignmentTexts]  # prompt, scene, other texts


def _thing(thing: Thing) -> str:
    kind, colour = thing
    return with_article(f"{colour} {kind}")


def _renamed(thing: Thing) -> Thing:
    kind, colour = thing
    return OTHER_NAMES.get(kind, kind), OTHER_NAMES.get(colour, colour)


def _related(first: Thing, relation: str, second: Thing, word: str, sign: str = "sign", verb: str = "says") -> str:
    return f'{_thing(first)} {relation} {_thing(second)}, and the {sign} {verb} "{word}"'


def _sign(sampler: SceneSampler, word: str, box: Box, background: str) -> Carrier:
    return replace(board(sampler, [word], box, 0.16, background), kind="sign")


def _shape(kind: str, colour: str, box: Box) -> Carrier:
    return Carrier(kind, colour, colour, box, ())


def _two_things(sampler: SceneSampler, shapes: tuple[str, ...]) -> tuple[Thing, str, Thing, str, tuple[Carrier, ...]]:
    """A sign with a word and a shape in either order: first thing, relation, second thing, word, carriers."""
    relation = sampler.choice(tuple(RELATIONS))
    *_, first_box, second_box = RELATIONS[relation]
    colours = sampler.choices(tuple(PALETTE), 2)
    (word,) = sampler.words(1)
    kinds = ("sign", sampler.choice(shapes))
    if sampler.rng.random() < 0.5:
        kinds = kinds[::-1]
    first, second = zip(kinds, colours, strict=True)
    carriers = tuple(
        _sign(sampler, word, box, colour) if kind == "sign" else _shape(kind, colour, box)
        for (kind, colour), box in ((first, first_box), (second, second_box))
    )
    return first, relation, second, word, carriers


def _negatives(first: Thing, relation: str, second: Thing, word: str) -> tuple[HardNegative, ...]:
    """Hard negatives in the words of the prompt."""
    return (
        HardNegative("order", _related(second, relation, first, word)),
        HardNegative("colours", _related((first[0], second[1]), relation, (second[0], first[1]), word)),
    )


def _relations(sampler: SceneSampler) -> Sampled:
    """A sign and a shape, one to the left or right of the other, above or below it."""
    first, relation, second, word, carriers = _two_things(sampler, SHAPES)
    inverse = RELATIONS[relation][0]
    texts = AlignmentTexts(_negatives(first, relation, second, word), (_related(second, inverse, first, word),))
    return _related(first, relation, second, word), carriers, texts


def _synonyms(sampler: SceneSampler) -> Sampled:
    """The same with paraphrases: synonyms, the inverse relation, another sentence."""
    shapes = tuple(shape for shape in SHAPES if shape in OTHER_NAMES)
    first, relation, second, word, carriers = _two_things(sampler, shapes)
    inverse, synonym, *_ = RELATIONS[relation]
    a, b = _renamed(first), _renamed(second)
    sign, shape, of_sign = (first, b, inverse) if first[0] == "sign" else (second, a, relation)
    paraphrases = (
        _related(a, synonym, b, word, OTHER_NAMES["sign"], "reads"),
        _related(b, RELATIONS[inverse][1], a, word, OTHER_NAMES["sign"], "reads"),
        f'"{word}" is written on {_thing(sign)}, and {_thing(shape)} is {of_sign} it',
    )
    return (
        _related(first, relation, second, word),
        carriers,
        AlignmentTexts(_negatives(first, relation, second, word), paraphrases),
    )


def _counting(sampler: SceneSampler) -> Sampled:
    """Two to six shapes in a row, above or below a sign."""
    count, shape = sampler.integer(min(NUMBERS), max(NUMBERS)), sampler.choice(SHAPES)
    colour, background = sampler.choices(tuple(PALETTE), 2)
    (word,) = sampler.words(1)
    relation = sampler.choice(("above", "below"))
    inverse, _, (_, top, _, bottom), sign_box = RELATIONS[relation]
    pitch = 0.92 / max(NUMBERS)
    left = 0.5 - count * pitch / 2
    row = tuple(
        _shape(shape, colour, (left + (n + 0.08) * pitch, top, left + (n + 0.92) * pitch, bottom)) for n in range(count)
    )
    shapes = f"{colour} {shape}{'es' if shape.endswith('s') else 's'}"
    sign = _thing(("sign", background))

    def phrase(number: int | str) -> str:
        return f'{number} {shapes} {relation} {sign}, and the sign says "{word}"'

    negatives = tuple(HardNegative("count", phrase(name)) for number, name in NUMBERS.items() if number != count)
    paraphrases = (phrase(count), f'{sign} {inverse} {NUMBERS[count]} {shapes}, and the sign says "{word}"')
    return (
        phrase(NUMBERS[count]),
        (*row, _sign(sampler, word, sign_box, background)),
        AlignmentTexts(negatives, paraphrases),
    )


def _templates(sampler: SceneSampler) -> Sampled:
    """One sign, whose word and colour are zero-shot tasks with many templates."""
    (word,), background = sampler.words(1), sampler.choice(tuple(PALETTE))
    tasks = (ZeroShotTask("word", word, WORD_TEMPLATES), ZeroShotTask("colour", background, COLOUR_TEMPLATES))
    carrier = _sign(sampler, word, (0.08, 0.12, 0.92, 0.88), background)
    return f'{_thing(("sign", background))} that says "{word}"', (carrier,), AlignmentTexts(zero_shot=tasks)


ALIGNMENT_SUBSETS: dict[str, Callable[[SceneSampler], Sampled]] = {
    "counting": _counting,
    "relations": _relations,
    "synonyms": _synonyms,
    "templates": _templates,
}
