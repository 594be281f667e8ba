"""Quotations in prompts: which strings an image has to spell, as people type them.

Pairs of quotation marks are those of `CLOSING_MARKS`, also escaped (\\"), doubled (""HELLO"", ``HELLO''), and as HTML
entities (&quot;). Rules for what is no quotation, as a reader would apply them:

    apostrophes    inside a word (don't), after a plural (the dogs' bowl, also inside 'Ladies' Night'), for letters and
                   digits left out (rock 'n' roll, 'til, the '90s)
    units          after a digit: 12" by 14", 5'10"
    mixed pairs    "HELLO” closes, and so does „HELLO", where no mark of its own does

Without any quotation, capitals after words such as "that says" or "with the text" are taken for one, in prompts that
people type (`strict`). `Quotations.notes` says which reading was taken where another is possible.
"""

from __future__ import annotations

import html
import re
import unicodedata
from dataclasses import dataclass

from vlad.types import Span
from vlad.utils.errors import UserError

CLOSING_MARKS = {
    '"': '"',
    "'": "'",
    "“": "”“",
    "„": "“”",
    "”": "”“",
    "‘": "’",
    "’": "’‘",
    "‚": "‘’",
    "«": "»",
    "»": "«»",
    "‹": "›",
    "›": "‹›",
    "「": "」",
    "『": "』",
    "《": "》",
    "〈": "〉",
    "【": "】",
    "〝": "〞〟",
    "＂": "＂",
    "`": "`'´",
    "´": "´",
}
DOUBLE, SINGLE = '"“”„＂', "'‘’‚`´"
APOSTROPHES = "'’"
# These open in some languages (»so«, ”so”, 'so') and close in others: directly after a letter they close.
_EITHER = "'’´`”»›"
_ALL_MARKS = "".join(dict.fromkeys([*CLOSING_MARKS, *"".join(CLOSING_MARKS.values())]))
_MARK = re.compile(rf"\\?(?:&(?:[a-zA-Z]{{4,6}}|#\d{{2,5}}|#[xX][0-9a-fA-F]{{2,4}});|[{_ALL_MARKS}])")
# Thai and Lao, Burmese, Hangul, Khmer, and from the CJK radicals on: kana, Han and the wide forms.
NO_APOSTROPHE = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\ua4cf\ua960-\ua97f\uac00-\ud7ff"
    "\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)
_DECADE = re.compile(r"\d\d(?:'?s)?(?!\w)")
_ELISION = re.compile(r"(?:n|em|til|till|tis|twas|cause|cos|cuz|round|bout|neath|tween|er)\b", re.IGNORECASE)
_AND = re.compile(r"n['’](?=\s+\w)", re.IGNORECASE)  # rock 'n' roll
_SAYING = re.compile(
    r"\b(?i:(?:with|has|having|bearing|shows|showing)\s+the\s+(?:text|words?|letters?|inscription|title|caption|slogan|name"
    r"|message)|the\s+(?:text|words?|letters|inscription)|that\s+(?:says|reads|spells)|saying|says|reading|reads|spelling"
    r"|spells|titled|entitled|labell?ed|captioned|inscribed)\s*:?\s+"
    r"(?P<words>[A-Z0-9][A-Z0-9&'’!?.,%$€£+/:-]*(?:[ \t]+[A-Z0-9&][A-Z0-9&'’!?.,%$€£+/:-]*)*)(?![a-z])"
)


@dataclass(frozen=True)
class Quotations:
    """The quoted strings of a text in order, and a sentence for each reading that was taken where two are possible."""

    spans: tuple[Span, ...]
    notes: tuple[str, ...] = ()
    # Each with its marks: start and end in the text.
    with_marks: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class _Mark:
    """A quotation mark at text[start:end], also as an entity, or doubled."""

    start: int
    end: int
    character: str


def joins_letter(character: str) -> bool:
    """Whether the character belongs to the letter before it: combining marks, vowel signs, joiners."""
    return unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf")


def read_quotations(text: str, strict: bool = True) -> Quotations:
    """The quoted strings of a prompt, outermost marks first, without empty ones.

    With `strict`, a mark that is never closed and marks around nothing raise UserError (with their place); otherwise,
    for captions from the web, such a mark is a plain character, and nothing is taken that is not in marks.
    """
    found = _Reader(text, strict).read()
    if not found.spans and strict:
        return _capitals(text, found)
    return found


def _capitals(text: str, found: Quotations) -> Quotations:
    """Capitals after `with the text` and the like, where nothing is quoted."""
    spans = []
    for match in _SAYING.finditer(text):
        words = match["words"].rstrip(" \t.,:")
        if sum(character.isupper() for character in words) > 1 or words.isdigit():
            spans.append(Span(words, match.start("words"), match.start("words") + len(words)))
    notes = [f'{span.text} is taken for the words to spell; write "..." around others.' for span in spans]
    return Quotations(tuple(spans), (*found.notes, *notes), tuple((span.start, span.end) for span in spans))


class _Reader:
    """One text with its marks."""

    def __init__(self, text: str, strict: bool) -> None:
        self.text, self.strict = text, strict
        self.marks = _marks(text)
        self.notes: list[str] = []

    def read(self) -> Quotations:
        spans: list[Span] = []
        with_marks: list[tuple[int, int]] = []
        number = 0
        while number < len(self.marks):
            if not self._opens(number):
                number += 1
                continue
            closing = self._closing(number)
            mark = self.marks[number]
            if closing is None:
                if self.strict:
                    self._refuse_unclosed(mark)
                number += 1
                continue
            end = self.marks[closing].start
            if self._is_escaped(mark) and self._is_escaped(self.marks[closing]):
                end -= 1
            content = self.text[mark.end : end]
            if self.strict and not content.strip():
                raise UserError(
                    f"Nothing is between the quotation marks at character {mark.start + 1} of the prompt {self.text!r};"
                    " write the words to spell there, or take the marks out."
                )
            if content.strip():
                start = mark.end + len(content) - len(content.lstrip())
                spans.append(Span(content.strip(), start, start + len(content.strip())))
                with_marks.append((mark.start - self._is_escaped(mark), self.marks[closing].end))
            number = closing + 1
        return Quotations(tuple(spans), tuple(self.notes), tuple(with_marks))

    def _refuse_unclosed(self, mark: _Mark) -> None:
        raise UserError(
            f"The quotation mark {mark.character} at character {mark.start + 1} of the prompt {self.text!r} is never"
            f" closed; add {CLOSING_MARKS[mark.character][0]} after the words to spell, or remove it."
        )

    def _is_escaped(self, mark: _Mark) -> bool:
        return self.text[: mark.start].endswith("\\")

    def _before(self, mark: _Mark) -> str:
        """The character before the mark and its backslash."""
        head = self.text[: mark.start].removesuffix("\\")
        return head[-1] if head else " "

    def _after(self, mark: _Mark) -> str:
        return self.text[mark.end] if mark.end < len(self.text) else " "

    def _is_apostrophe(self, mark: _Mark) -> bool:
        """Whether the mark is between two letters: don't, l’eau."""
        if mark.character not in APOSTROPHES or mark.end - mark.start > 1:
            return False
        return takes_apostrophe(self._before(mark)) and takes_apostrophe(self._after(mark))

    def _stands_open(self, mark: _Mark) -> bool:
        """Whether the mark stands where a quotation begins: after a space, before none."""
        return not takes_apostrophe(self._before(mark)) and not self._after(mark).isspace()

    def _stands_closed(self, mark: _Mark) -> bool:
        """Whether the mark stands where a quotation ends: after no space, before no letter."""
        return not self._before(mark).isspace() and not takes_apostrophe(self._after(mark))

    def _is_unit(self, mark: _Mark) -> bool:
        """Whether the mark is that of inches or feet: 12" by 14", 5'10"."""
        return mark.character in "\"'”’" and self._before(mark).isdigit() and not takes_apostrophe(self._after(mark))

    def _is_elision(self, number: int) -> bool:
        """Whether the mark stands for what is left out: '90s, 'til, rock 'n' roll."""
        mark = self.marks[number]
        if mark.character not in APOSTROPHES or mark.end - mark.start > 1:
            return False
        rest = self.text[mark.end :]
        before = self.text[: mark.start].rstrip()
        if _AND.match(rest) and before and takes_apostrophe(before[-1]) and self.text[mark.start - 1].isspace():
            return True
        if not (_DECADE.match(rest) or _ELISION.match(rest)):
            return False
        # '90s night' is a quotation: the next single mark that is no apostrophe closes it.
        for other in self.marks[number + 1 :]:
            if other.character in SINGLE and not self._is_apostrophe(other):
                return self._stands_open(other) or not self._stands_closed(other)
        return True

    def _opens(self, number: int) -> bool:
        """Whether a quotation can begin with the mark: a closing quote never follows a word's own letters."""
        mark = self.marks[number]
        # "the dogs' bowl", 6” of wood: directly after a letter such a mark closes, even if nothing was opened.
        closes = mark.character in _EITHER and mark.start > 0 and takes_apostrophe(self._before(mark))
        if mark.character not in CLOSING_MARKS or closes or self._is_apostrophe(mark) or self._is_unit(mark):
            return False
        if self._is_elision(number):
            word = self.text[mark.start :].split()[0]
            self.notes.append(f"{word} is taken for a word with an apostrophe, not for words to spell.")
            return False
        return mark.character not in "’´" or self._has_closing_single(number)

    def _has_closing_single(self, number: int) -> bool:
        return any(
            mark.character in CLOSING_MARKS[self.marks[number].character]
            and not self._is_apostrophe(mark)
            and self._stands_closed(mark)
            for mark in self.marks[number + 1 :]
        )

    def _closing(self, number: int) -> int | None:
        """Where the quotation that this mark opens ends; None: nowhere."""
        opening = self.marks[number]
        own, family = CLOSING_MARKS[opening.character], _family(opening.character)
        doubled = opening.end - opening.start > 1 and opening.character in DOUBLE + SINGLE
        nested: list[str] = []
        for index in range(number + 1, len(self.marks)):
            mark = self.marks[index]
            if mark.character in own:
                if not self._is_apostrophe(mark) and not self._is_inside(opening, index):
                    return index
            elif nested and mark.character in CLOSING_MARKS[nested[-1]] and not self._stands_open(mark):
                nested.pop()
            elif mark.character in CLOSING_MARKS and self._stands_open(mark) and not self._is_elision(index):
                nested.append(mark.character)
            elif mark.character in family and not nested and self._closes_mixed(opening, mark, index):
                return index
        if doubled:
            return None
        # A mark of another kind, where none of its own follows.
        for index in range(number + 1, len(self.marks)):
            mark = self.marks[index]
            if mark.character in family and self._stands_closed(mark) and not self._is_apostrophe(mark):
                return index
        return None

    def _closes_mixed(self, opening: _Mark, mark: _Mark, index: int) -> bool:
        """Whether a mark of another kind, such as the ” of "HELLO”, ends the quotation: nothing inside opened it."""
        return (
            self._stands_closed(mark)
            and not self._is_apostrophe(mark)
            and not self._is_unit(mark)
            and not self._is_inside(opening, index)
        )

    def _is_inside(self, opening: _Mark, index: int) -> bool:
        """Whether a mark that could end the quotation belongs to it: a plural's apostrophe, inches, where another mark
        stands ready to end it."""
        mark = self.marks[index]
        same, after = CLOSING_MARKS[opening.character], self.marks[index + 1 :]
        later = [other for other in after if other.character in same and not self._is_apostrophe(other)]
        if not later:
            return False
        if mark.character in APOSTROPHES:
            # 'Ladies' Night': a plural before a word, and the next mark ends a word.
            plural = self._before(mark) in "sS" and re.match(r"\s+\w", self.text[mark.end :]) is not None
            rest = self.text[mark.end :]
            left_out = self._stands_open(mark) and bool(_DECADE.match(rest) or _ELISION.match(rest))
            of_and = _AND.match(self.text[mark.start - 1 :]) is not None  # the second mark of 'n'
            return (plural or left_out or of_and) and self._stands_closed(later[0])
        if self._is_unit(mark) and mark.character in DOUBLE:
            # "A 12" pizza": an odd number of marks is left, and the next one ends a word.
            return len(later) % 2 == 1 and self._stands_closed(later[0]) and not self._stands_open(later[0])
        return False


def takes_apostrophe(character: str) -> bool:
    """Whether an apostrophe can follow or precede it: letters and digits of scripts that have apostrophes."""
    return (character.isalnum() or joins_letter(character)) and not NO_APOSTROPHE.match(character)


def _family(character: str) -> str:
    return DOUBLE if character in DOUBLE else SINGLE if character in SINGLE else ""


def _marks(text: str) -> list[_Mark]:
    """The quotation marks of a text; doubled ones count as one where two such runs make a pair."""
    runs: list[list[_Mark]] = []
    for match in _MARK.finditer(text):
        escaped = match.group().startswith("\\")
        character = html.unescape(match.group()[escaped:])
        if len(character) != 1 or character not in _ALL_MARKS:  # another entity
            continue
        mark = _Mark(match.start() + escaped, match.end(), character)
        last = runs[-1][-1] if runs else None
        beside = last is not None and (last.end, last.character) == (mark.start, mark.character)
        if beside and character in DOUBLE + SINGLE:
            runs[-1].append(mark)
        else:
            runs.append([mark])
    lengths = [len(run) for run in runs]
    joined: list[_Mark] = []
    for run in runs:
        if len(run) > 1 and lengths.count(len(run)) > 1:
            joined.append(_Mark(run[0].start, run[-1].end, run[0].character))
        else:
            joined += run
    return joined
