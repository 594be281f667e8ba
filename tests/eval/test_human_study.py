"""Human studies: order of questions, stored answers, and results against published examples."""

import json
import sqlite3
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlad.cli.studies import RATE
from vlad.eval.human_study.ratings import Answer, Ratings
from vlad.eval.human_study.results import bradley_terry, krippendorff_alpha, study_results, study_table
from vlad.eval.human_study.study import ASPECTS, Study, make_study, questions_of
from vlad.eval.protocols.protocol import BenchmarkPrompt
from vlad.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = [BenchmarkPrompt(str(number), f"a sign that says 'WORD{number}'", (f"WORD{number}",)) for number in range(4)]
NAN = float("nan")
# The worked example of Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), part C: 4 observers, 12 units.
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
]


def systems_in(folder: Path, *names: str) -> dict[str, Path]:
    """A folder a system, each image of its own colour."""
    for number, name in enumerate(names):
        (folder / name).mkdir()
        for prompt in PROMPTS:
            colour = (40 * number + 20, 50 * int(prompt.key), 128)
            Image.new("RGB", (16, 16), colour).save(folder / name / f"{prompt.key}.png")
    return {name: folder / name for name in names}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return make_study("scores", systems_in(tmp_path, "a", "b", "c"), PROMPTS)


@pytest.mark.parametrize("kind", ["scores", "pairs"])
def test_a_rater_keeps_the_order_while_others_answer(kind: str, tmp_path: Path) -> None:
    study = make_study(kind, systems_in(tmp_path, "a", "b"), PROMPTS)  # type: ignore[arg-type]
    ratings = Ratings(tmp_path / "r.sqlite", study)
    shown = {rater: ratings.next_question(rater)[0] for rater in ("ann", "bob", "carl")}
    values = dict.fromkeys(ASPECTS, "4") if kind == "scores" else {"choice": "left"}
    for rater in ("carl", "bob"):  # in another order than they came
        question = shown[rater]
        assert question is not None
        ratings.store(rater, question, values)
    assert ratings.next_question("ann")[0] == shown["ann"]
    assert [ratings.number_of(rater) for rater in ("carl", "ann", "bob", "dan")] == [2, 0, 1, 3]
    # A file from before numbers were kept: by first answers.
    with sqlite3.connect(tmp_path / "r.sqlite") as database:
        database.execute("drop table raters")
    again = Ratings(tmp_path / "r.sqlite", study)
    assert [again.number_of(rater) for rater in ("bob", "carl", "ann")] == [1, 0, 2]


def test_krippendorff_alpha_of_the_published_example() -> None:
    units = [[row[unit] for row in OBSERVERS if not np.isnan(row[unit])] for unit in range(12)]
    assert krippendorff_alpha(units, "nominal") == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(units, "ordinal") == pytest.approx(0.815, abs=5e-4)
    assert krippendorff_alpha(units, "interval") == pytest.approx(0.849, abs=5e-4)
    # Part A there: two observers, ten units, two values.
    first, second = (0, 1, 0, 0, 0, 0, 0, 0, 1, 0), (1, 1, 1, 0, 0, 1, 0, 0, 0, 0)
    assert krippendorff_alpha(list(zip(first, second, strict=True)), "nominal") == pytest.approx(0.095, abs=5e-4)
    assert krippendorff_alpha([[1, 1], [2, 2]], "ordinal") == 1
    assert krippendorff_alpha([[1, 1], [1, 1]], "nominal") is None
    assert krippendorff_alpha([[1], [2], []], "nominal") is None


def test_bradley_terry_strengths_maximise_the_likelihood() -> None:
    # Two: the odds themselves.
    strong, weak = bradley_terry(np.array([[0, 30], [10, 0]]), prior=0)
    assert strong / weak == pytest.approx(3)
    # Several: expected wins equal the wins (the likelihood's equations).
    wins = np.array([[0, 7, 9, 3], [3, 0, 6, 5], [1, 4, 0, 6], [2, 5, 4, 0]], dtype=float)
    strengths = bradley_terry(wins, prior=0)
    expected = ((wins + wins.T) * strengths[:, None] / np.add.outer(strengths, strengths)).sum(axis=1)
    assert expected == pytest.approx(wins.sum(axis=1))
    assert np.log(strengths).sum() == pytest.approx(0, abs=1e-9)
    # Who has won all is the strongest, and not infinitely so.
    assert 1 < bradley_terry(np.array([[0, 5], [0, 0]]))[0] < 1000


def test_every_rater_gets_all_questions_once_in_a_balanced_order(study: Study, tmp_path: Path) -> None:
    orders = [[question.key for question in questions_of(study, number)] for number in range(3)]
    assert all(len(set(order)) == 12 for order in orders)
    assert len({tuple(order) for order in orders}) == 3 and {*orders[0]} == {*orders[1]}
    assert orders[0] == [question.key for question in questions_of(study, 0)]
    # In each third of a rater's questions every prompt stands once; over three raters each system first, once.
    for order in orders:
        for start in range(0, len(order), 4):
            assert {json.loads(key)[0] for key in order[start : start + 4]} == {*"0123"}
    firsts = Counter(key for order in orders for key in order[:4])
    assert set(firsts.values()) == {1} and len(firsts) == 12

    pairs = make_study("pairs", {name: tmp_path / name for name in "abc"}, PROMPTS)
    first, second = ({frozenset(q.images): q.images for q in questions_of(pairs, number)} for number in (0, 1))
    assert len(first) == 12 and first.keys() == second.keys()
    assert all(first[pair] == second[pair][::-1] for pair in first), "sides change from rater to rater"
    left = Counter(images[0].parent.name for images in first.values())
    assert max(left.values()) - min(left.values()) <= 2


def test_answers_are_stored_and_the_study_resumes(study: Study, tmp_path: Path) -> None:
    ratings = Ratings(tmp_path / "r.sqlite", study)
    question, done, total = ratings.next_question("ann")
    assert question is not None and (done, total) == (0, 12)
    ratings.store("ann", question, dict.fromkeys(ASPECTS, "4"), 2.5)
    again = Ratings(tmp_path / "r.sqlite", study)
    following, done, total = again.next_question("ann")
    assert following is not None and following.key != question.key and (done, total) == (1, 12)
    ratings.store("ann", question, dict.fromkeys(ASPECTS, "5"))
    assert {answer.value for answer in again.answers()} == {"5"} and len(again.answers()) == 3
    # Another rater begins at the beginning, in an order of his own.
    other, done, _ = again.next_question("bob")
    assert other is not None and done == 0 and other.key == questions_of(study, 1)[0].key
    for values in ({}, {"quality": "4"}, dict.fromkeys(ASPECTS, "6"), {**dict.fromkeys(ASPECTS, "4"), "more": "1"}):
        with pytest.raises(UserError, match="Answer every question"):
            ratings.store("ann", question, values)
    with pytest.raises(UserError, match="Write a name"):
        ratings.store("  ", question, dict.fromkeys(ASPECTS, "4"))


def test_many_raters_at_once_lose_no_answer(study: Study, tmp_path: Path) -> None:
    # Few answers: each is on the disk before the next.
    ratings = Ratings(tmp_path / "r.sqlite", make_study("scores", {n: tmp_path / n for n in "ab"}, PROMPTS[:2]))

    def rate(name: str) -> None:
        while (question := ratings.next_question(name)[0]) is not None:
            ratings.store(name, question, dict.fromkeys(ASPECTS, "3"))

    threads = [threading.Thread(target=rate, args=(f"rater {number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ratings.answers()) == 4 * 4 * 3


def test_an_unreadable_image_is_refused_at_the_start(tmp_path: Path) -> None:
    folders = systems_in(tmp_path, "a", "b")
    (folders["b"] / "2.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"b/2\.png cannot be read as an image; put a whole one there, or remove it"):
        make_study("pairs", folders, PROMPTS)
    (folders["b"] / "2.png").unlink()
    assert list(make_study("pairs", folders, PROMPTS).prompts) == ["0", "1", "3"]


def test_the_figures_of_scores() -> None:
    answers = [
        Answer(rater, key, (system,), aspect, str(value))
        for rater in ("ann", "bob")
        for key in "012345"
        for system, value in (("a", 4 + int(key) % 2), ("b", 2))
        for aspect in ASPECTS
    ]
    results = study_results(answers, ["a", "b", "c"], "scores")
    quality = results["aspects"]["quality"]
    assert (results["raters"], results["answers"]) == (2, 72)
    assert quality["systems"]["a"]["mean"] == 4.5 and quality["systems"]["a"]["answers"] == 12
    assert 4 <= quality["systems"]["a"]["low"] < 4.5 < quality["systems"]["a"]["high"] <= 5
    assert quality["systems"]["b"] == {"mean": 2, "low": 2, "high": 2, "answers": 12}
    assert quality["systems"]["c"] is None and quality["alpha"] == 1
    table = study_table(results)
    assert "| b | 2.00 [2.00, 2.00] |" in table and "| c | - |" in table and "1.000" in table


def test_the_figures_of_pairs() -> None:
    answers = [
        Answer(rater, str(key), shown, "choice", value)
        for rater in ("ann", "bob")
        for key in range(8)
        for shown, value in (
            (("a", "b"), "left" if key else "right"),
            (("c", "a"), "right"),
            (("b", "c"), "tie" if key % 2 else "left"),
        )
    ]
    results = study_results(answers, ["a", "b", "c"], "pairs")
    found = results["systems"]
    assert found["a"]["strength"] > found["b"]["strength"] > found["c"]["strength"]
    assert found["a"]["low"] <= found["a"]["strength"] <= found["a"]["high"]
    assert found["a"]["share_won"] == 15 / 16 and found["b"]["share_won"] == (1 + 6) / 16
    # Both said the same of every pair.
    assert results["alpha"] == 1
    assert "| a | 0.938 |" in study_table(results)


def test_what_is_no_study_is_refused(study: Study, tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in "ab"}
    with pytest.raises(UserError, match="at least two systems"):
        make_study("scores", {"a": tmp_path / "a"}, PROMPTS)
    with pytest.raises(UserError, match="no folder of images"):
        make_study("scores", {**folders, "z": tmp_path / "z"}, PROMPTS)
    Ratings(tmp_path / "r.sqlite", study)
    with pytest.raises(UserError, match="another study"):
        Ratings(tmp_path / "r.sqlite", make_study("scores", folders, PROMPTS))
    (tmp_path / "text.sqlite").write_text("no database, whatever its name says" * 100, encoding="utf-8")
    with pytest.raises(UserError, match="cannot be used as a file of ratings"):
        Ratings(tmp_path / "text.sqlite", study)
    for path in (tmp_path / "b").iterdir():
        path.rename(path.with_name("9" + path.name))
    (tmp_path / "b" / "90.png").rename(tmp_path / "b" / "0.png")
    assert list(make_study("pairs", folders, PROMPTS).prompts) == ["0"]


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("question", "{oops", "Expecting"),
        ("question", "7", "unpack"),
        ("question", '["0", "nobody"]', "nobody"),
        ("question", '["9", "a"]', "prompt '9'"),
        ("value", "many", "'many'"),
        ("aspect", "beauty", "'beauty'"),
    ],
)
def test_a_damaged_answer_is_refused_with_its_row(
    study: Study, tmp_path: Path, column: str, value: str, reason: str
) -> None:
    ratings = Ratings(tmp_path / "r.sqlite", study)
    question = ratings.next_question("ann")[0]
    assert question is not None
    ratings.store("ann", question, dict.fromkeys(ASPECTS, "4"))
    with sqlite3.connect(tmp_path / "r.sqlite") as database:
        database.execute(f"update answers set {column} = ? where rowid = 2", (value,))
    with pytest.raises(UserError, match=rf"Row 2 of the answers in .*r\.sqlite \(rater 'ann'\) is damaged: .*{reason}"):
        Ratings(tmp_path / "r.sqlite", study)


@pytest.mark.parametrize("table", ["other (x)", "study (x)", "answers (rater, question)"])
def test_a_file_of_another_program_is_not_changed(study: Study, tmp_path: Path, table: str) -> None:
    path = tmp_path / "other.sqlite"
    with sqlite3.connect(path) as database:
        database.execute(f"create table {table}")
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"other\.sqlite cannot be used as a file of ratings"):
        Ratings(path, study)
    assert path.read_bytes() == before


ENDLESS = "with recursive n(x) as (select 1 union all select x + 1 from n) select x"


@pytest.mark.parametrize(
    "sql",
    [
        f"drop table answers; create view answers as {ENDLESS} as rater, x as question, x as aspect, x as value,"
        " x as seconds, x as time from n",
        f"drop table study; create view study as {ENDLESS} as only_row, x as content from n",
        f"drop table raters; create view raters as {ENDLESS} as number, x as rater from n",
        f"create view more as {ENDLESS} from n",
        f"create trigger t after insert on raters begin insert into answers {ENDLESS}, 1, 1, 1, 1, 1 from n; end",
        "create virtual table more using fts5(x)",
        "create index i on answers (abs(rater))",
    ],
)
def test_a_file_of_ratings_holds_no_code(study: Study, tmp_path: Path, sql: str) -> None:
    path = tmp_path / "r.sqlite"
    Ratings(path, study)
    with sqlite3.connect(path) as database:
        database.executescript(sql)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"cannot be used as a file of ratings \(it has an? "):
        Ratings(path, study)
    assert path.read_bytes() == before


def test_the_command_line_prints_results(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.txt").write_text("\n".join(prompt.text for prompt in PROMPTS), encoding="utf-8")
    given = [f"{name}={tmp_path / name}" for name in "abc"]

    def run(*more: str) -> None:
        RATE([*given, "--prompts", str(tmp_path / "p.txt"), *more])

    out = tmp_path / "r.sqlite"
    with pytest.raises(UserError, match="There are no ratings at"):
        run("--results", "--out", str(out))
    ratings = Ratings(out, study)
    question = ratings.next_question("ann")[0]
    assert question is not None
    ratings.store("ann", question, dict.fromkeys(ASPECTS, "4"))
    run("--results", "--out", str(out))
    printed = capsys.readouterr().out
    assert "4.00 [4.00, 4.00]" in printed and "4 prompts, 3 systems" in printed and "left out" not in printed
    numbers = (
        ("--first", "--count", "0"),
        ("--port",) * 2 + ("0",),
        ("--port",) * 2 + ("65536",),
        ("--seed",) * 2 + ("-1",),
    )
    for option, name, value in numbers:
        with pytest.raises(UserError, match=f"^{name} must be a whole number .*, not '{value}'"):
            run(option, value)
    for host in ("a..b", "192.0.2.1"):  # no name, and an address that is nobody's
        with pytest.raises(UserError, match=f"--host '{host}' is no address of this machine"):
            run("--host", host)
    with pytest.raises(UserError, match=r"--watermarked bb is no system here\. Did you mean 'b'"):
        run("--watermarked", "bb")
    with pytest.raises(UserError, match="another study"):
        run("--results", "--out", str(out), "--watermarked", "b")
    given.append("a=x")
    with pytest.raises(UserError, match="names nothing, or the same twice"):
        run("--results")
