"""Export of a run as one folder to share: safetensors, half-precision variants, a model card with examples.

OUT/model_index.json and a folder a part     loaded by `VLADPipeline.from_pretrained(OUT)`; in half precision if asked
OUT/PART/*.fp16.safetensors, *.bf16....      the same in half precision, for `variant="fp16"`
OUT/README.md, OUT/examples/*.png            the model card
OUT/export.json                              the names of all these files: another export replaces them, and no others
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlad.config.load import load_config
from vlad.config.schema import Config
from vlad.config.training import STAGES
from vlad.inference.load_pipeline import MODULES, check_dtype, load_pipeline, model_fingerprint
from vlad.pipeline.folders import ALIGNMENT_FILE
from vlad.pipeline.image_request import ImageRequest
from vlad.pipeline.vlad_pipeline import VLADPipeline
from vlad.reports.starts import read_starts
from vlad.utils.atomic_files import write_json
from vlad.utils.errors import UserError, did_you_mean, reason_of
from vlad.utils.hub import hide_progress_bars
from vlad.utils.json_objects import read_object
from vlad.utils.paths import writable_directory

FILES = "export.json"
FONTS = "vlad/layout/typeface_files"
VARIANTS = {"fp16": "float16", "bf16": "bfloat16"}
EXAMPLES = (
    'a blue sign that says "HOUSE" in white letters at the top',
    'a red card that says "OPEN"',
    'a yellow poster that says "MARKET" in the middle',
    'a black wall that says "NORTH" and "SOUTH" in yellow letters',
)


def export_run(
    run: Path,
    out: Path,
    variants: Sequence[str] = (),
    licence: str | None = None,
    examples: Sequence[str] = EXAMPLES,
    precision: str = "float32",
) -> Path:
    """Writes a finished run, or a pipeline folder, to `out`; returns the model card's path.

    `precision`: of the weights that load by default. A loading call may name another.
    An earlier export there is replaced when this one is complete; files of others beside it stay. Raises UserError for
    a run that is not finished, an unknown variant, and an `out` that holds something else.
    """
    check_dtype(precision)
    for variant in variants:
        if variant not in VARIANTS:
            raise UserError(
                f"There is no variant {variant!r}.{did_you_mean(variant, VARIANTS)} Known: {', '.join(VARIANTS)}."
            )
    if out.resolve() in (run.resolve(), (run / "pipeline").resolve()):
        raise UserError(f"{out} is the folder to export; name an empty or a new directory with --out.")
    if out.is_dir() and any(out.iterdir()) and not _exported_files(out):
        raise UserError(f"{out} holds files that no export has made; name an empty or a new directory with --out.")
    pipeline = load_pipeline(run)
    weights = sum(
        p.nbytes
        for name in MODULES
        if getattr(pipeline, name) is not None
        for p in getattr(pipeline, name).parameters()
    )
    writable_directory(out, "the export", needed_bytes=weights * (2 + len(variants)) // 2)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=out) as staged:
        card = _write(pipeline, run, Path(staged), variants, licence, examples, precision)
        _replace_export(Path(staged), out)
    return out / card


def _write(
    pipeline: VLADPipeline,
    run: Path,
    out: Path,
    variants: Sequence[str],
    licence: str | None,
    examples: Sequence[str],
    precision: str,
) -> str:
    """Writes all files of an export to an empty folder; returns the model card's name."""
    images = _generate_examples(pipeline, examples, out / "examples")
    with hide_progress_bars():
        for variant in variants:
            load_pipeline(run, dtype=VARIANTS[variant]).save_pretrained(out, variant=variant)
        own = pipeline if precision == "float32" else load_pipeline(run, dtype=precision)
        own.save_pretrained(out)
    _load_as_float32(out / "lvlm" / "config.json")
    heads = next(
        (folder / ALIGNMENT_FILE for folder in (run / "pipeline", run) if (folder / ALIGNMENT_FILE).is_file()), None
    )
    if heads is not None:  # fine-tuning starts from them
        shutil.copyfile(heads, out / ALIGNMENT_FILE)
    config = load_config(run / "config.yaml") if (run / "config.yaml").is_file() else None
    (out / "README.md").write_text(_card(pipeline, config, run, images, variants, licence), encoding="utf-8")
    return "README.md"


def _load_as_float32(config_file: Path) -> None:
    """An LVLM loads in the precision that its config names, the other parts in float32: so must it."""

    def as_float32(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: "float32" if name == "dtype" else as_float32(inner) for name, inner in value.items()}

    write_json(config_file, as_float32(read_object(config_file)))


def _exported_files(out: Path) -> list[str]:
    """The names of the files of an earlier export to `out`, relative to it; empty where there is none."""
    names = _read_json(out / FILES).get("files")
    if not isinstance(names, list):
        return []
    return [str(name) for name in names if out.resolve() in (out / str(name)).resolve().parents]


def _replace_export(staged: Path, out: Path) -> None:
    """Moves a complete export into `out`, and removes what an earlier one has left there."""
    files = sorted(path.relative_to(staged).as_posix() for path in staged.rglob("*") if path.is_file())
    before = _exported_files(out)
    # First: after a kill in between, another export knows what to replace.
    write_json(out / FILES, {"files": sorted({*before, *files})})
    for name in before:
        (out / name).unlink(missing_ok=True)
    for name in files:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (staged / name).replace(out / name)
    write_json(out / FILES, {"files": files})
    for folder in {(out / name).parent for name in before} - {out}:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def push(folder: Path, repository: str) -> str:
    """Uploads an export to a repository of the hub, created as a private one if missing; returns its address.

    Raises UserError where there is no token, or the hub refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        files = _exported_files(folder) or None  # what others have put beside it stays here
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Export of vlad", allow_patterns=files)
    except Exception as error:  # no network, no token, a wrong name, a refusal: they share no class
        raise UserError(
            f"The upload of {folder} to {repository} failed ({reason_of(error)}); log in with `hf auth login`, name it"
            " OWNER/NAME, and try again: the folder is complete."
        ) from error
    return f"https://huggingface.co/{repository}"


def _generate_examples(pipeline: VLADPipeline, prompts: Sequence[str], folder: Path) -> list[tuple[str, Path]]:
    """The prompts that this model takes, with their images; seeds 0, 1, 2 ..."""
    requests: list[ImageRequest] = []
    for prompt in prompts:
        with contextlib.suppress(UserError):
            requests.append(pipeline.image_request(prompt, len(requests)))
    if not requests:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    examples = []
    for request, image in zip(requests, pipeline.generate(requests, pipeline.settings()).images, strict=True):
        path = folder / f"{request.seed}.png"
        image.save(path)
        examples.append((request.prompt.text, path))
    return examples


def _card(
    pipeline: VLADPipeline,
    config: Config | None,
    run: Path,
    images: Sequence[tuple[str, Path]],
    variants: Sequence[str],
    licence: str | None,
) -> str:
    """The model card: metadata for the hub, then text for people."""
    bases = _bases(config)
    head = ["---", "library_name: diffusers", "pipeline_tag: text-to-image", "tags: [vlad, text-rendering, layout]"]
    head.append(f"license: {licence or 'unknown'}")
    if bases:
        head += ["base_model:", *(f"- {name}" for _, name, _ in bases)]
    parts = [
        "\n".join([*head, "---", "", f"# {config.name if config else run.resolve().name}"]),
        "A text-to-image model that spells: it plans a layout for the quoted strings of a prompt, then generates the"
        " image.",
        _usage(variants),
        "## Models\n\n" + _models(pipeline, bases),
        "## Data\n\n" + _data(config),
        "## Training\n\n" + _training(run),
        "## Evaluation\n\n" + _metrics(run),
        "## Licence\n\n" + _licence(licence, bases),
    ]
    if images:
        rows = "\n".join(f"| {prompt} | ![]({path.parent.name}/{path.name}) |" for prompt, path in images)
        parts.append(f"## Examples\n\nSeeds 0, 1, 2 ...; the images were not selected.\n\n| | |\n|---|---|\n{rows}")
    return "\n\n".join(parts) + "\n"


def _usage(variants: Sequence[str]) -> str:
    chosen = f', variant="{variants[0]}", dtype=torch.{VARIANTS[variants[0]]}' if variants else ""
    lines = [
        "```python",
        *(["import torch"] if variants else []),
        "from vlad import VLADPipeline",
        "",
        f'pipeline = VLADPipeline.from_pretrained("FOLDER"{chosen})',
        'pipeline(\'a blue sign that says "HOUSE"\', seeds=0).images[0].save("house.png")',
        "```",
    ]
    return "\n".join(lines)


def _bases(config: Config | None) -> list[tuple[str, str, str | None]]:
    """The pretrained models that the run started from: part, id and revision."""
    if config is None:
        return []
    named = [
        ("LVLM", config.lvlm.path, config.lvlm.revision),
        ("vision encoder", config.lvlm.vision_path, config.lvlm.vision_revision),
        ("autoencoder", config.autoencoder.path, config.autoencoder.revision),
        ("all parts", config.base, None),
    ]
    if config.stable_diffusion is not None:
        named.append(("UNets, autoencoder", config.stable_diffusion.path, config.stable_diffusion.revision))
    return [(part, path, revision) for part, path, revision in named if path is not None]


def _models(pipeline: VLADPipeline, bases: Sequence[tuple[str, str, str | None]]) -> str:
    rows = ["| Part | Class | Parameters |", "|---|---|---|"]
    for name in MODULES:
        module = getattr(pipeline, name)
        if module is not None:
            rows.append(f"| {name} | {type(module).__name__} | {sum(p.numel() for p in module.parameters()):,} |")
    process = pipeline.config.process
    named = [f"{part}: {path}" + (f" at {revision}" if revision else "") for part, path, revision in bases]
    rows += [
        "",
        f"Started from {'; '.join(named)}." if named else "Trained from scratch, without pretrained models.",
        f"Images of {pipeline.config.image_pixels} pixels; "
        + ", ".join(f"the {stage} UNet predicts {noise['prediction']}" for stage, noise in process.items())
        + f". Fingerprint `{model_fingerprint(pipeline)}`.",
    ]
    return "\n".join(rows)


def _data(config: Config | None) -> str:
    if config is None:
        return "Not recorded: the pipeline folder has no run beside it."
    lines = []
    for shards, weight in config.data.sets.items():
        manifest = _read_json(Path(shards) / "manifest.json")
        about = manifest.get("about")
        fonts = isinstance(about, dict) and isinstance(about.get("options"), dict) and "max_lines" in about["options"]
        samples = f", {manifest['samples']:,} samples" if isinstance(manifest.get("samples"), int) else ""
        samples += f", rendered in the fonts of `{FONTS}`, where their licences are" if fonts else ""
        lines.append(f"- `{shards}`{samples}" + (f", weight {weight:g}" if len(config.data.sets) > 1 else ""))
    return "\n".join(lines)


def _training(run: Path) -> str:
    """How to train it again: commit, time, machine and command of the last start."""
    starts = read_starts(run)
    if not starts:
        return "Not recorded: the pipeline folder has no run beside it."
    last = {"revision": "unknown", "command": "unknown", "device": "unknown", "versions": "unknown", **starts[-1]}
    seconds = sum(_read_json(run / stage / "metrics.json").get("seconds", 0) for stage in STAGES)
    return (
        f"{seconds / 60:.0f} minutes on: {last['device']}; {last['versions']}; commit `{last['revision']}`:\n\n"
        f"    {last['command']}"
    )


def _metrics(run: Path) -> str:
    metrics = _read_json(run / "evaluation" / "metrics.json")
    modes = metrics.get("modes")
    if not isinstance(modes, dict) or not modes:
        return "Not evaluated; run `vlad evaluate RUN`."
    about = f"{metrics['engine']}; {metrics['protocol']}."
    if "posters" in metrics:
        rows = ["| Generated with | Lines read | Whole posters | Letter accuracy |", "|---|---|---|---|"]
        rows += [
            f"| {mode} | {score['lines']['share']:.1%} | {score['posters']['share']:.1%} |"
            f" {score['letter_accuracy']:.1%} |"
            for mode, score in modes.items()
        ]
        return "\n".join([*rows, "", f"{metrics['posters']} held-out posters, {about}"])
    rows = ["| Generated with | Word accuracy | Letter accuracy |", "|---|---|---|"]
    rows += [
        f"| {mode} | {score['word_accuracy']:.1%} | {score['letter_accuracy']:.1%} |" for mode, score in modes.items()
    ]
    return "\n".join([*rows, "", f"{metrics['words']} held-out words, {about}"])


def _licence(licence: str | None, bases: Sequence[tuple[str, str, str | None]]) -> str:
    own = f"The weights trained here: {licence}." if licence else "No licence has been given for these weights yet."
    return own + (" The pretrained models above keep their own." if bases else "")


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is none."""
    try:
        return read_object(path)
    except (OSError, ValueError):
        return {}
