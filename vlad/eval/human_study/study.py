"""A study with people: which images are shown to whom, in which order, and what was said.

    systems (a folder each) + prompts --> questions, the same for all raters
    rater, question --> the order of the systems and of the questions, balanced --> answers in a SQLite file

A rater sees images and prompts, never the names of systems or files. What a rater has answered is not asked again.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vlad.eval.benchmark.image_sets import find_images
from vlad.eval.image_files import UNREADABLE, load_image
from vlad.eval.options import WATERMARK, Box
from vlad.eval.protocols.protocol import BenchmarkPrompt
from vlad.utils.errors import UserError
from vlad.utils.paths import writable_directory

Kind = Literal["scores", "pairs"]
# The paper's three questions (Table III), 1 to 5.
ASPECTS = {
    "quality": "Overall quality",
    "alignment": "Semantic alignment: does the image show what the prompt says?",
    "text": "Text accuracy: is the text spelled as asked?",
}
SCALE = (1, 2, 3, 4, 5)
CHOICES = ("left", "right", "tie")
MOST_NAME = 60
_TABLES = """
create table if not exists study (only_row integer primary key check (only_row = 1), content text not null);
create table if not exists answers (
    rater text not null, question text not null, aspect text not null, value text not null, seconds real,
    time text not null, primary key (rater, question, aspect)
);
create table if not exists raters (number integer primary key, rater text not null unique);
insert or ignore into raters (rater) select rater from answers group by rater order by min(rowid);
"""


@dataclass(frozen=True)
class Study:
    """What is asked: systems by name with their folders, prompts, one image of each system a prompt.

    `masked` has a box (0..1) for each system whose images carry a watermark: it would tell who drew them.
    """

    kind: Kind
    systems: Mapping[str, Mapping[str, Path]]  # name -> prompt's key -> image
    prompts: Mapping[str, str]  # key -> text
    seed: int = 0
    masked: Mapping[str, Box] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """What tells one study from another: systems, prompts, and the bytes of all images."""
        content = hashlib.sha256(json.dumps([self.kind, self.seed, dict(self.prompts)]).encode())
        for name, images in sorted(self.systems.items()):
            content.update(name.encode())
            for key, path in sorted(images.items()):
                content.update(key.encode() + hashlib.sha256(path.read_bytes()).digest())
        if self.masked:
            content.update(json.dumps(sorted(self.masked.items())).encode())
        return content.hexdigest()[:16]


@dataclass(frozen=True)
class Question:
    """One page: a prompt with one image to score, or two to choose from; what of each is painted over, or None."""

    key: str
    prompt: str
    images: tuple[Path, ...]
    masked: tuple[Box | None, ...]


def make_study(
    kind: Kind,
    systems: Mapping[str, Path],
    prompts: Sequence[BenchmarkPrompt],
    seed: int = 0,
    masked: Mapping[str, Box] | None = None,
) -> Study:
    """The study of some folders of images, on the prompts that all of them have an image of.

    Raises UserError for fewer than two systems, for folders without images of the prompts, for an image that cannot
    be shown, and where no prompt is left.
    """
    if len(systems) < 2:
        raise UserError("A study compares at least two systems; name each as NAME=FOLDER.")
    found: dict[str, dict[str, Path]] = {}
    for name, folder in systems.items():
        if not folder.is_dir():
            raise UserError(f"There is no folder of images at {folder} ({name}).")
        images = find_images(folder, prompts, None)
        first: dict[str, Path] = {}
        for image in images:
            if image.path is not None:
                first.setdefault(image.prompt.key, image.path)
        found[name] = first
    shared = [prompt for prompt in prompts if all(prompt.key in images for images in found.values())]
    if not shared:
        raise UserError("No prompt has an image of every system; draw them all from the same prompt file.")
    keys = {prompt.key for prompt in shared}
    kept = {name: {key: path for key, path in images.items() if key in keys} for name, images in found.items()}
    for path in (path for images in kept.values() for path in images.values()):
        try:
            load_image(path)
        except UNREADABLE as error:
            raise UserError(
                f"{path} cannot be read as an image; put a whole one there, or remove it: its prompt is then left out."
            ) from error
    return Study(kind, kept, {prompt.key: prompt.text for prompt in shared}, seed, masked or {})


def questions_of(study: Study, rater_number: int) -> list[Question]:
    """All questions in the order in which rater number 0, 1, ... gets them.

    Scores: prompts in an order of the rater's own; on each round every prompt is shown once, its system turned by one
    a round and a rater (a Latin square): over as many raters as systems every system comes first equally often.
    Pairs: each pair of systems once a prompt; which one is left alternates from rater to rater.
    """
    rng = np.random.default_rng((study.seed, rater_number))
    keys, names = list(study.prompts), sorted(study.systems)
    asked: list[Question] = []
    if study.kind == "scores":
        for round_number in range(len(names)):
            for place in rng.permutation(len(keys)):
                name = names[(int(place) + round_number + rater_number) % len(names)]
                asked.append(_question(study, keys[place], (name,)))
        return asked
    pairs = list(combinations(names, 2))
    for number in rng.permutation(len(keys) * len(pairs)):
        place, which = divmod(int(number), len(pairs))
        pair = pairs[which]
        turned = (place + which + rater_number) % 2
        asked.append(_question(study, keys[place], pair[::-1] if turned else pair))
    return asked


def _question(study: Study, key: str, names: tuple[str, ...]) -> Question:
    images = tuple(study.systems[name][key] for name in names)
    return Question(json.dumps([key, *names]), study.prompts[key], images, tuple(map(study.masked.get, names)))


@dataclass(frozen=True)
class Answer:
    """What a rater said of one aspect of a question. `systems` in the order in which they were shown."""

    rater: str
    prompt: str
    systems: tuple[str, ...]
    aspect: str
    value: str


class Ratings:
    """The answers, in a SQLite file that several raters write at once."""

    def __init__(self, path: Path, study: Study) -> None:
        """Opens or begins a file.

        Raises UserError for one of another study, with a damaged answer, or that is no such file; it is left as it is.
        """
        self.path, self.study = path, study
        about = json.dumps({"digest": study.digest, "kind": study.kind, "systems": sorted(study.systems)})
        try:
            with self._open() as database:
                if database.execute("select count(*) from sqlite_master").fetchone() != (0,):
                    # Another program's file fails here, before anything is written to it.
                    database.execute("select content from study where only_row = 1")
                    database.execute("select rater, question, aspect, value, seconds, time from answers")
                database.executescript(_TABLES)
                database.execute("insert or ignore into study values (1, ?)", (about,))
                (stored,) = database.execute("select content from study").fetchone()
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"{path} cannot be used as a file of ratings ({error}); name another with --out."
            ) from error
        if stored != about:
            raise UserError(
                f"{path} holds ratings of another study (other systems, prompts, images, seed or kind); name another"
                " file with --out."
            )
        self.answers()  # a damaged one shows before anybody comes

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        # A connection a call: pages are served by several threads.
        with closing(sqlite3.connect(self.path, timeout=30)) as database, database:
            yield database

    def number_of(self, rater: str) -> int:
        """A rater's number from 0, which decides the order: given when the rater comes, and kept.

        Not with the first answer: who comes, and sees a question, while others answer theirs would get another order,
        in which that question is not the next.
        """
        with self._open() as database:
            database.execute("insert or ignore into raters (rater) values (?)", (rater,))
            ((number,),) = database.execute("select number from raters where rater = ?", (rater,))
            return int(number) - 1

    def next_question(self, rater: str) -> tuple[Question | None, int, int]:
        """What a rater is asked next (None: nothing is left), how many are answered, and of how many."""
        asked = questions_of(self.study, self.number_of(rater))
        with self._open() as database:
            rows = database.execute("select distinct question from answers where rater = ?", (rater,))
            # A pair is the same pair the other way round.
            answered = {_without_order(question) for (question,) in rows}
        left = [question for question in asked if _without_order(question.key) not in answered]
        return (left[0] if left else None), len(asked) - len(left), len(asked)

    def store(self, rater: str, question: Question, values: Mapping[str, str], seconds: float | None = None) -> None:
        """Keeps an answer; one that is given again takes the place of the first.

        Raises UserError for what is no answer of this study.
        """
        check_rater(rater)
        wanted, allowed = self._answerable()
        if set(values) != wanted or not set(values.values()) <= allowed:
            raise UserError("Answer every question before you go on.")
        now = time.strftime("%Y-%m-%dT%H:%M:%S")
        rows = [(rater, question.key, aspect, value, seconds, now) for aspect, value in values.items()]
        with self._open() as database:
            database.executemany("insert or replace into answers values (?, ?, ?, ?, ?, ?)", rows)

    def answers(self) -> list[Answer]:
        """All answers, in the order in which they were given. Raises UserError for one that is damaged."""
        wanted, allowed = self._answerable()
        try:
            with self._open() as database:
                rows = database.execute(
                    "select rowid, rater, question, aspect, value from answers order by rowid"
                ).fetchall()
        except sqlite3.DatabaseError as error:
            raise UserError(f"The answers in {self.path} cannot be read ({error}); put a whole file there.") from error
        shown = 1 if self.study.kind == "scores" else 2
        result = []
        for row, rater, question, aspect, value in rows:
            try:
                prompt, *systems = json.loads(question)
                if prompt not in self.study.prompts:
                    raise ValueError(f"its prompt {prompt!r} is none of the study's")
                if len(set(systems)) != shown or len(systems) != shown or not set(systems) <= set(self.study.systems):
                    raise ValueError(f"its systems {systems} are not {shown} of the study's")
                if aspect not in wanted or value not in allowed:
                    raise ValueError(f"{aspect!r} is {value!r}")
            except (ValueError, TypeError, RecursionError) as error:
                raise UserError(
                    f"Row {row} of the answers in {self.path} (rater {rater!r}) is damaged: {error}; put a whole file"
                    f" there, or take that answer out: sqlite3 {self.path} 'delete from answers where rowid = {row}'."
                ) from error
            result.append(Answer(rater, prompt, tuple(systems), aspect, value))
        return result

    def _answerable(self) -> tuple[set[str], set[str]]:
        """The aspects that are asked of every question, and the values that each can have."""
        if self.study.kind == "scores":
            return set(ASPECTS), set(map(str, SCALE))
        return {"choice"}, set(CHOICES)


def check_rater(name: str) -> str:
    """The name under which a rater answers. Raises UserError for an empty or a long one."""
    name = " ".join(name.split())
    if not 0 < len(name) <= MOST_NAME:
        raise UserError(f"Write a name of 1 to {MOST_NAME} letters, the same one every time you come back.")
    return name


def _without_order(question: str) -> tuple[Any, ...]:
    prompt, *systems = json.loads(question)
    return prompt, *sorted(systems)


def open_ratings(
    kind: Kind,
    systems: Mapping[str, Path],
    prompts: Sequence[BenchmarkPrompt],
    path: Path,
    seed: int = 0,
    watermarked: Sequence[str] = (),
    must_exist: bool = False,
) -> Ratings:
    """The ratings in `path` of a study of some systems' images; the file is begun unless it `must_exist`.

    `watermarked` names systems whose images carry DeepFloyd's watermark. Raises UserError for a study that cannot be
    made, for a file of another one, and where there is none.
    """
    study = make_study(kind, systems, prompts, seed, dict.fromkeys(watermarked, WATERMARK))
    if must_exist and not (path.is_file() and path.stat().st_size):
        raise UserError(f"There are no ratings at {path}; name their file with --out.")
    writable_directory(path.parent, "ratings", needed_bytes=1_000_000)
    return Ratings(path, study)
