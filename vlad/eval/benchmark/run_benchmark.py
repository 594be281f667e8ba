"""A benchmark's prompts on one target: drawn where images are missing, read, scored, told.

TARGET is a run, a pipeline of ours or of diffusers, a folder of images, or an entry of configs/eval/.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vlad.eval.benchmark.evaluator import (
    Evaluation,
    check_table_writer,
    choose_protocols,
    evaluate,
    metrics_json,
    write_json,
)
from vlad.eval.benchmark.html_report import write_report
from vlad.eval.benchmark.image_sets import BenchmarkImage, check_generated, find_images, generate_images, images_folder
from vlad.eval.benchmark.prompt_files import read_prompt_files
from vlad.eval.benchmark.targets import default_out, is_entry, is_pipeline
from vlad.eval.fidelity.fidelity_scores import check_encoders, score_fidelity
from vlad.eval.fidelity.reference_images import references_of
from vlad.eval.generators.entries import Entry, generator_of, load_entry, masked_box, missing_model
from vlad.eval.generators.generator import Generator
from vlad.eval.generators.pipeline_generators import build_generator
from vlad.eval.options import BenchmarkOptions, GenerationOptions, OCROptions
from vlad.eval.protocols.protocol import BenchmarkPrompt, Protocol
from vlad.metrics.ocr import build_ocr_engine
from vlad.utils.errors import UserError
from vlad.utils.locks import directory_lock
from vlad.utils.paths import checked_path, writable_directory


def run_benchmark(
    target: Path, options: BenchmarkOptions, out: Path | None = None, overrides: Sequence[str] = ()
) -> tuple[Evaluation, Path]:
    """Scores a target; `overrides` change an entry's settings. Gives the evaluation and its folder.

    Raises UserError, before anything is drawn, for what cannot be.
    """
    subject = _subject_of(target, options, overrides)
    prompts, protocols = subject.prompts, subject.protocols
    names = [protocol.name for protocol in protocols]
    references = references_of(prompts, options.references)
    check_encoders(names, options.weights, options.vision_encoders)
    out = out or default_out(target, options.prompts)
    writable_directory(out, "the evaluation", needed_bytes=20_000_000)
    with directory_lock(out, "an evaluation"):
        total, images, made = subject.images(options, out)
        with tqdm(total=total, desc="scoring", unit="image") as bar:
            read = subject.read_options(options.ocr)
            found = evaluate(images, protocols, read, out, subject.left_out, lambda done: bar.update(done - bar.n))
        found.fidelity, absent = score_fidelity(
            found.scored, names, options.weights, options.vision_encoders, references
        )
        found.left_out |= absent
        files = [str(path) for path in options.prompts]
        about = {"target": str(target), "prompt_files": files, "prompts_asked": len(prompts), **made}
        lines = rests_on(found, {**about, "target": subject.named})
        write_json(out / "metrics.json", {**metrics_json(found, about), "rests_on": dict(lines)})
        title = f"{subject.title} on {', '.join(path.name for path in options.prompts)}"
        write_report(out / "report.html", found, title, lines)
    return found, out


def check_target(target: Path, options: BenchmarkOptions, out: Path, overrides: Sequence[str] = ()) -> None:
    """Raises UserError for what `run_benchmark` would refuse. Draws and writes nothing; models are loaded for it."""
    for folder in (out, images_folder(out), out / "readings"):
        if checked_path(folder, "--out").exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file where a folder has to be; move it, or name another place with --out.")
    _subject_of(target, options, overrides).check(options, out)


def check_measures(options: BenchmarkOptions) -> None:
    """Raises UserError for what `run_benchmark` would refuse of the prompts, references and encoders of any target."""
    prompts = read_prompt_files(options.prompts)[: options.first]
    references_of(prompts, options.references)
    check_encoders([options.protocol], options.weights, options.vision_encoders)


def _subject_of(target: Path, options: BenchmarkOptions, overrides: Sequence[str]) -> _Subject:
    if overrides and not is_entry(target):
        raise UserError(
            f"{overrides[0]} changes an entry of configs/eval, and {target} is none; use the options (--help)."
        )
    checked_path(target, "target")
    entry = load_entry(target, overrides) if is_entry(target) else None
    if entry is None and not target.is_dir():
        raise UserError(f"There is nothing at {target}; name a run, a pipeline, a folder of images or an entry.")
    if entry is not None and (why := missing_model(entry)) is not None:
        raise UserError(f"{target}: there is {why}; put it there, or name another place (key=value).")
    _check_draw_options(target, entry, options.generation)
    prompts = read_prompt_files(options.prompts)[: options.first]
    build_ocr_engine(options.ocr.engine)
    check_table_writer()
    draws = is_pipeline(target) if entry is None else entry.kind != "images"
    use_layouts = options.use_layouts or (options.protocol == "anytext" and draws)
    # A folder's images are taken at their word: whoever made them knew the prompt file.
    protocols, left_out = choose_protocols(options.protocol, prompts, use_layouts or not draws)
    return _Subject(target, entry, draws, prompts, use_layouts, protocols, left_out)


def _check_draw_options(target: Path, entry: Entry | None, draw: GenerationOptions) -> None:
    """Raises UserError where options of drawing would change nothing."""
    given = next((name for name, value in asdict(draw).items() if value is not None), None)
    if given is None:
        return
    option = "--no-refit" if given == "refit" else f"--{given.replace('_', '-')}"
    if entry is not None:
        instead = "leave it out" if given == "refit" else f"write {given}={getattr(draw, given)}"
        raise UserError(f"{option} is not for {target}, which has settings of its own; {instead}.")
    if not is_pipeline(target):
        raise UserError(f"{target} holds images that are made already, which {option} cannot change; leave it out.")


@dataclass(frozen=True)
class _Subject:
    """A target and the entry that it is, if it is one, with what is asked of it and why the rest is not."""

    target: Path
    entry: Entry | None
    draws: bool
    prompts: list[BenchmarkPrompt]
    use_layouts: bool
    protocols: list[Protocol]
    left_out: dict[str, str]

    @property
    def title(self) -> str:
        """What the report calls it."""
        return self.target.name if self.entry is None else self.entry.title or self.target.stem

    @property
    def named(self) -> str:
        """Where it lies; of an entry, where its models or images lie as well."""
        return str(self.target) if self.entry is None else f"{self.target}, path {self.entry.drawn_from}"

    def read_options(self, options: OCROptions) -> OCROptions:
        """The same, with the entry's watermark painted over."""
        masked = None if self.entry is None else masked_box(self.entry)
        return OCROptions(options.engine, options.enlarge_factor, options.workers, masked)

    def images(self, options: BenchmarkOptions, out: Path) -> tuple[int, Iterator[BenchmarkImage], dict[str, Any]]:
        """How many images there will be, the images, and how they were made."""
        if not self.draws:
            images = self._found(options)
            said = "found in the folder; with which seeds and settings is not known here"
            return len(images), iter(images), {"made": said}
        generator, count = self._generator(options), options.images_per_prompt or 1
        drawn = generate_images(generator, self.prompts, count, options.seed, self.use_layouts, out)
        layouts = "given" if self.use_layouts else "its own"
        made = {"made": {**generator.settings(), "seed": options.seed, "layouts": layouts}}
        return len(self.prompts) * count, drawn, made

    def check(self, options: BenchmarkOptions, out: Path) -> None:
        """Raises UserError where `images` would, or the first of them."""
        if self.draws:
            check_generated(self._generator(options), self.prompts, options.seed, self.use_layouts, out)
        else:
            self._found(options)

    def _found(self, options: BenchmarkOptions) -> list[BenchmarkImage]:
        folder = self.target if self.entry is None else Path(self.entry.path)
        return find_images(folder, self.prompts, options.images_per_prompt)

    def _generator(self, options: BenchmarkOptions) -> Generator:
        generator = build_generator(self.target, options.generation) if self.entry is None else generator_of(self.entry)
        if self.use_layouts and not generator.takes_layouts:
            stands = f"{self.target} takes no layouts, so its text stands where it likes"
            if options.use_layouts:
                raise UserError(f"{stands}; leave out --use-layouts.")
            raise UserError(f"{stands}, and the protocol anytext reads lines in their polygons; take another protocol.")
        if self.use_layouts and not all(prompt.lines for prompt in self.prompts):
            raise UserError("--use-layouts draws text where the prompt file says, and the file has no polygons.")
        return generator


def rests_on(found: Evaluation, about: dict[str, Any]) -> list[tuple[str, str]]:
    """The protocol line, as names and values."""
    made = about["made"]
    settings = made if isinstance(made, str) else ", ".join(f"{name} {value}" for name, value in made.items())
    sizes = ", ".join(sorted(f"{width} x {height}" for width, height in found.sizes)) or "none"
    natives = "; ".join(f"{protocol.title}: {protocol.native_engine}" for protocol in found.protocols)
    return [
        ("target", about["target"]),
        ("prompts", f"{found.prompts} scored of {about['prompts_asked']} of {', '.join(about['prompt_files'])}"),
        ("images", f"{len(found.scored)} scored of {found.images}, {sizes} pixels"),
        ("OCR engine", f"{found.engine}, images enlarged {found.enlarge} (bicubic)"),
        ("the authors' engines", f"{natives}; figures read with another engine are not comparable with theirs"),
        ("drawn", settings),
        ("intervals", "95 %, percentile bootstrap, 2,000 draws of prompts with all their images"),
        ("quirks of strict", "; ".join(f"{protocol.title}: {protocol.quirks}" for protocol in found.protocols)),
    ]
