"""The options of a run: the components' dataclasses composed, read from YAML and overrides, frozen.

No OmegaConf node leaves this module. A file may start from another: `inherit: tiny.yaml` (beside it).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vlad.data.stream import BatchOptions, StreamOptions
from vlad.data.synthetic import SyntheticOptions
from vlad.diffusion.autoencoder import AutoencoderOptions
from vlad.diffusion.noise import NoiseOptions
from vlad.diffusion.stable_diffusion import StableDiffusionOptions
from vlad.diffusion.unets import UNetOptions
from vlad.errors import UserError, did_you_mean, existing_file
from vlad.pipeline_settings import SampleOptions
from vlad.text.components import TextTraining, TrainableOptions
from vlad.text.composition import CompositionOptions
from vlad.text.lora import LoraOptions
from vlad.text.lvlm import LVLMOptions
from vlad.training.early_stopping import ValidationOptions
from vlad.training.optim import OptimOptions
from vlad.training.precision import Precision
from vlad.training.stages import LossOptions
from vlad.training.switches import Checkpointing, Compilation

Options = TypeVar("Options")
MOST_DEVICES = 256  # more than any machine has GPUs
MOST_REPEATS = 100_000
MOST_PRIOR_PICTURES = 100_000
# Sections that a config may leave out: what their options are, for messages.
OPTIONAL = {"lora": LoraOptions(), "stable_diffusion": StableDiffusionOptions("-")}


@dataclass(frozen=True)
class MixedSet:
    """A shard set and its weight in a mixture."""

    shards: str = ""
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.shards and not self.weight > 0:
            raise UserError(f"data.mix: the weight of {self.shards} must be positive, not {self.weight}.")


@dataclass(frozen=True)
class DataOptions(BatchOptions):
    """Where the samples come from, besides how they become batches.

    `synthetic` is what tools/render_shards.py draws for this config.
    """

    # A directory, a glob or a brace pattern of tar files, here or at a URL.
    shards: str = "data/tiny"
    # A small set that is never trained on, for what is measured during training (retrieval).
    held_out: str | None = None
    # Cached states of these shards (tools/cache.py), for the stages whose models are frozen.
    cache: str | None = None
    # For small sets: each picture so many times an epoch; a word in front of every caption that calls what is learned.
    repeats: int = 1
    trigger_word: str | None = None
    # Several sets by weight, in place of `shards`.
    mix: list[MixedSet] = field(default_factory=list)
    synthetic: SyntheticOptions = field(default_factory=SyntheticOptions)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.repeats <= MOST_REPEATS:
            raise UserError(f"data.repeats must be from 1 to {MOST_REPEATS}, not {self.repeats}.")
        if self.trigger_word is not None and not self.trigger_word.strip(" ,"):
            raise UserError("data.trigger_word is empty; name a word that no prompt holds by chance, or leave it out.")
        # OmegaConf checks the elements of a list alone; we hand out nothing that can be changed.
        object.__setattr__(self, "mix", tuple(self.mix))

    def stream(self, seed: int) -> StreamOptions:
        """The options of the shard stream."""
        shared = {entry.name: getattr(self, entry.name) for entry in fields(BatchOptions)}
        return StreamOptions(**shared, seed=seed)

    @property
    def sets(self) -> dict[str, float]:
        """The patterns of the shard sets with their weights. Raises UserError for one that stands there twice."""
        named = [entry.shards for entry in self.mix]
        if len(set(named)) < len(named) or not all(named):
            raise UserError("data.mix: every set needs shards of its own; name each once, with the sum of its weights.")
        return {entry.shards: entry.weight for entry in self.mix} or {self.shards: 1.0}


@dataclass(frozen=True)
class LayoutOptions:
    """Stage one (TLG). `kind: none` leaves it out, and z with it: the ablation of Table II."""

    kind: Literal["latents", "none"] = "latents"
    unet: UNetOptions = field(default_factory=UNetOptions)
    noise: NoiseOptions = field(default_factory=NoiseOptions)


@dataclass(frozen=True)
class RefineOptions:
    """Stage two (VFE)."""

    unet: UNetOptions = field(default_factory=UNetOptions)
    noise: NoiseOptions = field(default_factory=NoiseOptions)
    # Stage one has trained the text side; True trains it on.
    train_text: bool = False
    # The share of samples trained as edits: a part of the picture is given, the rest is drawn (docs/sampling.md). Above
    # 0 the UNet has input channels for it from the start; those of a base that has none are added and weigh nothing.
    editing_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.editing_share <= 1:
            raise UserError(f"refine.editing_share must be a share, 0 to 1, not {self.editing_share}.")


@dataclass(frozen=True)
class PriorOptions:
    """Prior preservation (DreamBooth, arXiv 2208.12242): the base's own pictures beside yours."""

    # How many are drawn; 0: none.
    pictures: int = 0
    # lambda: L = L_yours + lambda L_base's, as a share lambda / (1 + lambda) of the samples of a batch.
    weight: float = 1.0
    # A file of prompts, one a line; None: your own captions, without the trigger word.
    prompts: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.pictures <= MOST_PRIOR_PICTURES or not 0 < self.weight <= 100:
            raise UserError(
                f"prior: pictures must be from 0 to {MOST_PRIOR_PICTURES}, and weight positive and at most 100."
            )

    @property
    def share(self) -> float:
        """Of the samples of a batch, how many are the base's own."""
        return self.weight / (1 + self.weight)


@dataclass(frozen=True)
class TrainOptions:
    """Steps and optimiser of each stage."""

    align: OptimOptions = field(default_factory=OptimOptions)
    autoencoder: OptimOptions = field(default_factory=OptimOptions)
    layout: OptimOptions = field(default_factory=OptimOptions)
    refine: OptimOptions = field(default_factory=OptimOptions)


@dataclass(frozen=True)
class TrainerOptions:
    """How and where it runs."""

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    # Processes a machine; "auto" is all GPUs, or one process on a CPU.
    devices: str = "auto"
    nodes: int = 1
    # Several processes each hold everything (ddp), or a share of the UNets and of the LVLM's layers (fsdp).
    strategy: Literal["ddp", "fsdp"] = "ddp"
    precision: Precision = "32-true"
    channels_last: bool = True
    # Whose activations the backward pass computes again: less memory, about a third more time.
    activation_checkpointing: Checkpointing = "none"
    # What torch compiles of the UNets: the block that they repeat, or all.
    compile: Compilation = "none"
    attention: Literal["auto", "xformers", "sdpa", "flash", "plain"] = "auto"
    checkpoint_every_steps: int = 250
    # The newest so many are kept, and for good those of every so many steps (0: none).
    keep_checkpoints: int = 2
    keep_every_steps: int = 0
    # Checkpoints are written in a thread while training goes on; False: training waits for the disk.
    background_saving: bool = True
    # When one cannot be written: stop (after a last try), or warn and go on.
    on_save_failure: Literal["stop", "go_on"] = "stop"
    # When a loss or gradient is not finite: stop, or leave the step out.
    on_nonfinite: Literal["stop", "skip"] = "stop"
    # Several processes give up on one that does not answer for so long.
    timeout_minutes: float = 10.0
    sample_every_steps: int = 500
    log_every_steps: int = 10
    # Weights & Biases (extra wandb) beside TensorBoard and CSV; offline keeps it on the disk, for `wandb sync`.
    wandb: Literal["off", "offline", "online"] = "off"

    def __post_init__(self) -> None:
        count = int(self.devices) if re.fullmatch("[0-9]{1,9}", self.devices) else 0
        if self.devices != "auto" and not 0 < count <= MOST_DEVICES:
            raise UserError(
                f"trainer.devices must be auto or a number from 1 to {MOST_DEVICES}, not {self.devices!r}: each is a"
                " process of this machine."
            )
        if min(self.nodes, self.checkpoint_every_steps, self.keep_checkpoints, self.log_every_steps) < 1:
            raise UserError(
                "trainer: nodes, checkpoint_every_steps, keep_checkpoints and log_every_steps must be at least 1."
            )
        if self.sample_every_steps < 0:
            raise UserError(f"trainer.sample_every_steps must be 0 (never) or more, not {self.sample_every_steps}.")
        if self.keep_every_steps % self.checkpoint_every_steps or self.keep_every_steps < 0:
            raise UserError(
                "trainer.keep_every_steps must be a multiple of checkpoint_every_steps"
                f" ({self.checkpoint_every_steps}), or 0 for none, not {self.keep_every_steps}."
            )
        if self.timeout_minutes <= 0:
            raise UserError(f"trainer.timeout_minutes must be positive, not {self.timeout_minutes:g}.")


@dataclass(frozen=True)
class Config:
    """Everything that shapes a run."""

    name: str = "tiny"
    runs: str = "runs"
    seed: int = 0
    # A run or pipeline to fine-tune; its models take the place of those described here. None: start from nothing.
    base: str | None = None
    # A Stable Diffusion that both UNets, the autoencoder and the noise come from. None: they are built from nothing.
    stable_diffusion: StableDiffusionOptions | None = None
    # A run whose LVLM, CCM and alignment heads this one starts from; of a base they come with it.
    text_base: str | None = None
    # A stage of L_align alone before the others ("first"), or nothing but it ("only").
    align_stage: Literal["none", "first", "only"] = "none"
    # auto: go on with what the run directory holds; none: refuse one that holds a run; else a checkpoint of another run
    # to begin from.
    resume: str = "auto"
    data: DataOptions = field(default_factory=DataOptions)
    lvlm: LVLMOptions = field(default_factory=LVLMOptions)
    composition: CompositionOptions = field(default_factory=CompositionOptions)
    autoencoder: AutoencoderOptions = field(default_factory=AutoencoderOptions)
    layout: LayoutOptions = field(default_factory=LayoutOptions)
    refine: RefineOptions = field(default_factory=RefineOptions)
    losses: LossOptions = field(default_factory=LossOptions)
    trainable: TrainableOptions = field(default_factory=TrainableOptions)
    train: TrainOptions = field(default_factory=TrainOptions)
    trainer: TrainerOptions = field(default_factory=TrainerOptions)
    sample: SampleOptions = field(default_factory=SampleOptions)
    # None: everything is trained in full; else adapters only, on `base`.
    lora: LoraOptions | None = None
    # For small sets: pictures held out, and pictures of the base's own mixed in.
    validation: ValidationOptions = field(default_factory=ValidationOptions)
    prior: PriorOptions = field(default_factory=PriorOptions)

    def __post_init__(self) -> None:
        if not self.name or self.name in (".", "..") or "/" in self.name or "\\" in self.name:
            raise UserError(
                f"name: {self.name!r} is not the name of one folder; runs={self.runs} says where it stands."
            )

    @property
    def directory(self) -> Path:
        """The run directory."""
        return Path(self.runs) / self.name

    @property
    def makes_adapter(self) -> bool:
        """Whether the run's result is an adapter on its base rather than a pipeline of its own."""
        return self.base is not None and self.lora is not None

    @property
    def text_training(self) -> TextTraining:
        """How each component of the text side is trained, phase by phase."""
        return self.trainable.resolved(self.makes_adapter)


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Reads a config file and `key=value` overrides. Raises UserError with the place and the remedy."""
    config = load_options(Config, path, overrides)
    for name, value in _numbers(config):
        if not math.isfinite(value):
            raise UserError(f"{name} must be a finite number, not {value}.")
    if not 0 <= config.seed < 2**32:
        raise UserError(f"seed must be from 0 to {2**32 - 1}, not {config.seed}.")
    return config


def load_options(schema: type[Options], path: Path | str, overrides: Sequence[str] = ()) -> Options:
    """Options of any dataclass from a YAML file and overrides, with the same messages."""
    merged = OmegaConf.structured(schema)
    given = [(str(path), _read_yaml(Path(path)))]
    given += [(f"the override {override!r}", _read_override(override)) for override in overrides]
    for source, options in given:
        try:
            merged = OmegaConf.merge(merged, options)
        except OmegaConfBaseException as error:
            raise UserError(_explain(error, source, options, schema)) from error
    try:
        result = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:  # what a value refers to is only looked up here
        raise UserError(_explain(error, str(path), given[0][1], schema)) from error
    assert isinstance(result, schema)
    return result


def _numbers(value: Any, *path: str) -> Iterator[tuple[str, float]]:
    """Every number of some options with its dotted name."""
    if is_dataclass(value):
        for entry in fields(value):
            yield from _numbers(getattr(value, entry.name), *path, entry.name)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _numbers(entry, *path)
    elif isinstance(value, float):
        yield ".".join(path), value


def save_config(config: Config, path: Path) -> None:
    """Writes the resolved config as YAML; `load_config` gives it back."""
    temporary = path.with_suffix(".partial")
    temporary.write_text(OmegaConf.to_yaml(OmegaConf.create(asdict(config))), encoding="utf-8")
    temporary.replace(path)


def _read_override(override: str) -> DictConfig:
    if "=" not in override or override.startswith("-"):
        raise UserError(f"{override!r} is not an override; write key=value, such as data.batch_size=32.")
    try:
        return OmegaConf.from_dotlist([override])
    except Exception as error:  # yaml's own errors share no base class with OmegaConf's
        raise UserError(
            f"The value of the override {override!r} is not YAML; quote it or close its brackets."
        ) from error


def _read_yaml(path: Path, heirs: tuple[Path, ...] = ()) -> DictConfig:
    """The file over the one that it inherits. `heirs` are the files that inherit this one."""
    if path.resolve() in heirs:
        raise UserError(f"{path} inherits itself; remove one `inherit` of the circle.")
    existing_file(path, "config", "see configs/ for those that come with the code")
    try:
        loaded = OmegaConf.load(path)
    except Exception as error:  # yaml's own errors share no base class with OmegaConf's
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not YAML: {reason}.") from error
    if not isinstance(loaded, DictConfig):
        raise UserError(f"{path} is not a config: expected keys and values, such as name: tiny.")
    parent = loaded.pop("inherit", None)
    if parent is None:
        return loaded
    merged = OmegaConf.merge(_read_yaml(path.parent / str(parent), (*heirs, path.resolve())), loaded)
    assert isinstance(merged, DictConfig)
    return merged


def _explain(error: OmegaConfBaseException, source: str, options: DictConfig, schema: type) -> str:
    """OmegaConf's message as one sentence with the key's full name, and the closest known key."""
    message = str(error).splitlines()[0].rstrip(".")
    key = getattr(error, "full_key", None) or getattr(error, "key", None)
    if key is None:  # OmegaConf does not say where a section or a list went wrong, nor what stood there
        key, value = next(_refused(OmegaConf.to_container(options), schema), (None, None))
        message = f"{value!r} does not fit here" if key else message
    unknown = re.search(r"Key '([^']+)' not in '(\w+)'", message)
    if unknown:
        parent = str(key).rpartition(".")[0]
        known = [f.name for f in fields(_options_class(parent, schema))]
        where = f" in {parent}" if parent else ""
        hint = did_you_mean(unknown.group(1), known) or f" Known: {', '.join(known)}."
        return f"{source}: there is no option {unknown.group(1)!r}{where}.{hint}"
    return f"{source}: {key}: {message}." if key else f"{source}: {message}."


def _refused(options: Any, schema: type, *path: str) -> Iterator[tuple[str, Any]]:
    """The values of nested options that the schema takes exception to, with their dotted keys."""
    if isinstance(options, dict):
        for name, value in options.items():
            yield from _refused(value, schema, *path, str(name))
        return
    nested = options
    for name in reversed(path):
        nested = {name: nested}
    try:
        OmegaConf.merge(OmegaConf.structured(schema), nested)
    except OmegaConfBaseException:
        yield ".".join(path), options


def _options_class(dotted: str, schema: type) -> Any:
    """The dataclass that a dotted key names."""
    value: Any = schema()
    for name in filter(None, dotted.split(".")):
        value = getattr(value, name, None)
        if value is None and name in OPTIONAL:
            value = OPTIONAL[name]
    return type(value) if is_dataclass(value) else schema
