"""Models describe pictures, and what they say is held against the prompts:

python tools/describe.py vlad=FOLDER sd=FOLDER --prompts FILE --describer FOLDER [NAME=FOLDER ...]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlad.errors import UserError, run_command_line

BATCH = 4


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


def descriptions(model: Any, pictures: list[Any], store: Path) -> Iterator[str]:
    """What a model says of each picture, kept in a file of lines; what this model has said is not asked again."""
    from tqdm import tqdm

    from vlad.evaluation.reading_files import load_picture

    kept: dict[str, str] = {}
    if store.is_file():
        for line in store.read_text(encoding="utf-8").splitlines():
            if line.endswith("}"):  # the last one may be cut off
                record = json.loads(line)
                if record.get("model") == model.name:
                    kept[record["picture"]] = record["said"]
    missing = [picture for picture in pictures if stamp(picture.path) not in kept]
    with store.open("a", encoding="utf-8") as stream, tqdm(total=len(missing), desc=store.stem, unit="picture") as bar:
        for start in range(0, len(missing), BATCH):
            batch = missing[start : start + BATCH]
            for picture, said in zip(batch, model.say([load_picture(p.path) for p in batch]), strict=True):
                kept[stamp(picture.path)] = said
                record = {"model": model.name, "picture": stamp(picture.path), "said": said}
                stream.write("\n" + json.dumps(record, ensure_ascii=False))
            stream.flush()
            bar.update(len(batch))
    yield from (kept[stamp(picture.path)] for picture in pictures)


def stamp(path: Path) -> str:
    """What tells a picture from another."""
    status = path.stat()
    return f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"


def is_readable(path: Path) -> bool:
    """Whether a picture can be decoded."""
    from vlad.evaluation.reading_files import UNREADABLE, load_picture

    try:
        load_picture(path)
    except UNREADABLE:
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description="Describes pictures and compares what is said with their prompts.")
    parser.add_argument("systems", nargs="+", metavar="NAME=FOLDER", help="pictures of each system, as evaluate.py's")
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
    if (arguments.first or 1) < 1:
        raise UserError("--first must be at least 1.")
    systems, describers = named(arguments.systems), named(arguments.describer)

    from vlad.errors import writable_directory
    from vlad.evaluation.descriptions import matrix_of, summed_up
    from vlad.evaluation.evaluator import write_json
    from vlad.evaluation.pictures import find_pictures
    from vlad.evaluation.prompt_files import read_prompt_files, safe_name
    from vlad.text.captioner import LVLMCaptioner, checked_processor
    from vlad.text.picture_encoders import SentenceEncoder

    prompts = read_prompt_files(arguments.prompts)[: arguments.first]
    found: dict[str, list[Any]] = {}
    absent, unreadable = 0, []
    for name, place in systems.items():
        if not Path(place).is_dir():
            raise UserError(f"There is no folder of pictures at {place} ({name}).")
        pictures = find_pictures(Path(place), prompts, None)
        there = [(picture, picture.path) for picture in pictures if picture.path is not None]
        absent += len(pictures) - len(there)
        broken = {path for _, path in there if not is_readable(path)}
        found[name] = [picture for picture, path in there if path not in broken]
        unreadable += sorted(map(str, broken))
    # The last describer's mistake shows before the first one has looked at all pictures.
    for place in describers.values():
        checked_processor(place, None, "--describer")
    sentences = None if arguments.sentences is None else SentenceEncoder(arguments.sentences)
    out = writable_directory(arguments.out, "descriptions", needed_bytes=10_000_000)
    trips = []
    for describer, place in describers.items():
        model = LVLMCaptioner(place, option="--describer")
        for system, pictures in found.items():
            store = out / f"{safe_name(describer)}-of-{safe_name(system)}.jsonl"
            said = list(descriptions(model, pictures, store))
            told = [(p.wanted.prompt, p.wanted.strings, text) for p, text in zip(pictures, said, strict=True)]
            trips.append(summed_up(describer, system, told, sentences.similarity if sentences else None))
    text = matrix_of(trips)
    (out / "matrix.md").write_text(text, encoding="utf-8")
    write_json(out / "matrix.json", [dataclasses.asdict(trip) for trip in trips])
    print(text)
    if absent:
        print(f"PARTIAL: {absent} pictures are missing.")
    if unreadable:
        print(f"PARTIAL: {len(unreadable)} pictures cannot be read: {', '.join(unreadable[:5])}.")
    if sentences is None:
        print("Similarity is left out: name a sentence encoder's folder with --sentences.")
    return 1 if absent or unreadable else 0


if __name__ == "__main__":
    run_command_line(main)
