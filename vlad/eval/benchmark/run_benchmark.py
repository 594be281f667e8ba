"""Runs a benchmark on a target: its prompts are generated where images are missing, read, scored and reported.

TARGET is a run, a pipeline of ours or of diffusers, a folder of images, or an entry of configs/eval/.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vlad.eval.benchmark.benchmark_report import write_report
from vlad.eval.benchmark.evaluator import Evaluation, choose_protocols, evaluate
from vlad.eval.benchmark.image_generation import check_generation, generate_images, images_folder
from vlad.eval.benchmark.image_sets import BenchmarkImage, find_images
from vlad.eval.benchmark.per_image_table import check_parquet
from vlad.eval.benchmark.prompt_files import read_prompt_files
from vlad.eval.benchmark.targets import default_out, is_entry, is_pipeline
from vlad.eval.fidelity.fidelity_scores import check_encoders, score_fidelity
from vlad.eval.fidelity.reference_images import references_of
from vlad.eval.generators.entries import Entry, generator_of, load_entry, missing_model, watermark_box
from vlad.eval.generators.generator import Generator
from vlad.eval.generators.pipeline_generators import build_generator
from vlad.eval.options import BenchmarkOptions, GenerationOptions, OCROptions
from vlad.eval.protocols.protocol import BenchmarkPrompt, Protocol
from vlad.metrics.ocr import build_ocr_engine
from vlad.utils.atomic_files import write_json
from vlad.utils.errors import UserError
from vlad.utils.locks import directory_lock
from vlad.utils.paths import checked_path, writable_directory


def run_benchmark(
    target: Path, options: BenchmarkOptions, out: Path | None = None, overrides: Sequence[str] = ()
) -> tuple[Evaluation, Path]:
    """Scores a target; `overrides` change an entry's settings. Returns the evaluation and its folder.

    Raises UserError, before anything is generated, for what cannot be scored.
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
            ocr = subject.ocr_options(options.ocr)
            result = evaluate(images, protocols, ocr, out, subject.left_out, lambda done: bar.update(done - bar.n))
        result.fidelity, absent = score_fidelity(
            result.scored, names, options.weights, options.vision_encoders, references
        )
        result.left_out |= absent
        files = [str(path) for path in options.prompts]
        about = {"target": str(target), "prompt_files": files, "prompts_asked": len(prompts), **made}
        lines = rests_on(result, {**about, "target": subject.location})
        write_json(out / "metrics.json", {**about, **result.to_json(), "rests_on": dict(lines)})
        title = f"{subject.title} on {', '.join(path.name for path in options.prompts)}"
        write_report(out / "report.html", result, title, lines)
    return result, out


def check_target(target: Path, options: BenchmarkOptions, out: Path, overrides: Sequence[str] = ()) -> None:
    """Raises UserError where `run_benchmark` would; loads models for it, but generates and writes nothing."""
    for folder in (out, images_folder(out), out / "readings"):
        if checked_path(folder, "--out").exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file where a folder has to be; move it, or name another place with --out.")
    _subject_of(target, options, overrides).check(options, out)


def check_measures(options: BenchmarkOptions) -> None:
    """Raises UserError where `run_benchmark` would for the prompts, references and encoders, whatever the target."""
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
    if entry is not None and (lack := missing_model(entry)) is not None:
        raise UserError(f"{target}: there is {lack}; put it there, or name another place (key=value).")
    _check_generation_options(target, entry, options.generation)
    prompts = read_prompt_files(options.prompts)[: options.first]
    build_ocr_engine(options.ocr.engine)
    check_parquet()
    generates = is_pipeline(target) if entry is None else entry.kind != "images"
    use_layouts = options.use_layouts or (options.protocol == "anytext" and generates)
    # A folder's images are trusted to follow the prompt file's polygons.
    protocols, left_out = choose_protocols(options.protocol, prompts, use_layouts or not generates)
    return _Subject(target, entry, generates, prompts, use_layouts, protocols, left_out)


def _check_generation_options(target: Path, entry: Entry | None, generation: GenerationOptions) -> None:
    """Raises UserError where options of generation would change nothing."""
    given = next((name for name, value in asdict(generation).items() if value is not None), None)
    if given is None:
        return
    option = "--no-refit" if given == "refit" else f"--{given.replace('_', '-')}"
    if entry is not None:
        instead = "leave it out" if given == "refit" else f"write {given}={getattr(generation, given)}"
        raise UserError(f"{option} is not for {target}, which has settings of its own; {instead}.")
    if not is_pipeline(target):
        raise UserError(f"{target} holds images that are made already, which {option} cannot change; leave it out.")


@dataclass(frozen=True)
class _Subject:
    """A target, the entry that it is (None: none), its prompts and protocols, and why others are left out."""

    target: Path
    entry: Entry | None
    generates: bool
    prompts: list[BenchmarkPrompt]
    use_layouts: bool
    protocols: list[Protocol]
    left_out: dict[str, str]

    @property
    def title(self) -> str:
        """Its name in the report."""
        return self.target.name if self.entry is None else self.entry.title or self.target.stem

    @property
    def location(self) -> str:
        """Where it lies; of an entry, where its models or images lie as well."""
        return str(self.target) if self.entry is None else f"{self.target}, path {self.entry.source}"

    def ocr_options(self, options: OCROptions) -> OCROptions:
        """The same, with the entry's watermark painted over."""
        return replace(options, masked=None if self.entry is None else watermark_box(self.entry))

    def images(self, options: BenchmarkOptions, out: Path) -> tuple[int, Iterator[BenchmarkImage], dict[str, Any]]:
        """How many images there will be, the images, and how they were made."""
        if not self.generates:
            images = self._find(options)
            return len(images), iter(images), {"made": "found in the folder; seeds and settings are not known here"}
        generator, count = self._generator(options), options.images_per_prompt or 1
        generated = generate_images(generator, self.prompts, count, options.seed, self.use_layouts, out)
        layouts = "given" if self.use_layouts else "its own"
        made = {"made": {**generator.settings(), "seed": options.seed, "layouts": layouts}}
        return len(self.prompts) * count, generated, made

    def check(self, options: BenchmarkOptions, out: Path) -> None:
        """Raises UserError where `images` would, or the first of them."""
        if self.generates:
            check_generation(self._generator(options), self.prompts, options.seed, self.use_layouts, out)
        else:
            self._find(options)

    def _find(self, options: BenchmarkOptions) -> list[BenchmarkImage]:
        folder = self.target if self.entry is None else Path(self.entry.path)
        return find_images(folder, self.prompts, options.images_per_prompt)

    def _generator(self, options: BenchmarkOptions) -> Generator:
        entry = self.entry
        generator = build_generator(self.target, options.generation) if entry is None else generator_of(entry)
        if self.use_layouts and not generator.takes_layouts:
            reason = f"{self.target} takes no layouts, so its text follows no polygons"
            if options.use_layouts:
                raise UserError(f"{reason}; leave out --use-layouts.")
            raise UserError(f"{reason}, and the protocol anytext reads lines in their polygons; take another protocol.")
        if self.use_layouts and not all(prompt.lines for prompt in self.prompts):
            raise UserError("--use-layouts takes the prompt file's polygons, and the file has none for some prompts.")
        return generator


def rests_on(result: Evaluation, about: dict[str, Any]) -> list[tuple[str, str]]:
    """What the figures rest on, as names and values."""
    made = about["made"]
    settings = made if isinstance(made, str) else ", ".join(f"{name} {value}" for name, value in made.items())
    sizes = ", ".join(sorted(f"{width} x {height}" for width, height in result.sizes)) or "none"
    natives = "; ".join(f"{protocol.title}: {protocol.native_engine}" for protocol in result.protocols)
    return [
        ("target", about["target"]),
        ("prompts", f"{result.prompts} scored of {about['prompts_asked']} of {', '.join(about['prompt_files'])}"),
        ("images", f"{len(result.scored)} scored of {result.images}, {sizes} pixels"),
        ("OCR engine", f"{result.engine}, images enlarged {result.enlarge} (bicubic)"),
        ("the authors' engines", f"{natives}; figures read with another engine are not comparable with theirs"),
        ("generated with", settings),
        ("intervals", "95 %, percentile bootstrap, 2,000 resamples of prompts with all their images"),
        ("quirks of strict", "; ".join(f"{protocol.title}: {protocol.quirks}" for protocol in result.protocols)),
    ]
