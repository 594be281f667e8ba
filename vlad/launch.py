"""A run from config to pipeline: builds the parts, trains the stages in order, publishes what each has trained.

runs/NAME/
  config.yaml            the resolved config
  STAGE/checkpoints/     step-*.ckpt of a stage under way (removed when it is done)
  STAGE/logs/            TensorBoard and CSV
  STAGE/trained.safetensors, STAGE/metrics.json
                         what the stage has trained (averaged), and its last losses, images/s, seconds
  samples/STAGE/         sample grids during training
  pipeline/              all parts in diffusers' format
  adapter/               peft adapters: the result of a LoRA run on a base, beside the result of others
  text/                  runs of L_align alone: LVLM, CCM and alignment heads, for text_base
  quarantine.jsonl       samples that could not be used
  .lock                  held by the process that trains here
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vlad import distributed
from vlad.building import (
    ALIGNMENT,
    TEXT,
    build_pipeline,
    check_text_side,
    new_parts,
    parts_of_base,
    publish_text_side,
    reads_pictures,
)
from vlad.caching import cached_sets, check_cache
from vlad.config import Config, load_config, save_config
from vlad.data.stream import ShardSets, collate, first_samples, open_sets
from vlad.diffusion.attention import set_attention
from vlad.diffusion.autoencoder import PatchAutoencoder
from vlad.diffusion.noise import build_scheduler
from vlad.errors import UserError, claimed, writable_directory
from vlad.text.lora import has_adapter, merged, save_adapter
from vlad.training.callbacks import Measured, Progress, SampleGrid, SeedEachBatch, StopOnSignal, write_metrics
from vlad.training.checkpoint import Checkpoints, newest_checkpoint
from vlad.training.datamodule import ShardDataModule
from vlad.training.ema import ExponentialAverage
from vlad.training.optim import OptimOptions
from vlad.training.phases import TextPhases
from vlad.training.precision import Precision, native_precision
from vlad.training.stages import (
    TRAINED,
    AlignStage,
    AutoencoderStage,
    LayoutStage,
    Parts,
    RefineStage,
    Stage,
    set_modes,
)
from vlad.monitors import grid_drawer, retrieval_measure

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
    check_text_side(config)
    if config.trainer.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("trainer.accelerator: there is no GPU that torch can use here; set it to auto or cpu.")
    _compare_with_stored(config)
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
    else:
        parts = new_parts(config)
    # Only now: a call that could not work must not claim the directory for its config.
    if distributed.is_main_process() and not (directory / "config.yaml").is_file():
        save_config(described, directory / "config.yaml")
    stages = _stage_names(config, parts)
    unets = [unet for unet in (parts.layout_unet, parts.refine_unet) if unet is not None]
    device = torch.device("cuda" if torch.cuda.is_available() and config.trainer.accelerator != "cpu" else "cpu")
    line = set_attention(unets, config.trainer.attention, device)
    for stage in stages:
        _precision(config, stage)
    if distributed.is_main_process():
        print(f"{config.name}: {sets.samples} samples in {sets.shards} shards; {line}", file=sys.stderr)

    for number, stage in enumerate(stages, start=1):
        label = f"[{number}/{len(stages)} {stage}]"
        if not _train_stage(config, parts, sets, stage, label):
            return RunResult(directory, finished=False)
    if distributed.is_main_process():
        _publish_run(config, parts)
    return RunResult(directory, finished=True)


def is_finished(config: Config) -> bool:
    """Whether the run directory holds everything that `run` would make.

    Raises UserError when it holds a run of another config.
    """
    _compare_with_stored(config)
    if config.align_stage == "only":
        return (config.directory / TEXT / ALIGNMENT).is_file()
    result = "adapter" if config.makes_adapter else "pipeline/model_index.json"
    return (config.directory / "refine" / "metrics.json").is_file() and (config.directory / result).exists()


def next_command(config: Config) -> str:
    """What a person does with the finished run."""
    if config.align_stage == "only":
        return f"python train.py CONFIG text_base={config.directory}"
    source = f"{config.base} --adapter {config.directory}" if config.makes_adapter else f"{config.directory}"
    return f"python sample.py {source} --prompt '...'"


# --- the run directory -----------------------------------------------------------------------------------------


def _compare_with_stored(config: Config) -> None:
    """Raises UserError when the run directory holds a run of another config."""
    stored = config.directory / "config.yaml"
    if not stored.is_file():
        return
    before, now = _shaping(load_config(stored)), _shaping(config)
    differing = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if differing:
        key = differing[0]
        raise UserError(
            f"{config.directory} holds a run of another config: {key} was {before.get(key)!r} and is now"
            f" {now.get(key)!r}; give this run another name (name=...), or remove the directory."
        )


def _shaping(config: Config) -> dict[str, object]:
    """The options that shape the result, by dotted name; where and how often a run saves may change."""
    flat: dict[str, object] = {}

    def visit(prefix: str, value: object) -> None:
        if hasattr(value, "__dataclass_fields__"):
            for name in value.__dataclass_fields__:
                visit(f"{prefix}.{name}" if prefix else name, getattr(value, name))
        else:
            flat[prefix] = value

    visit("", config)
    shaping = ("trainer.precision", "trainer.devices", "trainer.nodes")
    free = ("runs", "name", "trainer.", "sample.", "data.shards", "data.workers", "data.verify", "data.fetch.")
    return {key: value for key, value in flat.items() if key in shaping or not key.startswith(free)}


def _stage_names(config: Config, parts: Parts) -> list[str]:
    """The stages of this run in order."""
    if config.align_stage == "only":
        return ["align"]
    names = ["refine"] if parts.layout_unet is None else ["layout", "refine"]
    if config.base is None and isinstance(parts.autoencoder, PatchAutoencoder):
        names.insert(0, "autoencoder")
    return ["align", *names] if config.align_stage == "first" else names


def _trains_text(config: Config, parts: Parts, name: str) -> bool:
    """Whether a stage trains the text side."""
    trains = name in ("align", "layout") or (
        name == "refine" and (config.refine.train_text or parts.layout_unet is None)
    )
    return trains and not config.text_training.is_frozen


def _text_steps_before(config: Config, parts: Parts, name: str) -> int:
    """For how many steps the stages before this one train the text side."""
    names = _stage_names(config, parts)
    before = [other for other in names[: names.index(name)] if _trains_text(config, parts, other)]
    return sum(getattr(config.train, other).steps for other in before)


# --- one stage -----------------------------------------------------------------------------------------------


def _train_stage(config: Config, parts: Parts, sets: ShardSets, name: str, label: str) -> bool:
    """Trains a stage to its end, or until a signal; returns whether it is done."""
    directory = config.directory / name
    checkpoints = directory / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    optim: OptimOptions = getattr(config.train, name)
    stage, phases = _build_stage(config, parts, name, sets, label)
    if (directory / "metrics.json").is_file():
        _load_stage(stage, directory)
        return True
    data = ShardDataModule(
        sets if config.data.cache is None else cached_sets(config, parts, sets),
        config.data.stream(distributed.derived_seed(config.seed, name)),
        optim.steps * optim.accumulate_batches,
        config.directory / "quarantine.jsonl",
    )
    newest, broken = newest_checkpoint(checkpoints)
    precision, note = _precision(config, name)
    if distributed.is_main_process():
        if note is not None:
            print(f"{label} {note}", file=sys.stderr)
        for path in broken:
            print(f"{label} {path} does not read back whole and is left out", file=sys.stderr)
        if newest is not None:
            print(f"{label} goes on from {newest}", file=sys.stderr)

    average = ExponentialAverage(optim.ema_decay)
    processes = max(1, _devices(config)) * config.trainer.nodes
    images_per_step = config.data.batch_size * optim.accumulate_batches * processes
    progress = Progress(label, images_per_step, optim.steps)
    stop = StopOnSignal()
    seeds = SeedEachBatch(config.seed, name)
    callbacks: list[L.Callback] = [seeds, stop, average, progress]
    samples = config.directory / "samples" / name
    if name in ("layout", "refine"):
        draw = grid_drawer(config, parts, sets, name)
        callbacks.append(SampleGrid(samples, config.trainer.sample_every_steps, average, draw))
    if phases is not None:
        callbacks.append(phases)
    measure = None if phases is None else retrieval_measure(config, parts)
    if measure is not None:
        callbacks.append(Measured(samples / "shared-space", config.trainer.sample_every_steps, average, measure))
    callbacks.append(Checkpoints(checkpoints, config.trainer.checkpoint_every_steps, config.trainer.keep_checkpoints))
    trainer = L.Trainer(
        accelerator=config.trainer.accelerator,
        devices=_devices(config) or "auto",
        num_nodes=config.trainer.nodes,
        strategy=_strategy(config, name),
        precision=precision,
        max_steps=optim.steps,
        accumulate_grad_batches=optim.accumulate_batches,
        gradient_clip_val=optim.clip_grad_norm,
        callbacks=callbacks,
        logger=[
            # A start's own folder: the logger would delete the curves of the start before.
            CSVLogger(directory, name="logs", version=_log_version(newest), flush_logs_every_n_steps=50),
            TensorBoardLogger(directory, name="logs", version=""),
        ],
        log_every_n_steps=config.trainer.log_every_steps,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    set_modes(stage)
    trainer.fit(stage, datamodule=data, ckpt_path=newest, weights_only=True)
    if stop.stopped and trainer.global_step < optim.steps:
        return False
    average.copy_to(stage)
    stage.eval()
    if trainer.is_global_zero:
        _publish_stage(stage, directory)
        measured = {} if measure is None else measure(samples / "shared-space" / "final.png")
        write_metrics(directory / "metrics.json", {**progress.summary(trainer), **measured})
        shutil.rmtree(checkpoints)
    trainer.strategy.barrier()
    return True


def _precision(config: Config, name: str) -> tuple[Precision, str | None]:
    """A stage's precision here, with a note where another was asked for. Raises UserError for an impossible one."""
    optim: OptimOptions = getattr(config.train, name)
    on_gpu = torch.cuda.is_available() and config.trainer.accelerator != "cpu"
    return native_precision(optim.precision or config.trainer.precision, on_gpu)


def _log_version(checkpoint: Path | None) -> str:
    return f"from-{checkpoint.stem}" if checkpoint is not None else "from-step-00000000"


def _build_stage(
    config: Config, parts: Parts, name: str, sets: ShardSets, label: str
) -> tuple[Stage, TextPhases | None]:
    """The stage's module, with exactly what it trains wanting gradients, and the phases of its text side."""
    optim: OptimOptions = getattr(config.train, name)
    if name == "autoencoder":
        assert isinstance(parts.autoencoder, PatchAutoencoder)
        parts.autoencoder.requires_grad_(True)
        parts.autoencoder.projection.requires_grad_(False)  # fitted
        batch = collate(first_samples(sets, config.data.stream(config.seed), FIT_PICTURES))
        parts.autoencoder.fit(torch.cat([batch.pictures, batch.glyph_maps]))
        return AutoencoderStage(parts.autoencoder, config.losses, optim), None
    parts.autoencoder.requires_grad_(False)
    parts.text_side.requires_grad_(False)
    parts.alignment.requires_grad_(False)
    phases = None
    if _trains_text(config, parts, name):
        first_step = _text_steps_before(config, parts, name)
        phases = TextPhases(parts.text_side, config.text_training, reads_pictures(config), label, first_step)
        phases.prepare()
        parts.alignment.requires_grad_(reads_pictures(config) and not config.makes_adapter)
    stage: Stage
    if name == "align":
        stage = AlignStage(parts.text_side, parts.alignment, config.losses, optim)
    elif name == "layout":
        scheduler = build_scheduler(config.layout.noise)
        stage = LayoutStage(parts, scheduler, config.layout.noise, config.losses, optim)
    else:
        scheduler = build_scheduler(config.refine.noise)
        stage = RefineStage(
            parts, scheduler, config.refine.noise, config.losses, optim, with_layout=config.layout.kind != "none"
        )
    stage.settle({} if phases is None else phases.learning_rates("text_side."))
    return stage, phases


def _strategy(config: Config, name: str) -> str:
    """Lightning's name of the way in which processes share a stage."""
    if _devices(config) <= 1 and config.trainer.nodes <= 1:
        return "auto"
    # L_align reads the pooled vector alone, and a phase freezes what another one trains.
    unused = name == "align" or len(config.text_training.phases) > 1
    return "ddp_find_unused_parameters_true" if unused else "ddp"


def _devices(config: Config) -> int:
    """Processes on this machine; 0 means "whatever GPUs there are"."""
    if config.trainer.devices != "auto":
        return int(config.trainer.devices)
    return torch.cuda.device_count() if config.trainer.accelerator != "cpu" else 1


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
    """The result of a run: a pipeline in diffusers' format (adapters merged), adapters in peft's, or a text side."""
    text_side = parts.text_side
    if config.text_training.components("lora"):
        for part, module in (("lvlm", text_side.lvlm.model), ("composition", text_side.composition)):
            if has_adapter(module):
                save_adapter(module, config.directory / "adapter" / part)
    if config.align_stage == "only":
        publish_text_side(parts, config.directory / TEXT)
    elif config.makes_adapter:
        for part, unet in (("layout_unet", parts.layout_unet), ("refine_unet", parts.refine_unet)):
            if unet is not None:
                save_adapter(unet, config.directory / "adapter" / part)
    else:
        folder = config.directory / "pipeline"
        folder.mkdir(parents=True, exist_ok=True)
        save_file(parts.alignment.state_dict(), folder / ALIGNMENT)
        pipeline = build_pipeline(config, parts)
        pipeline.register_modules(lvlm=merged(pipeline.lvlm), composition=merged(pipeline.composition))
        pipeline.save_pretrained(folder)  # model_index.json comes last: its presence says the run is finished


def _quieten() -> None:
    """Silences what libraries say at start that nobody can act on; our own line says what matters."""
    warnings.filterwarnings("ignore", module=r"(lightning|torch|diffusers|transformers|peft).*")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
