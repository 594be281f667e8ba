"""A run from config to pipeline: builds the parts, trains the stages in order, publishes what each has trained.

runs/NAME/
  config.yaml            the resolved config
  STAGE/checkpoints/     step-*.ckpt of a stage under way (removed when it is done)
  STAGE/logs/            TensorBoard and CSV
  STAGE/trained.safetensors, STAGE/metrics.json
                         what the stage has trained (averaged), and its last losses, images/s, seconds
  samples/STAGE/         sample grids during training
  pipeline/              all parts in diffusers' format
  prior/                 the base's own images, for prior preservation
  adapter/               peft adapters: the result of a LoRA run on a base, beside the result of others
  text/                  runs of L_align alone: LVLM, CCM and alignment heads, for text_base
  report.html            the run on one page; starts.jsonl: what it was started with
  quarantine.jsonl       samples that could not be used
  .lock                  held by the process that trains here
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors.torch import load_file, save_file

from vlad.config.load import save_config
from vlad.config.schema import Config
from vlad.config.training import OptimOptions, Precision
from vlad.data.collate import collate
from vlad.data.dataset import first_samples
from vlad.data.shard_sets import ShardSets
from vlad.diffusion.noise_schedule import build_scheduler
from vlad.lora.inject import has_adapter
from vlad.lora.merge import merged_copy
from vlad.models.attention import set_attention
from vlad.models.autoencoder import PatchAutoencoder
from vlad.pipeline.folders import ALIGNMENT_FILE
from vlad.reports.run_report import write_run_report
from vlad.reports.starts import changes_since_last_start, record_start
from vlad.training.add_adapters import adaptable, kept_adapters
from vlad.training.build import (
    TEXT,
    build_parts,
    build_pipeline,
    publish_text_side,
    reads_images,
)
from vlad.training.caching import cached_sets
from vlad.training.callbacks.adapter_saves import write_adapters
from vlad.training.callbacks.ema import save_average
from vlad.training.callbacks.monitors import grid_drawer, look_taker, retrieval_measure
from vlad.training.callbacks.phases import TextPhases
from vlad.training.callbacks.progress import StopOnSignal, takes_part, write_metrics
from vlad.training.checkpoint import prune_checkpoints, remove_damaged, remove_partial
from vlad.training.datamodule import ShardDataModule
from vlad.training.devices import is_sharded_run, run_device, sharding_ranks
from vlad.training.legibility_models import build_legibility
from vlad.training.memory_plan import start_line
from vlad.training.memory_savers import checkpoint_activations, compile_as_written, compile_unets, frozen_in_bf16
from vlad.training.parts import TRAINED, Parts
from vlad.training.precision import computed_in, stage_precision
from vlad.training.prior_preservation import with_prior
from vlad.training.provenance import describe_start
from vlad.training.resume import check_run_directory, finished_stage, freely_changed, listed, starting_checkpoint
from vlad.training.run_data import RunData
from vlad.training.stages import AlignStage, AutoencoderStage, LayoutStage, RefineStage, Stage, set_modes
from vlad.training.trainer import build_trainer
from vlad.training.validate import check_stages, validate
from vlad.utils import distributed
from vlad.utils.errors import UserError, counted
from vlad.utils.failures import user_errors
from vlad.utils.hub import hide_progress_bars
from vlad.utils.locks import directory_lock
from vlad.utils.paths import writable_directory

FIT_IMAGES = 3000  # the projection of a PatchAutoencoder is fitted to this many images


@dataclass(frozen=True)
class RunResult:
    """How a run ended: whole, or stopped by a signal with its checkpoint saved."""

    directory: Path
    finished: bool


def run(config: Config) -> RunResult:
    """Trains every stage that is not done yet. Raises UserError before any long work for what cannot work."""
    quieten()
    data = validate(config)
    directory = writable_directory(config.directory, "the run", needed_bytes=200_000_000)
    # The other ranks of a launch work on the same run.
    with directory_lock(directory, "a run") if distributed.is_main_process() else contextlib.nullcontext():
        return _run(config, data, directory)


def _run(config: Config, data: RunData, directory: Path) -> RunResult:
    described = config
    torch.use_deterministic_algorithms(True, warn_only=True)
    parts, config = training_parts(config)
    stages = stage_names(config, parts)
    memory = start_line(config, parts, stages, sharding_ranks(config)) if distributed.is_main_process() else None
    device = run_device(config)
    check_stages(config, stages, data)
    dtype = computed_in(stage_precision(config, stages[-1])[0])
    line = set_switches(config, parts, device, dtype)
    # Only now: a call that could not work must not claim the directory for its config.
    if distributed.is_main_process() and not (directory / "config.yaml").is_file():
        save_config(described, directory / "config.yaml")
    data = with_prior(config, data)
    if distributed.is_main_process():
        found = f"{counted(data.shards.samples, 'sample')} in {counted(data.shards.shards, 'shard')}"
        print(f"{config.name}: {found}; {line}", file=sys.stderr)
        if memory is not None:
            print(memory, file=sys.stderr)
        start = {**describe_start(), "attention": line.removeprefix("attention: ")}
        for what, changed in (
            ("config.yaml", freely_changed(described)),
            ("its last start", changes_since_last_start(directory, start)),
        ):
            if changed:
                print(f"{config.name}: not as in {what}: {listed(changed)}", file=sys.stderr)
        record_start(directory, start)

    with StopOnSignal() as stop:
        for number, stage in enumerate(stages):
            if not _train_stage(config, parts, data, stage, stages, stop):
                return RunResult(directory, finished=False)
            if is_sharded_run(config):
                # The modules are in parts on all ranks now: from the files, as a run does that goes on.
                parts, _ = training_parts(described)
                for done in stages[: number + 1]:
                    _train_stage(config, parts, data, done, stages, stop)
                set_switches(config, parts, device, dtype)
    compile_as_written(_unets(parts))
    if distributed.is_main_process():
        with failures_reported(f"{config.name}:", directory):
            _publish_run(config, parts)
            write_run_report(directory)
    return RunResult(directory, finished=True)


def training_parts(config: Config) -> tuple[Parts, Config]:
    """The parts before any stage, and the config with what a base brings along."""
    L.seed_everything(config.seed, verbose=False)
    return build_parts(config)


def _unets(parts: Parts) -> list[Any]:
    return [unet for unet in (parts.layout_unet, parts.refine_unet) if unet is not None]


def set_switches(config: Config, parts: Parts, device: torch.device, dtype: torch.dtype) -> str:
    """What the options say of attention, recomputation and compilation; the line that says which attention runs.

    Raises UserError for what cannot run here.
    """
    unets = _unets(parts)
    line = set_attention(unets, config.trainer.attention, device, dtype)
    checkpoint_activations(config.trainer.activation_checkpointing, unets, parts.text_side.lvlm.model)
    compile_unets(config.trainer.compile, unets, device)
    return line


def is_finished(config: Config) -> bool:
    """Whether the run directory holds everything that `run` would make.

    Raises UserError when it holds a run of another config.
    """
    check_run_directory(config)
    if config.align_stage == "only":
        return (config.directory / TEXT / ALIGNMENT_FILE).is_file()
    if config.makes_adapter:
        return (config.directory / "adapter").is_dir()
    done = config.directory / "refine" / "metrics.json", config.directory / "pipeline" / "model_index.json"
    return all(path.is_file() for path in done)


def adapter_recipe(config: Config) -> dict[str, Any]:
    """What an adapter's files and card say of its training, in plain values."""
    train = {name: asdict(getattr(config.train, name)) for name in ("autoencoder", "layout", "refine")}
    keys = ("steps", "learning_rate", "warmup_steps", "weight_decay", "ema_decay")
    recipe = {
        "seed": config.seed,
        "shards": list(config.data.sets),
        "batch_size": config.data.batch_size,
        "repeats": config.data.repeats,
        "train": {name: {key: options[key] for key in keys} for name, options in train.items()},
        "lora": asdict(config.lora) if config.lora is not None else None,
        "losses": asdict(config.losses),
        "validation": asdict(config.validation),
        "prior": asdict(config.prior),
    }
    return {"trigger_word": config.data.trigger_word, "recipe": json.loads(json.dumps(recipe))}


def next_command(config: Config) -> str:
    """What a person does with the finished run."""
    if config.align_stage == "only":
        return f"python train.py CONFIG text_base={config.directory}"
    source = f"{config.base} --adapter {config.directory}" if config.makes_adapter else f"{config.directory}"
    return f"python sample.py {source} --prompt '...'"


# --- one stage -----------------------------------------------------------------------------------------------


def stage_names(config: Config, parts: Parts) -> list[str]:
    """The stages of this run in order."""
    if config.align_stage == "only":
        return ["align"]
    names = ["refine"] if parts.layout_unet is None or config.train.layout.steps == 0 else ["layout", "refine"]
    if config.makes_adapter and config.lora is not None:
        adapted = {
            "layout": config.lora.layout_unet or not config.text_training.is_frozen,
            "refine": config.lora.refine_unet
            or (not config.text_training.is_frozen and (config.refine.train_text or parts.layout_unet is None)),
        }
        names = [name for name in names if adapted[name]]
    fits = config.base is None and isinstance(parts.autoencoder, PatchAutoencoder)
    if fits or has_adapter(parts.autoencoder):
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
    names = stage_names(config, parts)
    before = [other for other in names[: names.index(name)] if _trains_text(config, parts, other)]
    return sum(getattr(config.train, other).steps for other in before)


def _train_stage(config: Config, parts: Parts, sets: RunData, name: str, order: list[str], stop: StopOnSignal) -> bool:
    """Trains a stage to its end, or until a signal; returns whether it is done."""
    label = f"[{order.index(name) + 1}/{len(order)} {name}]"
    directory = config.directory / name
    checkpoints = directory / "checkpoints"
    optim: OptimOptions = getattr(config.train, name)
    stage, phases = build_stage(config, parts, name, sets.shards, label)
    finished = finished_stage(config, name, order)
    if finished is not None:
        _load_stage(stage, finished)
        if finished != directory and distributed.is_main_process():
            _publish_stage(stage, directory)
            shutil.copyfile(finished / "metrics.json", directory / "metrics.json")
        return True
    checkpoints.mkdir(parents=True, exist_ok=True)
    data = ShardDataModule(
        sets.training if config.data.cache is None else cached_sets(config, parts, sets.training),
        config.data.stream(distributed.derived_seed(config.seed, name)),
        optim.steps * optim.accumulate_batches,
        config.directory / "quarantine.jsonl",
    )
    if distributed.is_main_process():
        remove_partial(checkpoints)
    newest = starting_checkpoint(config, name, label, distributed.is_main_process())

    draw = grid_drawer(config, parts, sets.shards, name) if name in ("layout", "refine") else None
    measure = None if phases is None else retrieval_measure(config, parts, sets.pairs)
    look = None
    if sets.held_out is not None and name in ("layout", "refine"):
        look = look_taker(config, parts, sets.shards, sets.held_out, name)
    adapters, about = kept_adapters(config, parts), adapter_recipe(config)
    built = build_trainer(config, name, label, stop, draw, measure, phases, adapters, newest, look, about)
    trainer = built.trainer
    set_modes(stage)
    with failures_reported(label, directory), stored(stage, stage_precision(config, name)[0]):
        trainer.fit(stage, datamodule=data, ckpt_path=newest, weights_only=True)
    if stop.stopped and trainer.global_step < optim.steps:
        if (error := built.saving.error()) is not None:
            raise error
        return False
    built.average.copy_to(stage)
    if built.stopping is not None:
        built.stopping.restore(stage)
    stage.eval()
    with failures_reported(label, directory):
        _publish_stage(stage, directory)
        built.average.publish(stage, directory)
        measured: dict[str, float] = {}
        if measure is not None and takes_part(trainer, stage):
            measured = measure(config.directory / "samples" / name / "shared-space" / "final.png")
        if trainer.is_global_zero:
            write_metrics(directory / "metrics.json", {**built.metrics(), **measured})
            prune_checkpoints(checkpoints, 0, config.trainer.keep_every_steps)
            remove_damaged(checkpoints)
            if not any(checkpoints.iterdir()):
                checkpoints.rmdir()
    trainer.strategy.barrier()
    return True


def build_stage(
    config: Config, parts: Parts, name: str, sets: ShardSets, label: str
) -> tuple[Stage, TextPhases | None]:
    """The stage's module, with exactly what it trains wanting gradients, and the phases of its text side."""
    optim: OptimOptions = getattr(config.train, name)
    if name == "autoencoder" and has_adapter(parts.autoencoder):
        decoder = AutoencoderStage(parts.autoencoder, config.losses, optim)
        decoder.settle()
        return decoder, None
    if name == "autoencoder":
        assert isinstance(parts.autoencoder, PatchAutoencoder)
        parts.autoencoder.requires_grad_(True)
        parts.autoencoder.projection.requires_grad_(False)  # fitted
        batch = collate(first_samples(sets, config.data.stream(config.seed), FIT_IMAGES))
        parts.autoencoder.fit(torch.cat([batch.images, batch.glyph_maps]))
        return AutoencoderStage(parts.autoencoder, config.losses, optim), None
    parts.autoencoder.requires_grad_(False)
    parts.text_side.requires_grad_(False)
    parts.alignment.requires_grad_(False)
    phases = None
    if _trains_text(config, parts, name):
        first_step = _text_steps_before(config, parts, name)
        phases = TextPhases(parts.text_side, config.text_training, reads_images(config), label, first_step)
        phases.prepare()
        parts.alignment.requires_grad_(reads_images(config) and not config.makes_adapter)
    stage: Stage
    if name == "align":
        stage = AlignStage(parts.text_side, parts.alignment, config.losses, optim)
    elif name == "layout":
        scheduler = build_scheduler(config.layout.noise)
        stage = LayoutStage(parts, scheduler, config.layout.noise, config.losses, optim)
    else:
        scheduler = build_scheduler(config.refine.noise)
        stage = RefineStage(
            parts,
            scheduler,
            config.refine.noise,
            config.losses,
            optim,
            with_layout=config.layout.kind != "none",
            editing_share=config.refine.editing_share,
            legibility=build_legibility(config, parts, sets),
        )
    stage.settle({} if phases is None else phases.learning_rates("text_side."))
    return stage, phases


def _publish_stage(stage: Stage, directory: Path) -> None:
    """Rank 0 saves what the stage has trained; the autoencoder's also what was fitted.

    Where it is sharded all ranks come here: each tensor is gathered, one after the other.
    """
    state = stage.state_dict()
    names = _published_names(stage)
    gathered = {}
    for name in names:
        tensor = distributed.gather_shards(state[name])
        if distributed.is_main_process():
            gathered[name] = tensor.cpu().contiguous()
    if distributed.is_main_process():
        save_average(gathered, directory / TRAINED)


def _published_names(stage: Stage) -> list[str]:
    """The tensors of a stage's result: what it has trained, and of a new autoencoder what was fitted."""
    fitted = isinstance(stage, AutoencoderStage) and not has_adapter(stage.autoencoder)
    return list(stage.state_dict()) if fitted else stage.trained_names()


def stored(stage: Stage, precision: Precision) -> contextlib.AbstractContextManager[None]:
    """What a stage holds in which precision while it trains."""
    return frozen_in_bf16(stage, stage.trained_names()) if precision == "bf16-true" else contextlib.nullcontext()


def _load_stage(stage: Stage, directory: Path) -> None:
    """Puts what a finished stage has published into its modules. Raises UserError where the shapes differ."""
    with user_errors(f"{directory / TRAINED}", unreadable=f"remove {directory}, and the stage is trained again"):
        stored = load_file(directory / TRAINED)
    state = stage.state_dict()
    names = _published_names(stage)
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
    # Its presence says that a LoRA run is finished.
    write_adapters(kept_adapters(config, parts), config.directory / "adapter", adapter_recipe(config))
    if config.align_stage == "only":
        publish_text_side(parts, config.directory / TEXT)
    elif not config.makes_adapter:
        folder = config.directory / "pipeline"
        folder.mkdir(parents=True, exist_ok=True)
        save_file(parts.alignment.state_dict(), folder / ALIGNMENT_FILE)
        pipeline = build_pipeline(config, parts)
        pipeline.register_modules(**{name: merged_copy(module) for name, module in adaptable(parts).items() if module})
        with hide_progress_bars():
            pipeline.save_pretrained(folder)  # model_index.json comes last: its presence says the run is finished


def failures_reported(label: str, directory: Path) -> contextlib.AbstractContextManager[None]:
    """Inside the block a lack of memory or disk space, and a lost data-loading worker, raise UserError."""
    again = "run the same command again: it resumes from the last checkpoint"
    return user_errors(
        label,
        memory="python tools/plan.py with the same config says what would make it fit, data.batch_size first",
        worker=f"the machine's memory may be full: lower data.workers or data.batch_size and {again}",
        disk=f"make room on the disk of {directory} and {again}",
    )


def quieten() -> None:
    """Silences what libraries say at start that nobody can act on; our own line says what matters."""
    warnings.filterwarnings("ignore", module=r"(lightning|torch|diffusers|transformers|peft).*")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
