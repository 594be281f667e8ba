"""What a run publishes: the weights of each stage, then a pipeline, adapters, or a text side.

STAGE/trained.safetensors    what a stage has trained (averaged); a later start of the run loads it
pipeline/                    all parts in diffusers' format, adapters merged
adapter/                     peft adapters: the result of a LoRA run on a base, beside the result of others
text/                        runs of L_align alone: LVLM, CCM and alignment heads, for text_base
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from vlad.config.schema import Config
from vlad.lora.adapter_files import save_adapter, save_for_diffusers
from vlad.lora.card import CARD, adapter_card
from vlad.lora.inject import has_adapter
from vlad.lora.merge import merged_copy
from vlad.pipeline.folders import ALIGNMENT_FILE
from vlad.training.add_adapters import adaptable_modules, published_adapters
from vlad.training.build import COMPOSITION, LVLM, TEXT, build_pipeline
from vlad.training.parts import TRAINED, Parts
from vlad.training.resume import check_run_directory
from vlad.training.stages import AutoencoderStage, Stage
from vlad.utils import distributed
from vlad.utils.atomic_files import replaced_directory, save_tensors
from vlad.utils.errors import UserError
from vlad.utils.failures import user_errors
from vlad.utils.hub import hide_progress_bars
from vlad.utils.secrets import without_secrets


def is_finished(config: Config) -> bool:
    """Whether the run directory holds everything that the run publishes.

    Raises UserError when it holds a run of another config.
    """
    check_run_directory(config)
    if config.align_stage == "only":
        return (config.directory / TEXT / ALIGNMENT_FILE).is_file()
    if config.makes_adapter:
        return (config.directory / "adapter").is_dir()
    done = config.directory / "refine" / "metrics.json", config.directory / "pipeline" / "model_index.json"
    return all(path.is_file() for path in done)


def next_command(config: Config) -> str:
    """The command that uses the finished run."""
    if config.align_stage == "only":
        return shlex.join(["python", "train.py", "CONFIG", f"text_base={config.directory}"])
    base = [str(config.base), "--adapter"] if config.makes_adapter else []
    return shlex.join(["python", "sample.py", *base, str(config.directory), "--prompt", "..."])


# --- a stage -------------------------------------------------------------------------------------------------


def publish_stage(stage: Stage, directory: Path) -> None:
    """Rank 0 saves what the stage has trained. All ranks call: each sharded tensor is gathered, one after the other."""
    state = stage.state_dict()
    gathered = {}
    for name in _published_names(stage):
        tensor = distributed.gather_shards(state[name])
        if distributed.is_main_process():
            gathered[name] = tensor.cpu().contiguous()
    if distributed.is_main_process():
        save_tensors(gathered, directory / TRAINED)


def load_published_stage(stage: Stage, directory: Path) -> None:
    """Puts what a finished stage has published into its modules. Raises UserError where the shapes differ."""
    with user_errors(f"{directory / TRAINED}", unreadable=f"remove {directory}, and the stage is trained again"):
        stored = load_file(directory / TRAINED)
    state = stage.state_dict()
    wrong = sorted(
        name
        for name in stored.keys() | set(_published_names(stage))
        if name not in stored or name not in state or stored[name].shape != state[name].shape
    )
    if wrong:
        raise UserError(
            f"{directory / TRAINED} does not fit this config: {len(wrong)} tensors differ, the first is {wrong[0]};"
            " give this run another name."
        )
    stage.load_state_dict(stored, strict=False)
    stage.eval()


def _published_names(stage: Stage) -> list[str]:
    """The tensors of a stage's result: what it has trained; of a new autoencoder also what was fitted."""
    fitted = isinstance(stage, AutoencoderStage) and not has_adapter(stage.autoencoder)
    return list(stage.state_dict()) if fitted else stage.trained_names()


# --- a run ---------------------------------------------------------------------------------------------------


def publish_run(config: Config, parts: Parts) -> None:
    """Writes the result of a run: a pipeline in diffusers' format, adapters in peft's, or a text side."""
    # Its presence says that a LoRA run is finished.
    write_adapters(published_adapters(config, parts), config.directory / "adapter", adapter_recipe(config))
    if config.align_stage == "only":
        publish_text_side(parts, config.directory / TEXT)
    elif not config.makes_adapter:
        publish_pipeline(config, parts, config.directory / "pipeline")


def publish_pipeline(config: Config, parts: Parts, folder: Path) -> None:
    """Writes all parts, with adapters merged. The folder appears whole: its presence says the run is finished."""
    pipeline = build_pipeline(config, parts)
    merged = {name: merged_copy(module) for name, module in adaptable_modules(parts).items() if module}
    pipeline.register_modules(**merged)
    with replaced_directory(folder) as partial, hide_progress_bars():
        save_file(parts.alignment.state_dict(), partial / ALIGNMENT_FILE)
        pipeline.save_pretrained(partial)


def publish_text_side(parts: Parts, folder: Path) -> None:
    """Writes LVLM (adapters merged) with its tokenizer, CCM and alignment heads, for `text_base`."""
    text_side = parts.text_side
    lvlm: Any = merged_copy(text_side.lvlm.model)
    composition: Any = merged_copy(text_side.composition)
    with replaced_directory(folder) as partial, hide_progress_bars():
        lvlm.save_pretrained(partial / LVLM)
        text_side.lvlm.tokenizer.save_pretrained(partial / LVLM)
        composition.save_pretrained(partial / COMPOSITION)
        save_file(parts.alignment.state_dict(), partial / ALIGNMENT_FILE)


def write_adapters(
    modules: Mapping[str, nn.Module | None], directory: Path, metadata: Mapping[str, Any] | None = None
) -> None:
    """Writes the adapters of the modules that have some, each to its own folder in `directory`, read back one by one.

    `metadata` (plain values: trigger word, recipe) goes into their files and onto the card README.md beside them.
    The directory appears when all of them are written. Raises RuntimeError for one that does not read back as it was.
    """
    adapted = {name: module for name, module in modules.items() if has_adapter(module)}
    if not adapted:
        return
    with replaced_directory(directory) as folder:
        for name, module in adapted.items():
            save_adapter(module, folder / name, dict(metadata or {}))
            if name.endswith("_unet"):
                save_for_diffusers(module, folder / name)
        (folder / CARD).write_text(adapter_card(folder, metadata or {}), encoding="utf-8")


def adapter_recipe(config: Config) -> dict[str, Any]:
    """What an adapter's files and card say of its training, in plain values."""
    train = {name: asdict(getattr(config.train, name)) for name in ("autoencoder", "layout", "refine")}
    keys = ("steps", "learning_rate", "warmup_steps", "weight_decay", "ema_decay")
    recipe = {
        "seed": config.seed,
        "shards": without_secrets(list(config.data.sets)),
        "batch_size": config.data.batch_size,
        "repeats": config.data.repeats,
        "train": {name: {key: options[key] for key in keys} for name, options in train.items()},
        "lora": asdict(config.lora) if config.lora is not None else None,
        "losses": asdict(config.losses),
        "validation": asdict(config.validation),
        "prior": asdict(config.prior),
    }
    return {"trigger_word": config.data.trigger_word, "recipe": json.loads(json.dumps(recipe))}
