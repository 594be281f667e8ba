"""A run from config to pipeline: builds the parts, trains the stages in order, publishes what each has trained.

runs/NAME/
  config.yaml            the resolved config
  STAGE/checkpoints/     step-*.ckpt of a stage under way (removed when it is done)
  STAGE/logs/            TensorBoard and CSV
  STAGE/trained.safetensors, STAGE/metrics.json
                         what the stage has trained (averaged), and its last losses, images/s, seconds
  samples/STAGE/         sample grids during training
  pipeline/              all parts in diffusers' format
  adapter/               LoRA runs: peft adapters instead of a pipeline
  report.html            the run on one page; starts.jsonl: what it was started with
  quarantine.jsonl       samples that could not be used
  .lock                  held by the process that trains here
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vlad import distributed
from vlad.building import ALIGNMENT, build_pipeline, new_parts, parts_of_base
from vlad.caching import cached_sets, check_cache
from vlad.config import Config, save_config
from vlad.data.stream import ShardSets, collate, first_samples, open_sets
from vlad.diffusion.attention import set_attention
from vlad.diffusion.autoencoder import PatchAutoencoder
from vlad.diffusion.noise import build_scheduler
from vlad.errors import UserError, claimed, writable_directory
from vlad.evaluation.report import GridRow, draw_layout, picture_of_map, sample_grid
from vlad.evaluation.run_page import record_start, write_run_page
from vlad.resuming import check_run_directory, finished_stage, starting_checkpoint
from vlad.stage_trainer import build_trainer
from vlad.text.lora import merged, save_adapter
from vlad.text.prompt import parse_prompt
from vlad.training.callbacks import StopOnSignal, write_metrics
from vlad.training.checkpoint import prune_checkpoints, remove_partial
from vlad.training.datamodule import ShardDataModule
from vlad.training.environment import describe_start
from vlad.training.loggers import check_wandb
from vlad.training.optim import OptimOptions
from vlad.training.stages import TRAINED, AutoencoderStage, LayoutStage, Parts, RefineStage, Stage, set_modes

GRID_SAMPLES = 8
FIT_PICTURES = 3000  # the projection of a PatchAutoencoder is fitted to this many pictures


@dataclass(frozen=True)
class RunResult:
    """How a run ended: whole, or stopped by a signal with its checkpoint saved."""

    directory: Path
    finished: bool


def run(config: Config) -> RunResult:
    """Trains every stage that is not done yet. Raises UserError before any long work for what cannot work."""
    _quieten()
    sets = open_sets(config.data.sets, config.data.fetch)
    check_cache(config, sets)
    if config.trainer.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("trainer.accelerator: there is no GPU that torch can use here; set it to auto or cpu.")
    check_run_directory(config)
    check_wandb(config.trainer.wandb)
    directory = writable_directory(config.directory, "the run", needed_bytes=200_000_000)
    # The other ranks of a launch work on the same run.
    with claimed(directory, "a run") if distributed.is_main_process() else contextlib.nullcontext():
        return _run(config, sets, directory)


def _run(config: Config, sets: ShardSets, directory: Path) -> RunResult:
    described = config
    L.seed_everything(config.seed, verbose=False)
    torch.use_deterministic_algorithms(True, warn_only=True)
    if config.base is not None:
        parts, config = parts_of_base(config)
    elif config.lora is not None and config.lvlm.trained != "lora":
        raise UserError("lora: adapters need a base; add base=runs/NAME, a finished run, or set lvlm.trained: lora.")
    else:
        parts = new_parts(config)
    # Only now: a call that could not work must not claim the directory for its config.
    if distributed.is_main_process() and not (directory / "config.yaml").is_file():
        save_config(described, directory / "config.yaml")
    stages = _stage_names(config, parts)
    unets = [unet for unet in (parts.layout_unet, parts.refine_unet) if unet is not None]
    device = torch.device("cuda" if torch.cuda.is_available() and config.trainer.accelerator != "cpu" else "cpu")
    dtype = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}.get(config.trainer.precision, torch.float32)
    line = set_attention(unets, config.trainer.attention, device, dtype)
    if distributed.is_main_process():
        print(f"{config.name}: {sets.samples} samples in {sets.shards} shards; {line}", file=sys.stderr)
        record_start(directory, {**describe_start(), "attention": line.removeprefix("attention: ")})

    with StopOnSignal() as stop:
        for stage in stages:
            if not _train_stage(config, parts, sets, stage, stages, stop):
                return RunResult(directory, finished=False)
    if distributed.is_main_process():
        _publish_run(config, parts)
        write_run_page(directory)
    return RunResult(directory, finished=True)


def makes_adapter(config: Config) -> bool:
    """Whether the run's result is an adapter on its base rather than a pipeline of its own."""
    return config.base is not None and config.lora is not None


def is_finished(config: Config) -> bool:
    """Whether the run directory holds everything that `run` would make.

    Raises UserError when it holds a run of another config.
    """
    check_run_directory(config)
    result = "adapter" if makes_adapter(config) else "pipeline/model_index.json"
    return (config.directory / "refine" / "metrics.json").is_file() and (config.directory / result).exists()


# --- one stage -----------------------------------------------------------------------------------------------


def _stage_names(config: Config, parts: Parts) -> list[str]:
    """The stages of this run in order."""
    names = ["refine"] if parts.layout_unet is None else ["layout", "refine"]
    if config.base is None and isinstance(parts.autoencoder, PatchAutoencoder):
        names.insert(0, "autoencoder")
    return names


def _train_stage(
    config: Config, parts: Parts, sets: ShardSets, name: str, order: list[str], stop: StopOnSignal
) -> bool:
    """Trains a stage to its end, or until a signal; returns whether it is done."""
    label = f"[{order.index(name) + 1}/{len(order)} {name}]"
    directory = config.directory / name
    checkpoints = directory / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    optim: OptimOptions = getattr(config.train, name)
    stage = _build_stage(config, parts, name, sets)
    finished = finished_stage(config, name, order)
    if finished is not None:
        _load_stage(stage, finished)
        if finished != directory and distributed.is_main_process():
            _publish_stage(stage, directory)
            shutil.copyfile(finished / "metrics.json", directory / "metrics.json")
        return True
    data = ShardDataModule(
        sets if config.data.cache is None else cached_sets(config, parts, sets),
        config.data.stream(distributed.derived_seed(config.seed, name)),
        optim.steps * optim.accumulate_batches,
        config.directory / "quarantine.jsonl",
    )
    if distributed.is_main_process():
        remove_partial(checkpoints)
    newest = starting_checkpoint(config, name, label, distributed.is_main_process())

    draw = None if name == "autoencoder" else _grid_drawer(config, parts, sets, name)
    built = build_trainer(config, name, label, stop, draw, newest)
    trainer = built.trainer
    set_modes(stage)
    trainer.fit(stage, datamodule=data, ckpt_path=newest, weights_only=True)
    if stop.stopped and trainer.global_step < optim.steps:
        if (error := built.saving.error()) is not None:
            raise error
        return False
    built.average.copy_to(stage)
    stage.eval()
    if trainer.is_global_zero:
        _publish_stage(stage, directory)
        built.average.publish(directory)
        write_metrics(directory / "metrics.json", built.metrics())
        prune_checkpoints(checkpoints, 0, config.trainer.keep_every_steps)
        if not any(checkpoints.iterdir()):
            checkpoints.rmdir()
    trainer.strategy.barrier()
    return True


def _build_stage(config: Config, parts: Parts, name: str, sets: ShardSets) -> Stage:
    """The stage's module, with exactly what it trains wanting gradients."""
    optim: OptimOptions = getattr(config.train, name)
    if name == "autoencoder":
        assert isinstance(parts.autoencoder, PatchAutoencoder)
        batch = collate(first_samples(sets, config.data.stream(config.seed), FIT_PICTURES))
        parts.autoencoder.fit(torch.cat([batch.pictures, batch.glyph_maps]))
        return AutoencoderStage(parts.autoencoder, config.losses, optim)
    parts.autoencoder.requires_grad_(False)
    trains_text = name == "layout" or config.refine.train_text or parts.layout_unet is None
    if not trains_text:
        parts.text_side.requires_grad_(False)
        parts.alignment.requires_grad_(False)
    elif not makes_adapter(config):
        _set_text_trainable(parts, config)
    if name == "layout":
        scheduler = build_scheduler(config.layout.noise)
        return LayoutStage(parts, scheduler, config.layout.noise, config.losses, optim)
    scheduler = build_scheduler(config.refine.noise)
    return RefineStage(
        parts, scheduler, config.refine.noise, config.losses, optim, with_layout=config.layout.kind != "none"
    )


def _set_text_trainable(parts: Parts, config: Config) -> None:
    """Of the text side: the CCM, L_align's head, and as `lvlm.trained` says what t (and with L_align v) depends on."""
    aligned = config.losses.align_weight > 0
    parts.alignment.requires_grad_(aligned)
    parts.text_side.composition.requires_grad_(True)
    lvlm = parts.text_side.lvlm
    read = lvlm.parameters_read(with_pictures=aligned)
    for name, parameter in lvlm.named_parameters():
        wanted = "lora_" in name if config.lvlm.trained == "lora" else config.lvlm.trained == "full"
        parameter.requires_grad_(wanted and name in read and not name.startswith("vision."))


def _publish_stage(stage: Stage, directory: Path) -> None:
    """Saves what the stage has trained; the autoencoder's also what was fitted."""
    state = stage.state_dict()
    names = list(state) if isinstance(stage, AutoencoderStage) else stage.trained_names()
    temporary = directory / f"{TRAINED}.partial"
    save_file({name: state[name].contiguous() for name in names}, temporary)
    temporary.replace(directory / TRAINED)


def _load_stage(stage: Stage, directory: Path) -> None:
    """Puts what a finished stage has published into its modules. Raises UserError where the shapes differ."""
    try:
        stored = load_file(directory / TRAINED)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{directory / TRAINED} is damaged ({error}); remove {directory}, and the stage is trained again."
        ) from error
    state = stage.state_dict()
    names = list(state) if isinstance(stage, AutoencoderStage) else stage.trained_names()
    wrong = sorted(
        name
        for name in stored.keys() | set(names)
        if name not in stored or name not in state or stored[name].shape != state[name].shape
    )
    if wrong:
        raise UserError(
            f"{directory / TRAINED} does not fit this config: {len(wrong)} tensors differ, the first is {wrong[0]};"
            " give this run another name."
        )
    stage.load_state_dict(stored, strict=False)
    stage.eval()


def _publish_run(config: Config, parts: Parts) -> None:
    """The result of a run: a pipeline in diffusers' format (an adapted LVLM merged), or adapters in peft's."""
    if not makes_adapter(config):
        folder = config.directory / "pipeline"
        folder.mkdir(parents=True, exist_ok=True)
        save_file(parts.alignment.state_dict(), folder / ALIGNMENT)
        pipeline = build_pipeline(config, parts)
        pipeline.register_modules(lvlm=merged(pipeline.lvlm))
        pipeline.save_pretrained(folder)  # model_index.json comes last: its presence says the run is finished
        return
    folder = config.directory / "adapter.partial"
    shutil.rmtree(folder, ignore_errors=True)
    save_adapter(parts.text_side.lvlm.model, folder / "lvlm")
    save_adapter(parts.refine_unet, folder / "refine_unet")
    if parts.layout_unet is not None:
        save_adapter(parts.layout_unet, folder / "layout_unet")
    folder.rename(config.directory / "adapter")  # its presence says the run is finished


def _grid_drawer(config: Config, parts: Parts, sets: ShardSets, name: str) -> Callable[[Path], None]:
    """Draws the first samples of the shards as the stage sees them now: prompt, plan, refit and picture."""
    samples = first_samples(sets, config.data.stream(config.seed), GRID_SAMPLES)
    captions = [sample.caption for sample in samples]
    prompts = [parse_prompt(caption, strict=False) for caption in captions]

    def draw(path: Path) -> None:
        pipeline = build_pipeline(config, parts)
        seeds = list(range(len(prompts)))
        pixels = config.data.picture_pixels
        if name == "layout":
            plans = pipeline.plan(prompts, seeds)
            heads = ("glyph map", "refitted", "true")
            columns = [
                (picture_of_map(plan.glyph_map), draw_layout(plan.layout, pixels), draw_layout(sample.layout, pixels))
                for plan, sample in zip(plans, samples, strict=True)
                if plan.glyph_map is not None
            ]
        else:
            pictures = pipeline.refine(prompts, seeds, [sample.layout for sample in samples])
            heads = ("true layout", "picture", "true picture")
            columns = [
                (draw_layout(sample.layout, pixels), picture, Image.fromarray(sample.picture))
                for picture, sample in zip(pictures, samples, strict=True)
            ]
        rows = [GridRow(caption, pictures) for caption, pictures in zip(captions, columns, strict=True)]
        path.parent.mkdir(parents=True, exist_ok=True)
        sample_grid(rows, heads, cell_pixels=max(128, pixels)).save(path)

    return draw


def _quieten() -> None:
    """Silences what libraries say at start that nobody can act on; our own line says what matters."""
    warnings.filterwarnings("ignore", module=r"(lightning|torch|diffusers|transformers|peft).*")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
