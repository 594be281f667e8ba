"""Description round trip: bound facts of a text, and those that a description confirms."""

import pytest

from vlad.eval.description_round_trip import round_trip, round_trip_matrix
from vlad.eval.prompt_facts import confirmed, facts_of
from vlad.eval.protocols.protocol import MetricTerm

PROMPT = 'Two red cups to the left of a blue plate, with a sign that says "HOT TEA"'


def test_facts_of_a_text() -> None:
    facts = facts_of(PROMPT)
    assert facts.objects == {"cup", "plate", "sign"}
    assert facts.colours == {("red", "cup"), ("blue", "plate")}
    assert facts.counts == {(2, "cup")}
    assert facts.relations == {("cup", "left", "plate")}
    assert facts_of('says "a red cup"').objects == set()


@pytest.mark.parametrize("marks", ['""', "''", "“”", "‘’", "«»"])
def test_a_quotation_separates_phrases(marks: str) -> None:
    facts = facts_of(f"a blue sign that says {marks[0]}HOUSE{marks[1]} in white letters")
    assert facts.objects == {"sign", "letter"} and facts.relations == frozenset()


def test_an_apostrophe_does_not_separate_phrases() -> None:
    assert facts_of("a dog's bowl on a boy's table").relations == {("bowl", "on", "table")}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a cup above a plate", "a plate below a cup"),
        ("a cup to the left of a plate", "the plate is on the right side of the cup"),
        ("a cup next to a plate", "a plate beside a cup"),
        ("a dog in front of a car", "an automobile behind a dog"),
        ("3 boxes on a sofa", "three boxes on the couch"),
        ("a diamond above two rings", "two hoops beneath a rhombus"),
    ],
)
def test_paraphrases_state_the_same_facts(one: str, other: str) -> None:
    assert facts_of(one).relations == facts_of(other).relations != frozenset()
    assert facts_of(one).objects == facts_of(other).objects
    assert facts_of(one).counts == facts_of(other).counts


def test_the_same_bag_of_words_confirms_no_bound_facts() -> None:
    prompt = "two red cups above three blue plates"
    swapped = "three blue cups below two red plates"
    assert sorted(prompt.replace("above", "below").split()) == sorted(swapped.split())
    terms = confirmed(prompt, (), swapped)
    assert terms["objects"] == MetricTerm(2, 2)
    assert [terms[kind].numerator for kind in ("colours", "counts", "relations")] == [0, 0, 0]
    assert all(term.numerator == term.denominator for term in confirmed(prompt, (), prompt).values())


def test_strings_are_confirmed_as_whole_words_in_any_case() -> None:
    terms = confirmed("x", ("HOT TEA", "50% OFF!", "ART"), 'It reads "hot tea", and "50% off". A party.')
    assert terms["strings"] == MetricTerm(2, 3)
    assert "strings" not in confirmed("a cup", (), "a cup")


def test_the_matrix_has_a_cell_for_each_describer_and_system() -> None:
    described = [(PROMPT, ("HOT TEA",), 'Two red cups left of a green plate; a sign says "HOT TEA".')]
    silent = [(PROMPT, ("HOT TEA",), "")]
    trips = [
        round_trip("one", "a", described, lambda prompts, texts: [0.5] * len(texts)),
        round_trip("one", "b", silent),
        round_trip("other", "a", silent),
        round_trip("other", "b", []),
    ]
    assert trips[0].shares == {"strings": 1, "objects": 1, "colours": 0.5, "counts": 1, "relations": 1}
    assert trips[1].shares == dict.fromkeys(trips[0].shares, 0)
    text = round_trip_matrix(trips)
    assert "| similarity | a | b |" in text and "| one | 0.500 (0.500 to 0.500) | - |" in text
    assert "| images | a | b |\n|---|---|---|\n| one | 1 | 1 |\n| other | 1 | 0 |" in text
    assert "| colours | a | b |\n|---|---|---|\n| one | 0.500 (0.500 to 0.500) | 0.000 (0.000 to 0.000) |" in text
    assert "| other | 0.000 (0.000 to 0.000) | - |" in text


def test_intervals_resample_prompts_with_all_their_images() -> None:
    # One prompt is read every time, another one never: a resample of the two has none, one or both of the first.
    described = [("a sign", ("TEA",), "TEA"), ("a wall", ("JAM",), "")]
    (few, many) = (round_trip("one", "a", described * times, lambda _, texts: [1.0] * len(texts)) for times in (1, 8))
    assert few.shares["strings"] == many.shares["strings"] == 0.5
    assert few.intervals["strings"] == many.intervals["strings"] == (0, 1)
    assert few.intervals["similarity"] == (1, 1)
    prompts = [(f"{number} signs", ("TEA",), "TEA" if number % 2 else "") for number in range(1, 101)]
    low, high = round_trip("one", "a", prompts).intervals["strings"]
    # Of 100 prompts at one half the standard error is 0.05.
    assert low == pytest.approx(0.4, abs=0.02) and high == pytest.approx(0.6, abs=0.02)
    assert round_trip("one", "a", []).intervals == {}
