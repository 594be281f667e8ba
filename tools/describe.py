"""Models describe images, and what they say is held against the prompts:

python tools/describe.py vlad=FOLDER sd=FOLDER --prompts FILE --describer FOLDER [NAME=FOLDER ...]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlad.utils.command_line import run_command_line
from vlad.utils.errors import UserError

BATCH = 4
NAMED = 5  # how many missing or unreadable images are named


def named(values: list[str]) -> dict[str, str]:
    """NAME=PLACE pairs; a place alone is called after its last part."""
    found: dict[str, str] = {}
    for said in values:
        name, equals, place = said.partition("=")
        name, place = (name, place) if equals else (Path(said).name, said)
        if not name or not place or name in found:
            raise UserError(f"{said!r} names nothing, or the same twice; write NAME=PLACE for each.")
        found[name] = place
    return found


def descriptions(model: Any, images: list[Any], store: Path) -> Iterator[str]:
    """What a model says of each image, kept in a file of lines; what this model has said is not asked again."""
    from tqdm import tqdm

    from vlad.eval.benchmark.parallel_ocr import load_image

    kept = kept_of(store, model.name)
    missing = [image for image in images if stamp(image.path) not in kept]
    with store.open("a", encoding="utf-8") as stream, tqdm(total=len(missing), desc=store.stem, unit="image") as bar:
        for start in range(0, len(missing), BATCH):
            batch = missing[start : start + BATCH]
            for image, said in zip(batch, model.describe([load_image(p.path) for p in batch]), strict=True):
                kept[stamp(image.path)] = said
                record = {"model": model.name, "image": stamp(image.path), "said": said}
                stream.write("\n" + json.dumps(record, ensure_ascii=False))
            stream.flush()
            bar.update(len(batch))
    yield from (kept[stamp(image.path)] for image in images)


def kept_of(store: Path, model: str) -> dict[str, str]:
    """What a model has said of each image already; a line that is cut off or damaged is left out, and asked again."""
    kept: dict[str, str] = {}
    # Lines of bytes: a letter may be cut in two, and what was said may hold other line ends.
    for line in store.read_bytes().split(b"\n") if store.is_file() else ():
        try:
            record = json.loads(line.decode("utf-8"))
            of, image, said = (record[name] for name in ("model", "image", "said"))
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
        if of == model and isinstance(image, str) and isinstance(said, str):
            kept[image] = said
    return kept


def stamp(path: Path) -> str:
    """What tells an image from another."""
    status = path.stat()
    return f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"


def is_readable(path: Path) -> bool:
    """Whether an image can be decoded."""
    from vlad.eval.benchmark.parallel_ocr import UNREADABLE, load_image

    try:
        load_image(path)
    except UNREADABLE:
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description="Describes images and compares what is said with their prompts.")
    parser.add_argument("systems", nargs="+", metavar="NAME=FOLDER", help="images of each system, as evaluate.py's")
    parser.add_argument(
        "--prompts", type=Path, nargs="+", required=True, metavar="FILE", help="what they were drawn of"
    )
    parser.add_argument(
        "--describer", nargs="+", required=True, metavar="NAME=MODEL", help="image-text-to-text models of transformers"
    )
    parser.add_argument("--sentences", type=Path, metavar="DIR", help="a sentence encoder, for the similarity")
    parser.add_argument("--first", type=int, metavar="N", help="only the first N prompts")
    parser.add_argument("--out", type=Path, default=Path("evaluations/descriptions"), metavar="DIR")
    arguments = parser.parse_args()
    if arguments.first is not None and arguments.first < 1:
        raise UserError(f"--first is {arguments.first}, and must be at least 1; leave it out for all prompts.")
    systems, describers = named(arguments.systems), named(arguments.describer)

    from vlad.eval.benchmark.evaluator import write_json
    from vlad.eval.benchmark.image_sets import find_images
    from vlad.eval.benchmark.prompt_files import read_prompt_files, safe_name
    from vlad.eval.description_round_trip import matrix_of, summed_up
    from vlad.models.captioner import LVLMCaptioner, check_model
    from vlad.models.metric_encoders import SentenceEncoder
    from vlad.utils.paths import writable_directory

    prompts = read_prompt_files(arguments.prompts)[: arguments.first]
    found: dict[str, list[Any]] = {}
    absent: list[str] = []
    unreadable: list[str] = []
    for name, place in systems.items():
        if not Path(place).is_dir():
            raise UserError(f"There is no folder of images at {place} ({name}).")
        images = find_images(Path(place), prompts, None)
        there = [(image, image.path) for image in images if image.path is not None]
        absent += [f"{name} {image.name}" for image in images if image.path is None]
        broken = {path for _, path in there if not is_readable(path)}
        found[name] = [image for image, path in there if path not in broken]
        unreadable += sorted(map(str, broken))
    # The last describer's mistake shows before the first one has looked at all images.
    for place in describers.values():
        check_model(place, "--describer")
    sentences = None if arguments.sentences is None else SentenceEncoder(arguments.sentences)
    out = writable_directory(arguments.out, "descriptions", needed_bytes=10_000_000)
    trips = []
    for describer, place in describers.items():
        model = LVLMCaptioner(place, option="--describer")
        for system, images in found.items():
            store = out / f"{safe_name(describer)}-of-{safe_name(system)}.jsonl"
            said = list(descriptions(model, images, store))
            told = [(p.wanted.prompt, p.wanted.strings, text) for p, text in zip(images, said, strict=True)]
            trips.append(summed_up(describer, system, told, sentences.similarity if sentences else None))
    text = matrix_of(trips)
    (out / "matrix.md").write_text(text, encoding="utf-8")
    write_json(out / "matrix.json", [dataclasses.asdict(trip) for trip in trips])
    print(text)
    if absent:
        print(f"PARTIAL: {len(absent)} images are missing: {', '.join(absent[:NAMED])}.")
    if unreadable:
        print(f"PARTIAL: {len(unreadable)} images cannot be read: {', '.join(unreadable[:NAMED])}.")
    if sentences is None:
        print("Similarity is left out: name a sentence encoder's folder with --sentences.")
    return 1 if absent or unreadable else 0


if __name__ == "__main__":
    run_command_line(main)
