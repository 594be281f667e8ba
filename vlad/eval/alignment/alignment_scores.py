"""Alignment scores: does an encoder of texts and images read a prompt, or only the bag of its words?

    image, prompt, hard negatives          -> is the image nearer to the prompt?
    prompt, paraphrases, hard negatives    -> is the prompt nearer to the paraphrases?
    image, a word in many templates        -> which word is it (zero-shot), whatever the template?

"a red ring above a blue sign" and "a blue ring above a red sign" are one bag of words: an encoder that sees no more
cannot tell them apart (Winoground, Thrush et al., CVPR 2022; ARO, Yuksekgonul et al., ICLR 2023), and takes the second
for nearer to the first than "a blue board below a red hoop" (SugarCrepe++, Dumpala et al., NeurIPS 2024). Beside every
score stands that of a bag of words, computed by the same code with each prompt's bag as its image.

Letters: D width of the shared space, C classes of a zero-shot task.
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

from vlad.eval.alignment.alignment_prompts import AlignmentPrompt
from vlad.eval.intervals import bootstrap_intervals
from vlad.eval.protocols.protocol import MetricTerm, MetricTerms, Sums, add_terms, no_derived_metrics, ratios
from vlad.utils.errors import UserError

BATCH = 32
CHANCE_OF_TWO = 0.5
_WORD = re.compile(r"\w+")
Template = tuple[str, str]  # a zero-shot task and one of its templates


class JointEncoder(Protocol):
    """Embeds texts and images in one space."""

    name: str

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """B texts -> B D."""

    def embed_images(self, images: Sequence[np.ndarray]) -> Tensor:
        """B images (H W 3, uint8, of any sizes) -> B D."""


@dataclass(frozen=True)
class AlignmentScore:
    """A share (0..1) with its interval over prompts, the score of chance (None: not one figure) and of a bag of
    words."""

    name: str
    value: float
    low: float
    high: float
    prompts: int
    chance: float | None
    bag_of_words: float


def score_encoder(
    encoder: JointEncoder,
    images: Sequence[tuple[AlignmentPrompt, Callable[[], np.ndarray | None]]],
    on_progress: Callable[[int], None] | None = None,
) -> list[AlignmentScore]:
    """The scores of an encoder on images (H W 3, uint8), each loaded when it is embedded; None is left out.

    Raises UserError when all are None.
    """
    embedded: list[tuple[AlignmentPrompt, Tensor]] = []
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        loaded = [(prompt, image) for prompt, load in batch if (image := load()) is not None]
        if loaded:
            with torch.no_grad():
                vectors = encoder.embed_images([image for _, image in loaded])
            embedded += zip((prompt for prompt, _ in loaded), F.normalize(vectors.float().cpu(), dim=-1), strict=True)
        if on_progress is not None:
            on_progress(start + len(batch))
    if not embedded:
        raise UserError("None of the images can be read; name a folder of whole ones with --images.")
    texts = embed_texts(encoder, texts_to_embed(prompt for prompt, _ in embedded))
    return score_embeddings(embedded, texts)


def texts_to_embed(prompts: Iterable[AlignmentPrompt]) -> list[str]:
    """Every text whose embedding the scores need, each once."""
    prompts = list(prompts)
    texts: dict[str, None] = {}
    for prompt in prompts:
        negatives = (negative.prompt for negative in prompt.texts.negatives)
        texts |= dict.fromkeys((prompt.prompt, *prompt.texts.paraphrases, *negatives))
    for (_, template), answers in _classes(prompts).items():
        texts |= dict.fromkeys(template.replace("{}", answer) for answer in answers)
    return list(texts)


def _classes(prompts: Iterable[AlignmentPrompt]) -> dict[Template, tuple[str, ...]]:
    """The classes of each template of a task: all answers that the prompts have."""
    answers: dict[str, dict[str, None]] = {}
    templates: dict[Template, None] = {}
    for prompt in prompts:
        for task in prompt.texts.zero_shot:
            answers.setdefault(task.task, {})[task.answer] = None
            templates |= dict.fromkeys((task.task, template) for template in task.templates)
    return {(task, template): tuple(answers[task]) for task, template in templates}


@torch.no_grad()
def embed_texts(encoder: JointEncoder, texts: Sequence[str]) -> dict[str, Tensor]:
    """Unit vectors (D) of texts, embedded in batches."""
    vectors: dict[str, Tensor] = {}
    for start in range(0, len(texts), BATCH):
        batch = texts[start : start + BATCH]
        vectors |= zip(batch, F.normalize(encoder.embed_texts(batch).float().cpu(), dim=-1), strict=True)
    return vectors


def bag_of_words(texts: Sequence[str]) -> dict[str, Tensor]:
    """Unit vectors (D) of each text's counts of all texts' words, without articles and letter case."""
    counts = {text: Counter(word for word in _WORD.findall(text.lower()) if word not in ("a", "an")) for text in texts}
    places = {word: place for place, word in enumerate(sorted(set().union(*counts.values())))}
    bags = {}
    for text, words in counts.items():
        # float64: bags that are equal are exactly as near.
        vector = torch.zeros(max(1, len(places)), dtype=torch.float64)
        for word, count in words.items():
            vector[places[word]] = count
        bags[text] = F.normalize(vector, dim=0)
    return bags


def score_embeddings(
    images: Sequence[tuple[AlignmentPrompt, Tensor]], texts: Mapping[str, Tensor]
) -> list[AlignmentScore]:
    """The scores of images (unit vectors, D) of prompts, given the unit vectors of all their `texts_to_embed`.

    SUBSET, KIND               the image is nearer to its prompt than to a hard negative of KIND
    SUBSET, all                nearer than to all of its hard negatives
    SUBSET, reworded           nearer to the paraphrases than to the hard negatives
    SUBSET, reworded, as texts the prompt itself is nearer to its paraphrases than to the hard negatives
    SUBSET, every wording      the prompt and all its paraphrases are nearer than all hard negatives
    SUBSET, zero-shot TASK     the image's answer is the nearest of all answers, the mean over templates
    SUBSET, ..., together      the same, with the mean of the templates' vectors (CLIP, Radford et al., 2021)
    SUBSET, ..., worst, best   of the templates

    A tie counts as half, one of several as its share.
    """
    prompts = [prompt for prompt, _ in images]
    bags = bag_of_words(texts_to_embed(prompts))
    sums = _sums(images, texts)
    bag_sums = _sums([(prompt, bags[prompt.prompt]) for prompt in prompts], bags)
    values, bag_values = _total_ratios(sums), _total_ratios(bag_sums)
    intervals = bootstrap_intervals(list(sums.values()), no_derived_metrics)
    chances = _chances(prompts)
    scores = []
    for name, value in values.items():
        count = sum(name in own for own in sums.values())
        scores.append(AlignmentScore(name, value, *intervals[name], count, chances.get(name), bag_values[name]))
    return scores


def _sums(images: Sequence[tuple[AlignmentPrompt, Tensor]], texts: Mapping[str, Tensor]) -> dict[str, Sums]:
    """What each prompt's images add to each score: right, of how many."""
    classes = _classes(prompt for prompt, _ in images)
    matrices = {
        template: torch.stack([texts[template[1].replace("{}", answer)] for answer in answers])  # C D
        for template, answers in classes.items()
    }
    by_prompt: dict[str, Sums] = {}
    for prompt, image in images:
        sums = by_prompt.setdefault(prompt.key, {})
        add_terms(sums, _contrast_terms(prompt, image, texts))
        add_terms(sums, _zero_shot_terms(prompt, image, matrices, classes))
    return by_prompt


def _contrast_terms(prompt: AlignmentPrompt, image: Tensor, texts: Mapping[str, Tensor]) -> MetricTerms:
    """The prompt and its paraphrases against the hard negatives."""
    negatives, paraphrases = prompt.texts.negatives, prompt.texts.paraphrases
    if not negatives:
        return {}
    anchor = texts[prompt.prompt]
    right = float(image @ anchor)
    wrong = [float(image @ texts[negative.prompt]) for negative in negatives]
    terms: MetricTerms = {}
    for kind in dict.fromkeys(negative.kind for negative in negatives):
        of_kind = [value for negative, value in zip(negatives, wrong, strict=True) if negative.kind == kind]
        terms[f"{prompt.subset}, {kind}"] = _nearer([right], of_kind)
    terms[f"{prompt.subset}, all"] = MetricTerm(_chosen(torch.tensor([right, *wrong], dtype=torch.float64), 0))
    if paraphrases:
        reworded = [float(image @ texts[text]) for text in paraphrases]
        terms[f"{prompt.subset}, reworded"] = _nearer(reworded, wrong)
        near = [float(anchor @ texts[text]) for text in paraphrases]
        far = [float(anchor @ texts[negative.prompt]) for negative in negatives]
        terms[f"{prompt.subset}, reworded, as texts"] = _nearer(near, far)
        terms[f"{prompt.subset}, every wording"] = MetricTerm(float(min(right, *reworded) > max(wrong)))
    return terms


def _zero_shot_terms(
    prompt: AlignmentPrompt,
    image: Tensor,
    matrices: Mapping[Template, Tensor],
    classes: Mapping[Template, tuple[str, ...]],
) -> MetricTerms:
    """Each task's answer among its classes: in each template, over all templates, and with their mean vectors."""
    terms: MetricTerms = {}
    for task in prompt.texts.zero_shot:
        name = f"{prompt.subset}, zero-shot {task.task}"
        templates = [(task.task, template) for template in task.templates]
        number = classes[templates[0]].index(task.answer)
        right = [_chosen(matrices[template] @ image, number) for template in templates]
        terms[name] = MetricTerm(sum(right), len(right))
        together = F.normalize(torch.stack([matrices[template] for template in templates]).mean(dim=0), dim=-1)
        terms[f"{name}, together"] = MetricTerm(_chosen(together @ image, number))
        terms |= {f"{name}: {template[1]}": MetricTerm(value) for template, value in zip(templates, right, strict=True)}
    return terms


def _nearer(right: Sequence[float], wrong: Sequence[float]) -> MetricTerm:
    """How many of all pairs have the right one nearer; a tie counts as half."""
    return MetricTerm(sum(0.5 if a == b else float(a > b) for a in right for b in wrong), len(right) * len(wrong))


def _chosen(similarities: Tensor, number: int) -> float:
    """1 where `number` is the nearest; where several are, an equal part of it."""
    nearest = similarities == similarities.max()
    return float(nearest[number]) / int(nearest.sum())


def _total_ratios(prompts: Mapping[str, Sums]) -> dict[str, float]:
    total: Sums = {}
    for sums in prompts.values():
        add_terms(total, {name: MetricTerm(*pair) for name, pair in sums.items()})
    return ratios(total)


def _chances(prompts: Sequence[AlignmentPrompt]) -> dict[str, float]:
    """The scores of an encoder that sees nothing."""
    chances: dict[str, float] = {}
    for prompt in prompts:
        kinds = {negative.kind for negative in prompt.texts.negatives}
        names = (*kinds, "reworded", "reworded, as texts")
        chances |= {f"{prompt.subset}, {name}": CHANCE_OF_TWO for name in names}
        chances[f"{prompt.subset}, all"] = 1 / (1 + len(prompt.texts.negatives))
    for (task, template), answers in _classes(prompts).items():
        for subset in {prompt.subset for prompt in prompts}:
            name = f"{subset}, zero-shot {task}"
            chances |= dict.fromkeys((name, f"{name}: {template}", f"{name}, together"), 1 / len(answers))
    return chances


def alignment_table(scores: Sequence[AlignmentScore]) -> str:
    """The scores in Markdown; of a zero-shot task's templates the worst and the best."""
    lines = ["| | share | 95 % interval | a bag of words | chance | prompts |", "|---|---|---|---|---|---|"]

    def row(name: str, score: AlignmentScore) -> str:
        chance = "-" if score.chance is None else f"{score.chance:.3f}"
        interval = f"[{score.low:.3f}, {score.high:.3f}]"
        return f"| {name} | {score.value:.3f} | {interval} | {score.bag_of_words:.3f} | {chance} | {score.prompts} |"

    templates = [score for score in scores if ": " in score.name]
    for score in scores:
        if score in templates:
            continue
        lines.append(row(score.name, score))
        prefix = f"{score.name}: "
        own = sorted((one for one in templates if one.name.startswith(prefix)), key=lambda one: one.value)
        if len(own) > 1:
            for rank, one in (("worst", own[0]), ("best", own[-1])):
                lines.append(row(f"{score.name}, {rank}: `{one.name.removeprefix(prefix)}`", one))
    return "\n".join(lines) + "\n"
