"""The answers of a human study in a SQLite file; answered questions do not come again."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlad.eval.human_study.study import ASPECTS, CHOICES, SCALE, Kind, Question, Study, make_study, questions_of
from vlad.eval.options import WATERMARK
from vlad.eval.protocols.protocol import BenchmarkPrompt
from vlad.utils.errors import UserError
from vlad.utils.paths import writable_directory

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
class Answer:
    """A rater's value for one aspect of a question; `systems` in the order in which they were shown."""

    rater: str
    prompt: str
    systems: tuple[str, ...]
    aspect: str
    value: str


class Ratings:
    """The answers of a study, in a SQLite file that several raters write at once."""

    def __init__(self, path: Path, study: Study) -> None:
        """Opens a file or creates it.

        Raises UserError for a file of another study or of another program, and for a damaged answer; such a file is
        not changed.
        """
        self.path, self.study = path, study
        about = json.dumps({"digest": study.digest, "kind": study.kind, "systems": sorted(study.systems)})
        try:
            with self._open() as database:
                if database.execute("select count(*) from sqlite_master").fetchone() != (0,):
                    _check_schema(database)
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
        self.answers()  # a damaged answer shows before the first rater comes

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        # A connection a call: pages are served by several threads.
        with closing(sqlite3.connect(self.path, timeout=30)) as database, database:
            database.execute("pragma trusted_schema = off")
            yield database

    def number_of(self, rater: str) -> int:
        """A rater's number from 0, which decides the order of questions; given at the first call, and stored.

        Given with the first answer, it would change while the rater looks at the first question.
        """
        with self._open() as database:
            database.execute("insert or ignore into raters (rater) values (?)", (rater,))
            ((number,),) = database.execute("select number from raters where rater = ?", (rater,))
            return int(number) - 1

    def next_question(self, rater: str) -> tuple[Question | None, int, int]:
        """A rater's next question (None: all are answered), the number of answered ones, and of all."""
        questions = questions_of(self.study, self.number_of(rater))
        with self._open() as database:
            rows = database.execute("select distinct question from answers where rater = ?", (rater,))
            # A pair counts as answered in either order.
            answered = {_without_order(question) for (question,) in rows}
        left = [question for question in questions if _without_order(question.key) not in answered]
        return (left[0] if left else None), len(questions) - len(left), len(questions)

    def store(self, rater: str, question: Question, values: Mapping[str, str], seconds: float | None = None) -> None:
        """Stores an answer; a second one to the same question replaces it.

        Raises UserError for an incomplete answer, or another study's.
        """
        check_rater(rater)
        aspects, allowed = self._answerable()
        if set(values) != aspects or not set(values.values()) <= allowed:
            raise UserError("Answer every question before you go on.")
        now = time.strftime("%Y-%m-%dT%H:%M:%S")
        rows = [(rater, question.key, aspect, value, seconds, now) for aspect, value in values.items()]
        with self._open() as database:
            database.executemany("insert or replace into answers values (?, ?, ?, ?, ?, ?)", rows)

    def answers(self) -> list[Answer]:
        """All answers, in the order in which they were given. Raises UserError for one that is damaged."""
        aspects, allowed = self._answerable()
        try:
            with self._open() as database:
                rows = database.execute(
                    "select rowid, rater, question, aspect, value from answers order by rowid"
                ).fetchall()
        except sqlite3.DatabaseError as error:
            raise UserError(f"The answers in {self.path} cannot be read ({error}); put a whole file there.") from error
        count = 1 if self.study.kind == "scores" else 2
        result = []
        for row, rater, question, aspect, value in rows:
            try:
                prompt, *systems = json.loads(question)
                if prompt not in self.study.prompts:
                    raise ValueError(f"its prompt {prompt!r} is none of the study's")
                if len(set(systems)) != count or len(systems) != count or not set(systems) <= set(self.study.systems):
                    raise ValueError(f"its systems {systems} are not {count} of the study's")
                if aspect not in aspects or value not in allowed:
                    raise ValueError(f"{aspect!r} is {value!r}")
            except (ValueError, TypeError, RecursionError) as error:
                raise UserError(
                    f"Row {row} of the answers in {self.path} (rater {rater!r}) is damaged: {error}; put a whole file"
                    f" there, or take that answer out: sqlite3 {self.path} 'delete from answers where rowid = {row}'."
                ) from error
            result.append(Answer(rater, prompt, tuple(systems), aspect, value))
        return result

    def _answerable(self) -> tuple[set[str], set[str]]:
        """The aspects of every question, and the values that each can have."""
        if self.study.kind == "scores":
            return set(ASPECTS), set(map(str, SCALE))
        return {"choice"}, set(CHOICES)


def _check_schema(database: sqlite3.Connection) -> None:
    """Raises DatabaseError for a file with more than our tables: a view or a trigger is code, which may never end."""
    for kind, name, sql in database.execute("select type, name, sql from sqlite_master"):
        is_ours = name in ("study", "answers", "raters") and str(sql).lower().startswith("create table")
        if not is_ours and not (kind == "index" and sql is None):  # of a primary key
            raise sqlite3.DatabaseError(f"it has {'an' if kind == 'index' else 'a'} {kind} {name}")


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
    """The ratings in `path` of a study of some systems' images; the file is created unless it `must_exist`.

    `watermarked` names systems whose images carry DeepFloyd's watermark. Raises UserError for a study that cannot be
    made, for a file of another one, and where there is none.
    """
    study = make_study(kind, systems, prompts, seed, dict.fromkeys(watermarked, WATERMARK))
    if must_exist and not (path.is_file() and path.stat().st_size):
        raise UserError(f"There are no ratings at {path}; name their file with --out.")
    writable_directory(path.parent, "ratings", needed_bytes=1_000_000)
    return Ratings(path, study)
