"""Alignment scores: computed by hand, and of encoders of known kinds."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vlad.eval.alignment.alignment_prompts import (
    AlignmentPrompt,
    AlignmentTexts,
    HardNegative,
    ZeroShotTask,
    alignment_prompt_of,
    read_alignment_prompts,
)
from vlad.eval.alignment.alignment_scores import (
    AlignmentScore,
    alignment_table,
    bag_of_words,
    score_embeddings,
    score_encoder,
    texts_to_embed,
)
from vlad.eval.open_benchmark.write_benchmark import scenes
from vlad.eval.options import OpenBenchmarkOptions
from vlad.utils.errors import UserError

NEGATIVES = (HardNegative("order", "swapped"), HardNegative("colours", "other"))


def vector(*values: float) -> Tensor:
    return torch.nn.functional.normalize(torch.tensor(values, dtype=torch.float32), dim=0)


def values(found: Sequence[AlignmentScore]) -> dict[str, float]:
    return {one.name: one.value for one in found}


def test_scores_by_hand() -> None:
    prompt = AlignmentPrompt("a", "s", "prompt", AlignmentTexts(NEGATIVES, ("same", "far")))
    texts = {
        "prompt": vector(1, 0.1),
        "swapped": vector(1, 0.5),
        "other": vector(1, 0),
        "same": vector(1, 0.2),
        "far": vector(0, 1),
    }
    # Near order: other (cos 1), prompt (.995), same (.98), swapped (.89), far (0).
    found = values(score_embeddings([(prompt, vector(1, 0))], texts))
    assert found == {
        "s, order": 1,
        "s, colours": 0,
        "s, all": 0,
        "s, reworded": 1 / 4,  # same over swapped alone
        # From the prompt (5.7 degrees): same 5.6 away, other 5.7, swapped 20.9, far 84.3.
        "s, reworded, as texts": 2 / 4,
        "s, every wording": 0,
    }
    # An image that the prompt describes, and one of another prompt: shares are over prompts.
    second = AlignmentPrompt("b", "s", "prompt", AlignmentTexts(NEGATIVES, ("same",)))
    found_both = score_embeddings([(prompt, vector(1, 0)), (second, vector(1, 0.15))], texts)
    assert values(found_both) == {
        "s, order": 1,
        "s, colours": 1 / 2,
        "s, all": 1 / 2,
        "s, reworded": (1 + 2) / (4 + 2),
        "s, reworded, as texts": (2 + 2) / (4 + 2),
        "s, every wording": 1 / 2,
    }
    by_name = {one.name: one for one in found_both}
    assert (by_name["s, order"].low, by_name["s, order"].high, by_name["s, order"].prompts) == (1, 1, 2)
    assert (by_name["s, colours"].low, by_name["s, colours"].high) == (0, 1)
    assert (by_name["s, all"].chance, by_name["s, colours"].chance) == (1 / 3, 1 / 2)
    assert by_name["s, every wording"].chance is None


def test_ties_count_as_their_share() -> None:
    prompt = AlignmentPrompt("a", "s", "prompt", AlignmentTexts(NEGATIVES))
    blind = dict.fromkeys(("prompt", "swapped", "other"), vector(1, 1))
    assert values(score_embeddings([(prompt, vector(1, 0))], blind)) == {
        "s, order": 1 / 2,
        "s, colours": 1 / 2,
        "s, all": 1 / 3,
    }


def test_zero_shot_by_hand() -> None:
    templates = ("a {}", "the {}!")
    prompts = [
        AlignmentPrompt(name, "t", name, AlignmentTexts((), (), (ZeroShotTask("animal", name, templates),)))
        for name in ("cat", "dog")
    ]
    assert texts_to_embed(prompts) == ["cat", "dog", "a cat", "a dog", "the cat!", "the dog!"]
    texts = {
        "cat": vector(1, 0),
        "dog": vector(0, 1),
        "a cat": vector(1, 0),
        "a dog": vector(0, 1),
        # The second template turns everything towards the dog, the more so the cat.
        "the cat!": vector(0.5, 0.9),
        "the dog!": vector(0.6, 0.9),
    }
    found = score_embeddings([(prompts[0], vector(1, 0.1)), (prompts[1], vector(0.1, 1))], texts)
    assert values(found) == {
        # The cat's image is nearer to "the dog!", the dog's to "the cat!".
        "t, zero-shot animal": 2 / 4,
        "t, zero-shot animal, together": 1,
        "t, zero-shot animal: a {}": 1,
        "t, zero-shot animal: the {}!": 0,
    }
    assert {one.chance for one in found} == {1 / 2}
    table = alignment_table(found)
    assert "| t, zero-shot animal, worst: `the {}!` | 0.000 | [0.000, 0.000] | 1.000 | 0.500 | 2 |" in table
    assert "| t, zero-shot animal, best: `a {}` | 1.000 |" in table


class PerfectEncoder:
    """Embeds every text as the number of its meaning, and each image as its pixel value."""

    name = "perfect"

    def __init__(self, meanings: dict[str, int]) -> None:
        self.meanings = meanings
        self.width = 1 + max(meanings.values())

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        return torch.eye(self.width)[[self.meanings[text] for text in texts]]

    def embed_images(self, images: Sequence[np.ndarray]) -> Tensor:
        return torch.eye(self.width)[[int(image[0, 0, 0]) for image in images]]


def test_a_bag_of_words_fails_and_a_perfect_encoder_gets_all() -> None:
    subsets = ("counting", "relations", "synonyms")
    prompts = [
        AlignmentPrompt(scene.key, scene.subset, scene.prompt, scene.texts)
        for scene in scenes(OpenBenchmarkOptions(count=8), subsets)
    ]
    meanings: dict[str, int] = {}
    for number, prompt in enumerate(prompts):
        for one in prompt.texts.negatives:
            meanings.setdefault(one.prompt, len(prompts))  # what no image shows
        meanings |= dict.fromkeys((prompt.prompt, *prompt.texts.paraphrases), number)
    images = [np.full((2, 2, 3), number, dtype=np.uint8) for number in range(len(prompts))]
    done: list[int] = []
    found = score_encoder(
        PerfectEncoder(meanings),
        [(prompt, lambda image=image: image) for prompt, image in zip(prompts, images, strict=True)],  # type: ignore[misc]
        done.append,
    )
    assert done == [24]
    assert set(values(found).values()) == {1.0}
    bag = {one.name: one.bag_of_words for one in found}
    for subset in ("relations", "synonyms"):
        assert bag[f"{subset}, order"] == bag[f"{subset}, colours"] == 1 / 2
        assert bag[f"{subset}, all"] == pytest.approx(1 / 3)
        assert bag[f"{subset}, reworded"] == bag[f"{subset}, reworded, as texts"] == 0
        assert bag[f"{subset}, every wording"] == 0
    # A number is a word of its own: that alone needs no order of words.
    assert bag["counting, count"] == 1


def test_a_bag_counts_words_and_ignores_order_case_and_articles() -> None:
    bags = bag_of_words(["A red cup, an old one", "old one: a Red cup", "old old one red cup", "plate"])
    first, same, twice, other = bags.values()
    assert (first == same).all() and float(first @ first) == pytest.approx(1)
    assert float(first @ twice) == pytest.approx((1 + 1 + 1 + 2) / (4 * 7) ** 0.5)
    assert float(first @ other) == 0


RECORD = {
    "id": "a 1",
    "subset": "s",
    "prompt": "p",
    "swapped": [{"kind": "order", "prompt": "q"}],
    "same": ["r"],
    "zero_shot": [{"task": "word", "answer": "W", "templates": ["the {}"]}],
}


def test_records_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "alignment.jsonl"
    path.write_text(
        json.dumps({"id": "b", "prompt": "has no other texts"}) + "\n\n" + json.dumps(RECORD), encoding="utf-8"
    )
    (prompt,) = read_alignment_prompts(path)
    texts = AlignmentTexts((HardNegative("order", "q"),), ("r",), (ZeroShotTask("word", "W", ("the {}",)),))
    assert prompt == AlignmentPrompt("a-1", "s", "p", texts)
    assert texts.to_json() == {name: RECORD[name] for name in ("swapped", "same", "zero_shot")}
    assert AlignmentTexts().to_json() == {} and alignment_prompt_of({"prompt": "p"}, "x") is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"swapped": [{"prompt": "q"}]}, "line 1 is no record of an alignment.jsonl: its texts are not"),
        ({"same": [3]}, "3 is no text"),
        ({"zero_shot": [{"task": "t", "answer": "a", "templates": ["none"]}]}, "needs templates with one {}"),
        ({"zero_shot": [{"task": "t", "answer": "a", "templates": []}]}, "needs templates with one {}"),
        ({"prompt": None}, "None is no text"),
        ({"swapped": [], "same": [], "zero_shot": []}, "holds no texts to compare images with"),
    ],
)
def test_a_bad_record_is_refused_with_its_line(wrong: dict, message: str, tmp_path: Path) -> None:
    path = tmp_path / "alignment.jsonl"
    path.write_text(json.dumps({**RECORD, **wrong}), encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(message)):
        read_alignment_prompts(path)
    path.write_text("[1]", encoding="utf-8")
    with pytest.raises(UserError, match="line 1 is no record"):
        read_alignment_prompts(path)
