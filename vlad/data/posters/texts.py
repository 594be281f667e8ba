"""What posters say: titles, names, phrases, prices, dates, items of a menu, numbers.

Words come from `words.txt`, the held-out ones never in a training set. A share of them is letters at random, so that a
model learns to spell rather than to know the words.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Literal

import numpy as np

from vlad.data.words import held_out_words, rare_words, training_words

Role = Literal["title", "name", "phrase", "price", "date", "item", "number"]
CONSONANTS, VOWELS = "bcdfghjklmnprstvwz", "aeiou"
MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec".split()
DAYS = "Mon Tue Wed Thu Fri Sat Sun".split()
# None of these is among the words held out from training (`words.py`).
TRADES = "Grill Books Bakery Hotel Bar Cinema Garage Salon Market Museum Studio Diner Pizza Records Tools".split()
OPENERS = "Grand Hot Live Best Warm Big Free Last Now Cool Early Night Super Happy Little Royal".split()
TRIES = 8  # at a text that is short enough


class Writer:
    """Draws texts from a generator of random numbers; `random_share` of the words are letters at random."""

    def __init__(self, rng: np.random.Generator, random_share: float, held_out: bool = False) -> None:
        self.rng, self.random_share = rng, random_share
        self.words = held_out_words() if held_out else training_words()
        self.forbidden = frozenset() if held_out else frozenset((*held_out_words(), *rare_words()))

    def text(self, role: Role, longest: int) -> str:
        """A text of a role, of two to `longest` characters."""
        for _ in range(TRIES):
            made: str = getattr(self, f"_{role}")()
            if 1 < len(made) <= longest:
                return made
        return self.word(longest)

    def word(self, longest: int) -> str:
        """One word with a capital, of three letters or more where `longest` allows."""
        if self.rng.random() >= self.random_share:
            for _ in range(TRIES):
                word = self._pick(self.words)
                if 3 <= len(word) <= longest:
                    return word.capitalize()
        return self._random_word(longest)

    def _random_word(self, longest: int) -> str:
        """Any letters, or consonants and vowels in turn."""
        while True:
            length = int(self.rng.integers(min(3, longest), min(longest, 9) + 1))
            if self.rng.random() < 0.5:
                kinds = [string.ascii_lowercase] * length
            else:
                first = int(self.rng.integers(2))
                kinds = [(CONSONANTS, VOWELS)[(first + place) % 2] for place in range(length)]
            word = "".join(map(self._pick, kinds))
            if word.upper() not in self.forbidden:
                return word.capitalize()

    def _pick(self, choices: Sequence[str]) -> str:
        return choices[int(self.rng.integers(len(choices)))]

    def _number_below(self, end: int) -> int:
        return int(self.rng.integers(1, end))

    def _title(self) -> str:
        one = self.word(9)
        two = f"{self.word(6)} {self.word(6)}"
        return self._pick((one, one, two, f"{self._pick(OPENERS)} {one}", f"The {one}"))

    def _name(self) -> str:
        one, trade = self.word(8), self._pick(TRADES)
        return self._pick((f"{one} {trade}", f"{one}'s {trade}", f"{one} & {self.word(7)}", f"{one}'s", one))

    def _phrase(self) -> str:
        one, other = self.word(8), self.word(7)
        share = f"{self._number_below(20) * 5}{self._pick(('%', ' %'))} off"
        plain = ("all welcome", "sold here", "free entry")
        return self._pick(
            (
                *(f"{self._pick(OPENERS)} {one}", f"{one} and {other}", f"by {one} {other}", f"for {one}", f"no {one}"),
                *(f"{one}, {other}", f"{one}!", f"{one}?", f"{one} {other}", f"since {self._year()}", share),
                self._pick(plain),
            )
        )

    def _price(self) -> str:
        whole = f"{self._pick('$£€')}{self._number_below(100)}"
        return whole if self.rng.random() < 0.4 else f"{whole}.{self._number_below(20) * 5:02d}"

    def _item(self) -> str:
        return f"{self.word(8)} {self._price()}"

    def _date(self) -> str:
        day, month, hour = self._number_below(32), self._pick(MONTHS), self._number_below(13)
        time = f"{hour}:{self._pick(('00', '15', '30', '45'))} {self._pick(('am', 'pm'))}"
        days = f"{self._pick(DAYS)} {hour}-{self._number_below(13)}", f"{self._pick(DAYS)} & {self._pick(DAYS)}"
        dates = f"{day} {month}", f"{day} {month} {self._year()}", f"{month} {day}", f"{day}.{self._number_below(13)}."
        return self._pick((*dates, time, *days))

    def _number(self) -> str:
        number = self._number_below(1000)
        return self._pick((f"No. {number}", f"Room {number}", f"Gate {self._number_below(100)}", f"Route {number}"))

    def _year(self) -> str:
        return str(int(self.rng.integers(1890, 2031)))
