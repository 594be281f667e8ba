"""Options of training: each stage's optimiser and EMA, trainable components, validation, prior, trainer."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import Literal, get_args

from vlad.utils.errors import UserError

Precision = Literal["32-true", "bf16-mixed", "bf16-true", "16-mixed"]


Checkpointing = Literal["none", "unets", "lvlm", "all"]


Compilation = Literal["none", "blocks", "whole"]


MAX_WIDTH = 0.28  # gamma would be nearly 0: a plain mean has 0.2887


@dataclass(frozen=True)
class OptimOptions:
    """How one stage is trained. Shares are of the stage's steps."""

    # 0 leaves the layout stage of a run with a base as the base has it.
    steps: int = 1000
    learning_rate: float = 1e-3
    # adamw-8bit keeps the moments of large matrices in 8 bits (extra 8bit): 2 bytes a parameter in place of 8.
    optimizer: Literal["adamw", "adamw-8bit"] = "adamw"
    # One kernel for the whole step; 16-mixed goes without, as its loss scaler must see the gradients before.
    fused: bool = True
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    warmup_steps: int = 100
    # Where the cosine to zero begins: 0.4 leaves it the last 60 % of the steps.
    constant_share: float = 0.4
    clip_grad_norm: float = 1.0
    accumulate_batches: int = 1
    ema_decay: float = 0.99
    # Further averages beside it: by half-life in steps; and power-function ones by width (a share of the training),
    # with snapshots from which an average of any width can be had afterwards.
    ema_half_lives: tuple[float, ...] = ()
    ema_power_widths: tuple[float, ...] = ()
    ema_snapshot_every_steps: int = 0
    # Averages in main memory: for models that leave no room for them beside themselves.
    ema_on_cpu: bool = False
    # Autocast of this stage; None: trainer.precision. On a CPU bf16 pays for wide layers only, and where the CPU lacks
    # it float32 takes its place.
    precision: Precision | None = None

    def __post_init__(self) -> None:
        if self.steps < 0 or self.learning_rate <= 0 or self.accumulate_batches < 1:
            raise UserError("train: steps must not be negative, learning_rate and accumulate_batches be positive.")
        if min(self.weight_decay, self.warmup_steps, self.clip_grad_norm) < 0 or not 0 <= self.constant_share <= 1:
            raise UserError(
                "train: weight_decay, warmup_steps and clip_grad_norm must not be negative, and constant_share is a"
                " share, 0 to 1."
            )
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"train: ema_decay must be at least 0 and less than 1, not {self.ema_decay}.")
        if not all(steps > 0 for steps in self.ema_half_lives):
            raise UserError("train: ema_half_lives are numbers of steps, above 0.")
        if not all(0.001 <= width <= MAX_WIDTH for width in self.ema_power_widths):
            raise UserError(f"train: ema_power_widths are shares of the training, from 0.001 to {MAX_WIDTH}.")
        if self.ema_snapshot_every_steps < 0 or bool(self.ema_snapshot_every_steps) != bool(self.ema_power_widths):
            raise UserError("train: ema_power_widths and ema_snapshot_every_steps go together; set both or neither.")


STAGES = ("align", "autoencoder", "layout", "refine")  # in the order in which a run trains them


@dataclass(frozen=True)
class TrainOptions:
    """Steps and optimiser of each stage."""

    align: OptimOptions = field(default_factory=OptimOptions)
    autoencoder: OptimOptions = field(default_factory=OptimOptions)
    layout: OptimOptions = field(default_factory=OptimOptions)
    refine: OptimOptions = field(default_factory=OptimOptions)


Component = Literal["vision_tower", "projector", "lvlm", "composition", "spelling"]


COMPONENTS: tuple[Component, ...] = get_args(Component)


Training = Literal["frozen", "lora", "full"]


@dataclass(frozen=True)
class ComponentRates:
    """A learning rate of a component's own; None: the stage's."""

    vision_tower: float | None = None
    projector: float | None = None
    lvlm: float | None = None
    composition: float | None = None
    spelling: float | None = None

    def __post_init__(self) -> None:
        for entry in fields(self):
            rate = getattr(self, entry.name)
            if rate is not None and not rate > 0:
                raise UserError(f"trainable.learning_rates.{entry.name} must be positive, not {rate}.")


@dataclass(frozen=True)
class Phase:
    """What is trained until a step; a component that is not named is trained as outside of phases.

    Steps are counted over all stages that train the text side. Only the last phase has no `until_step`.
    """

    until_step: int | None = None
    vision_tower: Training | None = None
    projector: Training | None = None
    lvlm: Training | None = None
    composition: Training | None = None
    spelling: Training | None = None


@dataclass(frozen=True)
class TrainableOptions:
    """How each component of the text side is trained.

    None is `full`, for the vision tower and the projector only where the LVLM is `full`, too, else `frozen`. In a run
    that makes an adapter (`base` with `lora`) it is `lora` for the LVLM and `frozen` for the rest.
    """

    vision_tower: Training | None = None
    projector: Training | None = None
    lvlm: Training | None = None
    composition: Training | None = None
    spelling: Training | None = None
    learning_rates: ComponentRates = field(default_factory=ComponentRates)
    phases: list[Phase] = field(default_factory=list)

    def __post_init__(self) -> None:
        object.__setattr__(self, "phases", tuple(self.phases))
        ends = [phase.until_step for phase in self.phases]
        steps = [step for step in ends[:-1] if step is not None]
        if len(steps) < len(ends[:-1]) or (ends and ends[-1] is not None):
            raise UserError("trainable.phases: every phase but the last needs until_step, and the last has none.")
        if steps != sorted(set(steps)) or (steps and steps[0] < 1):
            raise UserError(f"trainable.phases: until_step must rise from phase to phase, from 1 on, not {steps}.")

    def resolved(self, makes_adapter: bool) -> TextTraining:
        """The options as they hold for a run. Raises UserError for `full` in a run that makes an adapter."""
        phases = [(phase.until_step, self._modes(phase, makes_adapter)) for phase in self.phases or [Phase()]]
        training = TextTraining(tuple(phases), {name: getattr(self.learning_rates, name) for name in COMPONENTS})
        if makes_adapter and (full := training.components("full")):
            raise UserError(
                f"trainable.{full[0]}: full does not go with lora on a base, whose result is an adapter; set it to lora"
                " or frozen, or leave lora out."
            )
        return training

    def _modes(self, phase: Phase, makes_adapter: bool) -> dict[Component, Training]:
        asked = {name: getattr(phase, name) or getattr(self, name) for name in COMPONENTS}
        lvlm: Training = asked["lvlm"] or ("lora" if makes_adapter else "full")
        eyes: Training = "full" if lvlm == "full" else "frozen"
        rest: Training = "frozen" if makes_adapter else "full"
        defaults = {"lvlm": lvlm, "vision_tower": eyes, "projector": eyes}
        return {name: asked[name] or defaults.get(name, rest) for name in COMPONENTS}


@dataclass(frozen=True)
class TextTraining:
    """The phases of a run, each with its last step (None: to the end) and what it does with each component."""

    phases: tuple[tuple[int | None, dict[Component, Training]], ...]
    learning_rates: dict[Component, float | None]

    def phase_at(self, step: int) -> int:
        """The number of the phase that an optimiser step (from 0) falls into."""
        return next(n for n, (until, _) in enumerate(self.phases) if until is None or step < until)

    def components(self, how: Training) -> list[Component]:
        """The components that are trained so in some phase."""
        return [name for name in COMPONENTS if any(modes[name] == how for _, modes in self.phases)]

    @property
    def is_frozen(self) -> bool:
        """Whether nothing is ever trained."""
        return not self.components("full") and not self.components("lora")

    @property
    def freezes_lvlm(self) -> bool:
        """Whether the LVLM never changes, so that its states of captions and images can be cached."""
        trained = {*self.components("lora"), *self.components("full")}
        return trained.isdisjoint({"lvlm", "projector", "vision_tower"})


@dataclass(frozen=True)
class ValidationOptions:
    """Images held out of training, and what is done with them."""

    # Of the images, drawn from the run's seed; 0: none.
    share: float = 0.0
    every_steps: int = 50
    # At most so many are measured, and of these so many drawn and read (0: none).
    images: int = 64
    read_images: int = 16
    # Looks with neither a lower loss nor more letters, one after the other, until the stage ends; 0: never.
    patience: int = 0
    # A look that reads so much less of the letters than the base is no better, whatever its loss.
    lost_letters: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1 or not 0 <= self.lost_letters <= 1:
            raise UserError("validation: share must be at least 0 and under 1, and lost_letters from 0 to 1.")
        if min(self.every_steps, self.images) < 1 or min(self.read_images, self.patience) < 0:
            raise UserError(
                "validation: every_steps and images must be at least 1, read_images and patience not negative."
            )


MOST_PRIOR_IMAGES = 100_000


@dataclass(frozen=True)
class PriorOptions:
    """Prior preservation (DreamBooth, arXiv 2208.12242): the base's own images beside yours."""

    # How many are drawn; 0: none.
    images: int = 0
    # lambda: L = L_yours + lambda L_base's, as a share lambda / (1 + lambda) of the samples of a batch.
    weight: float = 1.0
    # A file of prompts, one a line; None: your own captions, without the trigger word.
    prompts: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.images <= MOST_PRIOR_IMAGES or not 0 < self.weight <= 100:
            raise UserError(
                f"prior: images must be from 0 to {MOST_PRIOR_IMAGES}, and weight positive and at most 100."
            )

    @property
    def share(self) -> float:
        """Of the samples of a batch, how many are the base's own."""
        return self.weight / (1 + self.weight)


MOST_DEVICES = 256  # more than any machine has GPUs


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
