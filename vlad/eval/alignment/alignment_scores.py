"""Whether an encoder of texts and images reads a prompt, or only the bag of its words.

    image, prompt, the prompt with something swapped  -> is the image nearer to what it shows?
    prompt, the same in other words, the swapped prompt -> is the prompt nearer to what it means?
    image, a word in many templates                   -> which word is it (zero-shot), whatever stands around it?

"a red ring above a blue sign" and "a blue ring above a red sign" are one bag of words: an encoder that sees no more
cannot tell them apart (Winoground, Thrush et al., CVPR 2022; ARO, Yuksekgonul et al., ICLR 2023), and takes the second
for nearer to the first than "a blue board below a red hoop" (SugarCrepe++, Dumpala et al., NeurIPS 2024). What a bag of
words gets, whose images are its own prompts, is computed by the same code and stands beside every score.

Letters: D width of the shared space.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vlad.eval.alignment.alignment_prompts import Entry
from vlad.eval.intervals import bootstrap_intervals
from vlad.eval.protocols.protocol import MetricTerm, MetricTerms, add_terms, no_derived_metrics, ratios
from vlad.utils.errors import UserError

BATCH = 32
CHANCE_OF_TWO = 0.5
_WORD = re.compile(r"\w+")


class JointEncoder(Protocol):
    """What embeds texts and images in one space."""

    name: str

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """B texts -> B D."""

    def embed_images(self, images: Sequence[np.ndarray]) -> Tensor:
        """B images (H W 3, uint8, of any sizes) -> B D."""


@dataclass(frozen=True)
class Contrast:
    """One score: a share (0..1) with its interval over prompts, what chance gets (None: no one figure), and what a bag
    of words gets."""

    name: str
    value: float
    low: float
    high: float
    prompts: int
    chance: float | None
    bag_of_words: float


def wordings_of(entries: Iterable[Entry]) -> list[str]:
    """Every text whose embedding the scores need, each once."""
    entries = list(entries)
    texts: dict[str, None] = {}
    for entry in entries:
        texts |= dict.fromkeys((entry.prompt, *entry.asked.same, *(one.prompt for one in entry.asked.swapped)))
    for (_, template), answers in _classes(entries).items():
        texts |= dict.fromkeys(template.replace("{}", answer) for answer in answers)
    return list(texts)


def _classes(entries: Iterable[Entry]) -> dict[tuple[str, str], tuple[str, ...]]:
    """The answers among which each template of a task chooses: all that the entries have."""
    answers: dict[str, dict[str, None]] = {}
    templates: dict[tuple[str, str], None] = {}
    for entry in entries:
        for one in entry.asked.zero_shot:
            answers.setdefault(one.task, {})[one.answer] = None
            templates |= dict.fromkeys((one.task, template) for template in one.templates)
    return {(task, template): tuple(answers[task]) for task, template in templates}


@torch.no_grad()
def embed_texts(encoder: JointEncoder, texts: Sequence[str]) -> dict[str, Tensor]:
    """Unit vectors (D) of texts, a batch at a time."""
    found: dict[str, Tensor] = {}
    for start in range(0, len(texts), BATCH):
        batch = texts[start : start + BATCH]
        found |= zip(batch, F.normalize(encoder.embed_texts(batch).float().cpu(), dim=-1), strict=True)
    return found


def bag_of_words(texts: Sequence[str]) -> dict[str, Tensor]:
    """Unit vectors (D) of how often each word of all the texts is in each, articles aside; case does not count."""
    counts = {text: Counter(word for word in _WORD.findall(text.lower()) if word not in ("a", "an")) for text in texts}
    places = {word: place for place, word in enumerate(sorted(set().union(*counts.values())))}
    found = {}
    for text, words in counts.items():
        # float64: bags that are equal are exactly as near.
        vector = torch.zeros(max(1, len(places)), dtype=torch.float64)
        for word, count in words.items():
            vector[places[word]] = count
        found[text] = F.normalize(vector, dim=0)
    return found


def score_contrasts(images: Sequence[tuple[Entry, Tensor]], texts: Mapping[str, Tensor]) -> list[Contrast]:
    """The scores of images (unit vectors, D) with their entries, given the unit vectors of all `wordings_of` them.

    SUBSET, KIND               the image is nearer to its prompt than to one with KIND swapped
    SUBSET, all                nearer than to all of its swapped prompts
    SUBSET, reworded           nearer to the prompt in other words than to the swapped prompts
    SUBSET, reworded, as texts the prompt itself is nearer to its rewordings than to the swapped prompts
    SUBSET, every wording      the prompt and all its rewordings are nearer than all swapped prompts
    SUBSET, zero-shot TASK     the image's answer is the nearest of all answers, the mean over templates
    SUBSET, ..., together      the same, with the mean of the templates' vectors (CLIP, Radford et al., 2021)
    SUBSET, ..., worst, best   of the templates

    As near counts as half, of several as one of them.
    """
    entries = [entry for entry, _ in images]
    bags = bag_of_words(wordings_of(entries))
    own = _sums(images, texts)
    of_bag = _sums([(entry, bags[entry.prompt]) for entry in entries], bags)
    values, of_bags = _ratios(own), _ratios(of_bag)
    intervals = bootstrap_intervals(list(own.values()), no_derived_metrics)
    chances = _chances(entries)
    found = []
    for name, value in values.items():
        counted = sum(name in sums for sums in own.values())
        low, high = intervals[name]
        found.append(Contrast(name, value, low, high, counted, chances.get(name), of_bags[name]))
    return found


Sums = dict[str, tuple[float, float]]


def _sums(images: Sequence[tuple[Entry, Tensor]], texts: Mapping[str, Tensor]) -> dict[str, Sums]:
    """What each prompt's images add to each score: right, of how many."""
    classes = _classes(entry for entry, _ in images)
    matrices = {
        place: torch.stack([texts[place[1].replace("{}", answer)] for answer in answers])  # C D
        for place, answers in classes.items()
    }
    found: dict[str, Sums] = {}
    for entry, image in images:
        sums = found.setdefault(entry.key, {})
        add_terms(sums, _judged(entry, image, texts))
        add_terms(sums, _zero_shot(entry, image, matrices, classes))
    return found


def _judged(entry: Entry, image: Tensor, texts: Mapping[str, Tensor]) -> MetricTerms:
    """Wordings of a prompt against the prompts with something swapped."""
    swapped, same = entry.asked.swapped, entry.asked.same
    if not swapped:
        return {}
    prompt = texts[entry.prompt]
    shown, wrong = float(image @ prompt), [float(image @ texts[one.prompt]) for one in swapped]
    terms: MetricTerms = {}
    for kind in dict.fromkeys(one.kind for one in swapped):
        of_kind = [other for one, other in zip(swapped, wrong, strict=True) if one.kind == kind]
        terms[f"{entry.subset}, {kind}"] = _nearer([shown], of_kind)
    terms[f"{entry.subset}, all"] = MetricTerm(_chosen(torch.tensor([shown, *wrong], dtype=torch.float64), 0))
    if same:
        reworded = [float(image @ texts[text]) for text in same]
        terms[f"{entry.subset}, reworded"] = _nearer(reworded, wrong)
        meant, apart = ([float(prompt @ texts[text]) for text in group] for group in (same, _prompts(entry)))
        terms[f"{entry.subset}, reworded, as texts"] = _nearer(meant, apart)
        terms[f"{entry.subset}, every wording"] = MetricTerm(float(min(shown, *reworded) > max(wrong)))
    return terms


def _prompts(entry: Entry) -> tuple[str, ...]:
    return tuple(one.prompt for one in entry.asked.swapped)


def _zero_shot(
    entry: Entry,
    image: Tensor,
    matrices: Mapping[tuple[str, str], Tensor],
    classes: Mapping[tuple[str, str], tuple[str, ...]],
) -> MetricTerms:
    """Each task's answer among all answers: in each template, over all of them, and with their vectors together."""
    terms: MetricTerms = {}
    for one in entry.asked.zero_shot:
        name = f"{entry.subset}, zero-shot {one.task}"
        places = [(one.task, template) for template in one.templates]
        number = classes[places[0]].index(one.answer)
        right = [_chosen(matrices[place] @ image, number) for place in places]
        terms[name] = MetricTerm(sum(right), len(right))
        together = F.normalize(torch.stack([matrices[place] for place in places]).mean(dim=0), dim=-1)
        terms[f"{name}, together"] = MetricTerm(_chosen(together @ image, number))
        terms |= {f"{name}: {place[1]}": MetricTerm(value) for place, value in zip(places, right, strict=True)}
    return terms


def _nearer(right: Sequence[float], wrong: Sequence[float]) -> MetricTerm:
    """How many of all pairs have the right one nearer; one as near counts as half."""
    return MetricTerm(sum(0.5 if a == b else float(a > b) for a in right for b in wrong), len(right) * len(wrong))


def _chosen(similarities: Tensor, number: int) -> float:
    """1 where `number` is the nearest; where several are, an equal part of it."""
    nearest = similarities == similarities.max()
    return float(nearest[number]) / int(nearest.sum())


def _ratios(prompts: Mapping[str, Sums]) -> dict[str, float]:
    total: Sums = {}
    for sums in prompts.values():
        add_terms(total, {name: MetricTerm(*pair) for name, pair in sums.items()})
    return ratios(total)


def _chances(entries: Sequence[Entry]) -> dict[str, float]:
    """What an encoder that sees nothing gets."""
    chances: dict[str, float] = {}
    for entry in entries:
        kinds = {one.kind for one in entry.asked.swapped}
        chances |= {f"{entry.subset}, {kind}": CHANCE_OF_TWO for kind in kinds}
        chances |= {f"{entry.subset}, {name}": CHANCE_OF_TWO for name in ("reworded", "reworded, as texts")}
        chances[f"{entry.subset}, all"] = 1 / (1 + len(entry.asked.swapped))
    for (task, template), answers in _classes(entries).items():
        for subset in {entry.subset for entry in entries}:
            name = f"{subset}, zero-shot {task}"
            chances |= dict.fromkeys((name, f"{name}: {template}", f"{name}, together"), 1 / len(answers))
    return chances


def table_of(contrasts: Sequence[Contrast]) -> str:
    """The scores in Markdown; of a zero-shot task's templates the worst and the best."""
    lines = ["| | share | 95 % interval | a bag of words | chance | prompts |", "|---|---|---|---|---|---|"]

    def row(name: str, found: Contrast) -> str:
        chance = "-" if found.chance is None else f"{found.chance:.3f}"
        interval = f"[{found.low:.3f}, {found.high:.3f}]"
        return f"| {name} | {found.value:.3f} | {interval} | {found.bag_of_words:.3f} | {chance} | {found.prompts} |"

    templates = [found for found in contrasts if ": " in found.name]
    for found in contrasts:
        if found in templates:
            continue
        lines.append(row(found.name, found))
        own = sorted((one for one in templates if one.name.startswith(f"{found.name}: ")), key=lambda one: one.value)
        if len(own) > 1:
            for said, one in (("worst", own[0]), ("best", own[-1])):
                lines.append(row(f"{found.name}, {said}: `{one.name.removeprefix(f'{found.name}: ')}`", one))
    return "\n".join(lines) + "\n"


def contrasts_of(
    encoder: JointEncoder,
    images: Sequence[tuple[Entry, Callable[[], np.ndarray | None]]],
    on_progress: Callable[[int], None] | None = None,
) -> list[Contrast]:
    """The scores of an encoder on images (H W 3, uint8), each loaded when it is embedded; None is left out.

    Raises UserError when all are.
    """
    found: list[tuple[Entry, Tensor]] = []
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        loaded = [(entry, image) for entry, load in batch if (image := load()) is not None]
        if loaded:
            with torch.no_grad():
                vectors = encoder.embed_images([image for _, image in loaded])
            found += zip((entry for entry, _ in loaded), F.normalize(vectors.float().cpu(), dim=-1), strict=True)
        if on_progress is not None:
            on_progress(start + len(batch))
    if not found:
        raise UserError("None of the images can be read; name a folder of whole ones with --images.")
    return score_contrasts(found, embed_texts(encoder, wordings_of(entry for entry, _ in found)))
