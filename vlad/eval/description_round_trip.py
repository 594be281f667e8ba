"""Description round trip: a vision-language model describes an image, and the description is compared with the prompt.

    prompt --> facts: strings, objects, (colour, object), (count, object), (object, relation, object)
    image --> description --> the facts that it confirms; cosine of both sentences

`vlad/eval/prompt_facts.py` extracts the facts and compares them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from vlad.eval.benchmark.image_sets import BenchmarkImage, find_images
from vlad.eval.benchmark.prompt_files import read_prompt_files, safe_name
from vlad.eval.image_files import load_image
from vlad.eval.intervals import Interval, bootstrap_intervals
from vlad.eval.prompt_facts import KINDS, confirmed
from vlad.eval.protocols.protocol import MetricTerm, add_terms, metrics_of_terms, no_derived_metrics
from vlad.utils.atomic_files import write_json
from vlad.utils.errors import UserError
from vlad.utils.paths import writable_directory

BATCH = 4
NAMES_SHOWN = 5  # of missing or unreadable images


@dataclass(frozen=True)
class RoundTrip:
    """One describer on one system's images: shares of confirmed facts (None: the prompts have none), mean cosine of
    sentences (None: no sentence encoder), and the 95 % interval of each."""

    describer: str
    system: str
    images: int
    shares: Mapping[str, float | None]
    similarity: float | None
    intervals: Mapping[str, Interval]


def round_trip(
    describer: str,
    system: str,
    described: Iterable[tuple[str, Sequence[str], str]],
    similarity: Callable[[Sequence[str], Sequence[str]], Sequence[float]] | None = None,
) -> RoundTrip:
    """The round trip of (prompt, strings, description) triples: shares over all facts of a kind.

    Intervals resample prompts, each with the descriptions of all its images.
    """
    triples = list(described)
    terms = [confirmed(prompt, strings, description) for prompt, strings, description in triples]
    if similarity is not None and triples:
        cosines = similarity([prompt for prompt, _, _ in triples], [text for _, _, text in triples])
        for own, cosine in zip(terms, cosines, strict=True):
            own["similarity"] = MetricTerm(cosine)
    values = metrics_of_terms(terms, no_derived_metrics)
    sums: dict[str, dict[str, tuple[float, float]]] = {}
    for (prompt, _, _), own in zip(triples, terms, strict=True):
        add_terms(sums.setdefault(prompt, {}), own)
    intervals = bootstrap_intervals(list(sums.values()), no_derived_metrics)
    shares = {kind: values.get(kind) for kind in KINDS}
    return RoundTrip(describer, system, len(triples), shares, values.get("similarity"), intervals)


def round_trip_matrix(trips: Sequence[RoundTrip]) -> str:
    """A table in Markdown a measure: describers in rows, systems in columns."""
    describers = list(dict.fromkeys(trip.describer for trip in trips))
    systems = list(dict.fromkeys(trip.system for trip in trips))
    by_place = {(trip.describer, trip.system): trip for trip in trips}

    def cell(trip: RoundTrip, name: str) -> str:
        value = trip.similarity if name == "similarity" else trip.shares[name]
        if value is None:
            return "-"
        low, high = trip.intervals[name]
        return f"{value:.3f} ({low:.3f} to {high:.3f})"

    def rows(name: str) -> Iterator[str]:
        yield f"| {name} | {' | '.join(systems)} |"
        yield "|---" * (len(systems) + 1) + "|"
        for describer in describers:
            cells = (by_place[describer, system] for system in systems)
            if name == "images":
                yield f"| {describer} | {' | '.join(str(trip.images) for trip in cells)} |"
                continue
            yield f"| {describer} | {' | '.join(cell(trip, name) for trip in cells)} |"

    measures = ("similarity", *KINDS, "images")
    return "\n\n".join("\n".join(rows(name)) for name in measures) + "\n"


@dataclass(frozen=True)
class Descriptions:
    """The round trips of all describers and systems, and the images that are missing or cannot be read."""

    trips: tuple[RoundTrip, ...]
    missing: list[str]
    unreadable: list[str]

    @property
    def is_partial(self) -> bool:
        """Whether images are missing or cannot be read: the figures are of the others."""
        return bool(self.missing or self.unreadable)

    def summary(self) -> str:
        """The tables for a terminal."""
        lines = [round_trip_matrix(self.trips)]
        for names, fault in ((self.missing, "are missing"), (self.unreadable, "cannot be read")):
            if names:
                lines.append(f"PARTIAL: {len(names)} images {fault}: {', '.join(names[:NAMES_SHOWN])}.")
        if all(trip.similarity is None for trip in self.trips):
            lines.append("Similarity is left out: name a sentence encoder's folder with --sentences.")
        return "\n".join(lines)


def evaluate_descriptions(
    systems: Mapping[str, Path],
    prompt_files: Sequence[Path],
    describers: Mapping[str, str],
    out: Path,
    sentence_encoder: Path | None = None,
    first: int | None = None,
) -> Descriptions:
    """Has each describer (an image-text-to-text model) describe each system's folder of images of the prompts.

    Writes OUT/matrix.md, matrix.json, and each description to OUT/DESCRIBER-of-SYSTEM.jsonl, from which an interrupted
    call goes on. Raises UserError, before anything is described, for folders or models that cannot be used.
    """
    from vlad.models.captioner import LVLMCaptioner, check_model  # late: they take seconds to load
    from vlad.models.metric_encoders import SentenceEncoder

    prompts = read_prompt_files(prompt_files)[:first]
    images: dict[str, list[tuple[BenchmarkImage, Path]]] = {}
    missing: list[str] = []
    unreadable: list[str] = []
    for system, folder in systems.items():
        if not folder.is_dir():
            raise UserError(f"There is no folder of images at {folder} ({system}).")
        found = find_images(folder, prompts, None)
        present = [(image, image.path) for image in found if image.path is not None]
        missing += [f"{system} {image.name}" for image in found if image.path is None]
        broken = {path for _, path in present if not _is_readable(path)}
        images[system] = [(image, path) for image, path in present if path not in broken]
        unreadable += sorted(map(str, broken))
    # A mistake in the last describer shows before the first one has described all images.
    for model in describers.values():
        check_model(model, "--describer")
    similarity = None if sentence_encoder is None else SentenceEncoder(sentence_encoder).similarity
    out = writable_directory(out, "descriptions", needed_bytes=10_000_000)
    trips = []
    for describer, model in describers.items():
        captioner = LVLMCaptioner(model, option="--describer")
        for system, present in images.items():
            store = out / f"{safe_name(describer)}-of-{safe_name(system)}.jsonl"
            texts = describe(captioner, [path for _, path in present], store)
            triples = [
                (image.prompt.text, image.prompt.strings, text) for (image, _), text in zip(present, texts, strict=True)
            ]
            trips.append(round_trip(describer, system, triples, similarity))
    (out / "matrix.md").write_text(round_trip_matrix(trips), encoding="utf-8")
    write_json(out / "matrix.json", [asdict(trip) for trip in trips])
    return Descriptions(tuple(trips), missing, unreadable)


class Describer(Protocol):
    """A vision-language model that describes images."""

    name: str

    def describe(self, images: list[np.ndarray]) -> list[str]:
        """A description of every image (H W 3, uint8)."""


def describe(model: Describer, paths: Sequence[Path], store: Path) -> list[str]:
    """The model's description of every image; those that `store` (a file of JSON lines) holds are not made again."""
    stored = stored_descriptions(store, model.name)
    new = [path for path in paths if _stamp(path) not in stored]
    with store.open("a", encoding="utf-8") as stream, tqdm(total=len(new), desc=store.stem, unit="image") as bar:
        for start in range(0, len(new), BATCH):
            batch = new[start : start + BATCH]
            for path, text in zip(batch, model.describe([load_image(path) for path in batch]), strict=True):
                stored[_stamp(path)] = text
                record = {"model": model.name, "image": _stamp(path), "said": text}
                stream.write("\n" + json.dumps(record, ensure_ascii=False))
            stream.flush()
            bar.update(len(batch))
    return [stored[_stamp(path)] for path in paths]


def stored_descriptions(store: Path, model: str) -> dict[str, str]:
    """A model's stored descriptions by image; a truncated or damaged line counts as none."""
    stored: dict[str, str] = {}
    # Lines of bytes: a truncated line may end inside a character, and descriptions may hold other line ends.
    for line in store.read_bytes().split(b"\n") if store.is_file() else ():
        try:
            record = json.loads(line.decode("utf-8"))
            name, image, text = (record[key] for key in ("model", "image", "said"))
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
        if name == model and isinstance(image, str) and isinstance(text, str):
            stored[image] = text
    return stored


def _stamp(path: Path) -> str:
    """Path, size and time of an image: another one has another stamp."""
    status = path.stat()
    return f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"


def _is_readable(path: Path) -> bool:
    try:
        load_image(path)
    except ValueError:
        return False
    return True
