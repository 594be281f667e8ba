"""Scenes: the kinds of posters, each with its panels and the boxes that its lines of text go into.

    number of lines, generator -> Scene: nouns of the caption, panels under the text, slots from the top down

Boxes are left, top, right, bottom in shares of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from vlad.data.posters.texts import Role

Box = tuple[float, float, float, float]
Align = Literal["left", "centre", "right"]
Form = Literal["rectangle", "rounded", "ellipse", "frame", "awning", "ticket", "note", "post", "window"]
LEAD = "lead"  # the colour of a panel that the caption names first
MARGIN = 0.06
LEAST_ROOM = 0.16  # for an object, a side


@dataclass(frozen=True)
class Panel:
    """A part under the text. `colour`: a name, LEAD, or None for the background's own, `shade` times as light."""

    form: Form
    box: Box
    colour: str | None = LEAD
    shade: float = 1.0


@dataclass(frozen=True)
class Slot:
    """A box for one line of text; `arc` and `turn` are the degrees of `lettering.Setting`."""

    box: Box
    role: Role
    align: Align = "centre"
    arc: float = 0.0
    turn: float = 0.0
    # Lines of one number look alike: 0 is the title's typeface, 1 the other one.
    face: int = 0


@dataclass(frozen=True)
class Scene:
    """What stands where."""

    # What carries the text, as a caption calls it.
    carrier: str
    slots: tuple[Slot, ...]
    panels: tuple[Panel, ...] = ()
    # Textures that the background may have; empty: any.
    textures: tuple[str, ...] = ()
    # Room for objects beside the text.
    rooms: tuple[Box, ...] = ()

    @property
    def has_lead(self) -> bool:
        """Whether the caption's first colour is that of a panel rather than of the background."""
        return any(panel.colour == LEAD for panel in self.panels)


def stack(box: Box, weights: Sequence[float], gap: float = 0.25) -> list[Box]:
    """A box cut into rows of these relative heights, from the top down; gaps are shares of the mean row."""
    left, top, right, bottom = box
    mean = sum(weights) / len(weights)
    unit = (bottom - top) / (sum(weights) + gap * mean * (len(weights) - 1))
    rows, y = [], top
    for weight in weights:
        rows.append((left, y, right, y + weight * unit))
        y += (weight + gap * mean) * unit
    return rows


def _roles(rng: np.random.Generator, first: Role, lines: int, others: Sequence[Role]) -> list[Role]:
    return [first, *(others[int(rng.integers(len(others)))] for _ in range(lines - 1))]


def _slots(rows: Sequence[Box], roles: Sequence[Role], align: Align = "centre", arc: float = 0.0) -> tuple[Slot, ...]:
    """A slot a row; the first one has the title's typeface and the arc."""
    return tuple(
        Slot(row, role, align, arc=0.0 if number else arc, face=min(1, number))
        for number, (row, role) in enumerate(zip(rows, roles, strict=True))
    )


def _moved(rng: np.random.Generator, box: Box, reach: float) -> Box:
    x, y = rng.uniform(-reach, reach, 2)
    return box[0] + x, box[1] + y, box[2] + x, box[3] + y


def _rooms(*boxes: Box) -> tuple[Box, ...]:
    return tuple(box for box in boxes if box[3] - box[1] > LEAST_ROOM)


def poster(rng: np.random.Generator, lines: int) -> Scene:
    """A large title with smaller lines under or over it, all aligned alike."""
    aligns: tuple[Align, ...] = ("left", "centre", "centre", "right")
    align, title_first = aligns[rng.integers(4)], rng.random() < 0.7
    weights = [1.0, *rng.uniform(0.4, 0.62, lines - 1)]
    roles = _roles(rng, "title", lines, ("phrase", "date", "name", "price"))
    height = min(0.86, 0.2 + 0.15 * lines + rng.uniform(0, 0.12))
    top = rng.uniform(MARGIN, 0.94 - height)
    order = 1 if title_first else -1
    rows = stack((MARGIN, top, 1 - MARGIN, top + height), weights[::order])
    turn = float(rng.uniform(-9, 9)) if lines <= 2 and rng.random() < 0.2 else 0.0
    slots = tuple(
        Slot(row, role, align, turn=turn, face=0 if role == "title" else 1)
        for row, role in zip(rows, roles[::order], strict=True)
    )
    frame = Panel("frame", (0.02, 0.02, 0.98, 0.98), None, 0.7 if rng.random() < 0.5 else 1.35)
    rooms = _rooms((0.1, MARGIN, 0.9, top - 0.03), (0.1, top + height + 0.03, 0.9, 1 - MARGIN))
    return Scene("poster", slots, (frame,) if rng.random() < 0.25 else (), rooms=rooms)


def shop_front(rng: np.random.Generator, lines: int) -> Scene:
    """A sign over an awning and a window; further lines stand in the window."""
    sign = (0.05, rng.uniform(0.05, 0.1), 0.95, rng.uniform(0.36, 0.44))
    awning = (0.0, sign[3] + 0.03, 1.0, sign[3] + 0.17)
    window = (0.1, awning[3] + 0.02, 0.9, 0.97)
    rows = [(sign[0] + 0.03, sign[1] + 0.04, sign[2] - 0.03, sign[3] - 0.04)]
    if lines > 1:
        inner = (window[0] + 0.05, window[1] + 0.05, window[2] - 0.05, window[3] - 0.08)
        rows += stack(inner, [1.0] * (lines - 1), 0.5)
    roles = _roles(rng, "name", lines, ("phrase", "date", "number"))
    pane = ("black", "cream", "white", "teal")[rng.integers(4)]
    panels = (Panel("rounded", sign), Panel("awning", awning), Panel("window", window, pane))
    return Scene("shop front", _slots(rows, roles), panels, ("brick", "plain", "wooden"))


def street_sign(rng: np.random.Generator, lines: int) -> Scene:
    """A rounded plate on a post."""
    height = 0.3 + 0.12 * (lines - 1)
    top = rng.uniform(0.14, 0.36)
    rows = stack((0.1, top + 0.06, 0.9, top + height - 0.06), [1.0, *([0.7] * (lines - 1))], 0.3)
    slots = _slots(rows, _roles(rng, "title", lines, ("number", "title")))
    panels = Panel("post", (0.46, top, 0.54, 1.0), "grey"), Panel("rounded", (0.05, top, 0.95, top + height))
    return Scene("street sign", slots, panels, ("gradient", "brick", "bokeh", "plain"))


def book_cover(rng: np.random.Generator, lines: int) -> Scene:
    """A title of one or more lines high up, the author at the foot."""
    titles = max(1, lines - 1)
    top = rng.uniform(0.1, 0.2)
    rows = stack((0.09, top, 0.91, top + 0.19 * titles + 0.05), [1.0] * titles)
    slots = [Slot(row, "title") for row in rows]
    if lines > 1:
        slots.append(Slot((0.16, 0.8, 0.84, 0.9), "name", face=1))
    frame = Panel("frame", (0.04, 0.04, 0.96, 0.96), None, 1.4 if rng.random() < 0.5 else 0.6)
    rooms = _rooms((0.25, rows[-1][3] + 0.04, 0.75, 0.76))
    return Scene("book cover", tuple(slots), (frame,) if rng.random() < 0.6 else (), rooms=rooms)


def menu(rng: np.random.Generator, lines: int) -> Scene:
    """A heading, and items with their prices."""
    weights = [1.3, *([0.85] * (lines - 1))]
    rows = stack((0.11, 0.1, 0.89, 0.1 + min(0.8, 0.14 * lines + 0.12)), weights, 0.45)
    align: Align = "left" if rng.random() < 0.5 else "centre"
    slots = Slot(rows[0], "title"), *(Slot(row, "item", align, face=1) for row in rows[1:])
    return Scene("menu", slots, (Panel("rectangle", (0.05, 0.04, 0.95, 0.96)),), ("wooden", "plain", "paper"))


def label(rng: np.random.Generator, lines: int) -> Scene:
    """A label of a jar or a bottle: centred lines, the first of them bent now and then."""
    form: Form = "ellipse" if rng.random() < 0.4 else "rounded"
    half, inset = 0.25 + 0.04 * lines, 0.2 if form == "ellipse" else 0.08
    rows = stack((0.08 + inset, 0.6 - half, 0.92 - inset, 0.4 + half), [1.0, *([0.6] * (lines - 1))], 0.35)
    arc = float(rng.uniform(40, 90)) if rng.random() < 0.35 else 0.0
    slots = _slots(rows, _roles(rng, "name", lines, ("phrase", "price", "number")), arc=arc)
    return Scene("label", slots, (Panel(form, (0.08, 0.5 - half, 0.92, 0.5 + half)),))


def ticket(rng: np.random.Generator, lines: int) -> Scene:
    """A ticket with notches; its lines are aligned to the left."""
    half = 0.17 + 0.05 * lines
    rows = stack((0.14, 0.57 - half, 0.88, 0.43 + half), [1.0, *([0.62] * (lines - 1))], 0.35)
    roles = _roles(rng, "title", lines, ("date", "number", "price", "phrase"))
    return Scene("ticket", _slots(rows, roles, "left"), (Panel("ticket", (0.04, 0.5 - half, 0.96, 0.5 + half)),))


def title_card(rng: np.random.Generator, lines: int) -> Scene:
    """A title in the middle, as films begin."""
    rows = stack((0.07, 0.36 - 0.05 * lines, 0.93, 0.6 + 0.06 * lines), [1.0, *([0.5] * (lines - 1))], 0.4)
    slots = _slots(rows, _roles(rng, "title", lines, ("phrase",)))
    return Scene("title card", slots, textures=("plain", "gradient", "radial", "bokeh"))


def banner(rng: np.random.Generator, lines: int) -> Scene:
    """A band across the image."""
    half, middle = 0.13 + 0.07 * (lines - 1), rng.uniform(0.3, 0.7)
    top, bottom = middle - half, middle + half
    rows = stack((0.07, top + 0.05, 0.93, bottom - 0.05), [1.0, *([0.6] * (lines - 1))], 0.3)
    slots = _slots(rows, _roles(rng, "phrase", lines, ("date", "price", "phrase")))
    rooms = _rooms((0.1, 0.04, 0.9, top - 0.03), (0.1, bottom + 0.03, 0.9, 0.96))
    return Scene("banner", slots, (Panel("rectangle", (0.0, top, 1.0, bottom)),), rooms=rooms)


def notice_board(rng: np.random.Generator, lines: int) -> Scene:
    """Notes pinned to a board, a line on each."""
    columns = 1 if lines < 3 else 2
    width, height = 0.92 / columns, 0.9 / -(-lines // columns)
    half = min(height - 0.06, 0.34 if columns == 1 else 0.3) / 2
    roles = _roles(rng, "title", lines, ("title", "phrase", "date", "price"))
    slots, panels = [], []
    for number, role in enumerate(roles):
        row, column = divmod(number, columns)
        left, middle = 0.04 + column * width, 0.05 + (row + 0.5) * height
        note = _moved(rng, (left + 0.02, middle - half, left + width - 0.02, middle + half), 0.015)
        panels.append(Panel("note", note, ("white", "cream", "yellow", "pink")[rng.integers(4)]))
        inner = (note[0] + 0.03, note[1] + 0.06, note[2] - 0.03, note[3] - 0.05)
        slots.append(Slot(inner, role, face=number % 2))
    return Scene("notice board", tuple(slots), tuple(panels), ("wooden", "paper"))


# How each kind is laid out, with how many lines it makes sense, and how often it comes.
KINDS: tuple[tuple[Callable[[np.random.Generator, int], Scene], range, float], ...] = (
    (poster, range(1, 7), 3.0),
    (shop_front, range(1, 4), 1.0),
    (street_sign, range(1, 3), 1.0),
    (book_cover, range(1, 5), 1.0),
    (menu, range(3, 7), 1.0),
    (label, range(1, 4), 1.0),
    (ticket, range(2, 6), 1.0),
    (title_card, range(1, 3), 1.0),
    (banner, range(1, 3), 1.0),
    (notice_board, range(2, 7), 1.0),
)


def scene(rng: np.random.Generator, lines: int, jitter: float) -> Scene:
    """A scene of some kind that takes so many lines; its slots are moved by up to `jitter` of the image."""
    fitting = [(made, weight) for made, counts, weight in KINDS if lines in counts]
    weights = np.array([weight for _, weight in fitting])
    made, _ = fitting[rng.choice(len(fitting), p=weights / weights.sum())]
    result = made(rng, lines)
    return replace(result, slots=tuple(replace(slot, box=_moved(rng, slot.box, jitter)) for slot in result.slots))
