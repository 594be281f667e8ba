"""Quotations in prompts: which strings an image has to spell, as people type them.

Pairs of quotation marks are those of `CLOSING_MARKS`, also escaped (\\"), doubled (""HELLO"", ``HELLO''), as HTML
entities (&quot;), and as they are typed where the keyboard has none (<<HELLO>>, ,,HELLO''). Rules for what is no
quotation, as a reader would apply them:

    apostrophes    inside a word (don't), after a plural (the dogs' bowl, also inside 'Ladies' Night'), for letters and
                   digits left out (rock 'n' roll, 'til, the '90s)
    units          after a digit: 12" by 14", 12"x14", 5'10"
    mixed pairs    "HELLO” closes, and so does „HELLO", where no mark of its own does

Without any quotation, capitals after words such as "that says" or "with the text" are taken for one, in prompts that
people type (`strict`). `Quotations.notes` says which reading was taken where another is possible.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
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
    "〖": "〗",
    "〔": "〕",
    "｢": "｣",
    "﹁": "﹂",
    "﹃": "﹄",
    "〝": "〞〟",
    "＂": "＂",
    "＇": "＇",
    "‟": "”“",
    "‛": "’‘",
    "❝": "❞",
    "❛": "❜",
    "`": "`'´",
    "´": "´",
}
MOST_MARKS = 512  # that are paired in one text; later ones are plain characters
MOST_WORD = 32  # characters beside a mark that decide what it is
DOUBLE, SINGLE = '"“”„‟＂', "'‘’‚‛`´"
APOSTROPHES = "'’"
# These open in some languages (»so«, ”so”, 'so') and close in others: directly after a letter they close.
_EITHER = "'’´`”»›"
_ALL_MARKS = "".join(dict.fromkeys([*CLOSING_MARKS, *"".join(CLOSING_MARKS.values())]))
_MARK = re.compile(
    r"(?P<slashes>(?<!\\)\\*)"
    rf"(?:&(?:amp;)*(?P<entity>[a-zA-Z]{{4,6}}|#\d{{2,5}}|#[xX][0-9a-fA-F]{{2,4}});|[{_ALL_MARKS}])"
)
_ANGLES = re.compile(r"<<([^<>]+)>>")
_COMMAS = re.compile(r",,(?=\w)([^,'\"“”„]+)(''|(?=[\"“”]))")
# Thai and Lao, Burmese, Hangul, Khmer, and from the CJK radicals on: kana, Han and the wide forms.
NO_APOSTROPHE = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\ua4cf\ua960-\ua97f\uac00-\ud7ff"
    "\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)
_DECADE = re.compile(r"\d\d(?:'?s)?(?!\w)")
_ELISION = re.compile(
    r"(?:n|em|til|till|tis|twas|twere|twill|cause|cos|coz|cuz|round|bout|neath|tween|gainst|cept|er|im|ere|ello|allo|nuff|sup"
    r"|hood)\b",
    re.IGNORECASE,
)
_AND = re.compile(r"n['’](?=\s+\w)", re.IGNORECASE)  # rock 'n' roll
_UNIT_ENDS = re.compile(r"[xX×]\s?\d|[wWhHdDlL]\b|\W|$")  # 12"x14", 24"W
_SAYING = re.compile(
    r"\b(?i:(?:with|has|having|bearing|shows|showing)\s+(?:the\s+)?(?:text|words?|letters?|numbers?|inscription|title"
    r"|caption|slogan|name|message|phrase|headline)|the\s+(?:text|words?|letters?|phrase|inscription)|text(?=\s*:)"
    r"|that\s+(?:says|reads|spells)|saying|says|reading|reads|spelling|spells|titled|entitled|labell?ed|captioned"
    r"|inscribed)\s*:?\s+"
)
_AFTER_NUMBERS = re.compile(r"\s*(?:[^\s\w]|$|(?:in|on|at|with|and|above|below|over|under)\b)", re.IGNORECASE)


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
    spans: list[Span] = []
    for match in _SAYING.finditer(text):
        start = end = match.end()
        for word in re.compile(r"\S+").finditer(text, start):
            if any(c.islower() for c in word.group()) or not (word.group()[0].isalnum() or end > start):
                break
            end = word.end()
            if word.group()[-1] in ".,:;":  # "that says OPEN, 4K" ends at the comma
                break
        words = text[start:end].rstrip(" \t.,:;-–—&+|/(")
        capitals = sum(character.isupper() for character in words)
        is_letter = capitals == 1 == len(words) and "letter" in match.group().lower()
        is_number = not capitals and any(c.isdigit() for c in words) and _AFTER_NUMBERS.match(text, start + len(words))
        if capitals > 1 or is_letter or is_number:
            spans.append(Span(words, start, start + len(words)))
    notes = [f'{span.text} is taken for the words to spell; write "..." around others.' for span in spans]
    return Quotations(tuple(spans), (*found.notes, *notes), tuple((span.start, span.end) for span in spans))


class _Reader:
    """One text with its marks."""

    def __init__(self, text: str, strict: bool) -> None:
        self.typed, self.strict = text, strict
        self.text = _with_own_marks(text)  # as long as the text, and equal to it outside of marks
        self.marks = _marks(self.text)[:MOST_MARKS]
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
            if self._backslashes(mark):
                end -= self._backslashes(self.marks[closing])
            content = self.text[mark.end : end]
            if self.strict and not content.strip():
                raise UserError(
                    f"Nothing is between the quotation marks at character {mark.start + 1} of the prompt"
                    f" {self.typed!r}; write the words to spell there, or take the marks out."
                )
            if content.strip():
                start = mark.end + len(content) - len(content.lstrip())
                stop = start + len(content.strip())
                spans.append(Span(self.typed[start:stop], start, stop))
                with_marks.append((mark.start - self._backslashes(mark), self.marks[closing].end))
            number = closing + 1
        return Quotations(tuple(spans), tuple(self.notes), tuple(with_marks))

    def _refuse_unclosed(self, mark: _Mark) -> None:
        raise UserError(
            f"The quotation mark {mark.character} at character {mark.start + 1} of the prompt {self.typed!r} is never"
            f" closed; add {CLOSING_MARKS[mark.character][0]} after the words to spell, or remove it."
        )

    def _backslashes(self, mark: _Mark) -> int:
        head = self.text[max(0, mark.start - MOST_WORD) : mark.start]
        return len(head) - len(head.rstrip("\\"))

    def _before(self, mark: _Mark) -> str:
        """The character before the mark and its backslashes."""
        head = self.text[max(0, mark.start - MOST_WORD) : mark.start].rstrip("\\")
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
        after_number = unicodedata.category(self._before(mark)) in ("Nd", "No")  # 12, 9½
        return mark.character in "\"'”’" and after_number and _UNIT_ENDS.match(self.text, mark.end) is not None

    def _is_elision(self, number: int) -> bool:
        """Whether the mark stands for what is left out: '90s, 'til, rock 'n' roll."""
        mark = self.marks[number]
        if mark.character not in APOSTROPHES or mark.end - mark.start > 1:
            return False
        rest = self.text[mark.end : mark.end + MOST_WORD]
        before = self.text[max(0, mark.start - MOST_WORD) : mark.start]
        if _AND.match(rest) and before[-1:].isspace() and takes_apostrophe(before.rstrip()[-1:] or " "):
            return True
        if not _leaves_out(rest):
            # 'nuff said, a sign 'OK': what the mark would open ends where another quotation begins.
            return rest[:1].islower() and self._stands_before_another(number)
        # '90s night' is a quotation: the next single mark that is no apostrophe closes it.
        for other in self.marks[number + 1 :]:
            if other.character in SINGLE and not self._is_apostrophe(other):
                return self._stands_open(other) or not self._stands_closed(other)
        return True

    def _stands_before_another(self, number: int) -> bool:
        """Whether the next mark that could close this one opens a quotation of its own that is closed."""
        after = [
            mark
            for mark in self.marks[number + 1 :]
            if not self._is_apostrophe(mark)
            and not any(_AND.match(self.text, at) for at in (mark.start - 1, mark.end))
            and not (self._stands_open(mark) and _leaves_out(self.text[mark.end : mark.end + MOST_WORD]))
        ]
        single = [mark for mark in after if mark.character in SINGLE]
        if not single:
            return any(mark.character in CLOSING_MARKS for mark in after)
        return self._stands_open(single[0]) and any(self._stands_closed(mark) for mark in single[1:])

    def _opens(self, number: int) -> bool:
        """Whether a quotation can begin with the mark: a closing quote never follows a word's own letters."""
        mark = self.marks[number]
        # "the dogs' bowl", 6” of wood: directly after a letter such a mark closes, even if nothing was opened.
        closes = mark.character in _EITHER and mark.start > 0 and takes_apostrophe(self._before(mark))
        if mark.character not in CLOSING_MARKS or closes or self._is_apostrophe(mark) or self._is_unit(mark):
            return False
        if self._is_elision(number):
            word = self.text[mark.start :].split()[0].rstrip(",.;:!?")
            self.notes.append(f'{word} is taken for a word with an apostrophe; write "..." around words to spell.')
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
        rest = self.text[mark.end : mark.end + MOST_WORD]
        is_inches = self._is_unit(mark) and mark.character in DOUBLE
        if mark.character in APOSTROPHES:
            # 'Ladies' Night': a plural before a word, and the next mark ends a word.
            plural = self._before(mark) in "sS" and re.match(r"\s+\w", rest) is not None
            left_out = self._stands_open(mark) and _leaves_out(rest)
            of_and = _AND.match(self.text, mark.start - 1) is not None  # the second mark of 'n'
            if not (plural or left_out or of_and):
                return False
        elif not is_inches:
            return False
        # "A 12" pizza": an odd number of marks is left that are no inches, and the next one ends a word.
        same = CLOSING_MARKS[opening.character]
        later = [
            other
            for other in self.marks[index + 1 :]
            if other.character in same and not self._is_apostrophe(other) and not (is_inches and self._is_unit(other))
        ]
        if not later or not self._stands_closed(later[0]):
            return False
        return not is_inches or (len(later) % 2 == 1 and not self._stands_open(later[0]))


def takes_apostrophe(character: str) -> bool:
    """Whether an apostrophe can follow or precede it: letters and digits of scripts that have apostrophes."""
    return (character.isalnum() or joins_letter(character)) and not NO_APOSTROPHE.match(character)


def _leaves_out(rest: str) -> bool:
    """Whether the text begins with a word whose first letters or digits are left out: 90s, til."""
    return bool(_DECADE.match(rest) or _ELISION.match(rest))


def _family(character: str) -> str:
    return DOUBLE if character in DOUBLE else SINGLE if character in SINGLE else ""


def _with_own_marks(text: str) -> str:
    """The text with «, » and „ where they are typed as <<, >> and ,, and as many characters."""
    text = _ANGLES.sub(r"« \1 »", text)
    return _COMMAS.sub(lambda match: f"„ {match[1]}" + " ”" * (match[2] == "''"), text)


def _marks(text: str) -> list[_Mark]:
    """The quotation marks of a text; doubled ones count as one where two such runs make a pair, or where a single one
    makes it ("HELLO"")."""
    runs: list[list[_Mark]] = []
    for match in _MARK.finditer(text):
        start = match.end("slashes")
        character = html.unescape(f"&{match['entity']};") if match["entity"] else text[start]
        if len(character) != 1 or character not in _ALL_MARKS:  # another entity
            continue
        mark = _Mark(start, match.end(), character)
        last = runs[-1][-1] if runs else None
        beside = last is not None and (last.end, last.character) == (mark.start, mark.character)
        if beside and character in DOUBLE + SINGLE:
            runs[-1].append(mark)
        else:
            runs.append([mark])
    lengths = [len(run) for run in runs]
    count = Counter(mark.character for run in runs for mark in run)
    joined: list[_Mark] = []
    for run in runs:
        one = _Mark(run[0].start, run[-1].end, run[0].character)
        is_odd = count[one.character] % 2 == 1 and _is_beside_word(text, one)
        if len(run) > 1 and (lengths.count(len(run)) > 1 or is_odd):
            joined.append(one)
        else:
            joined += run
    return joined


def _is_beside_word(text: str, mark: _Mark) -> bool:
    """Whether a word begins after the mark, or something ends before it, but not both."""
    before, after = text[: mark.start][-1:] or " ", text[mark.end :][:1] or " "
    return takes_apostrophe(after) == before.isspace() and not _leaves_out(text[mark.end :])
