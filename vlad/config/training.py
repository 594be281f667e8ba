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

    # Optimiser steps. 0 skips the layout stage of a run with a base: its layout UNet stays as it is.
    steps: int = 1000
    # The peak of the schedule: linear warm-up, plateau, cosine to zero.
    learning_rate: float = 1e-3
    # adamw-8bit (bitsandbytes) keeps the moments of large matrices in 8 bits: 2 bytes a parameter in place of 8.
    optimizer: Literal["adamw", "adamw-8bit"] = "adamw"
    # One kernel for the whole AdamW step. Not with 16-mixed, whose loss scaler must see the gradients before.
    fused: bool = True
    # Of matrices; biases, norms, the temperature and embedding tables do not decay.
    weight_decay: float = 0.01
    # AdamW's decay rate of the first moment.
    beta1: float = 0.9
    # AdamW's decay rate of the second moment.
    beta2: float = 0.99
    # Steps of linear warm-up.
    warmup_steps: int = 100
    # The share of the steps before the cosine to zero begins: 0.4 leaves it the last 60 %.
    constant_share: float = 0.4
    # The largest norm of all gradients together; 0 does not clip.
    clip_grad_norm: float = 1.0
    # Batches whose gradients are summed up for one step. They are no negatives of each other in L_align.
    accumulate_batches: int = 1
    # Decay a step of the EMA that samples, evaluations and the published weights use.
    ema_decay: float = 0.99
    # Half-lives, in steps, of further averages beside it.
    ema_half_lives: tuple[float, ...] = ()
    # Widths (shares of the training) of power-function averages, whose snapshots give any width afterwards.
    ema_power_widths: tuple[float, ...] = ()
    # Steps between these snapshots; 0: none.
    ema_snapshot_every_steps: int = 0
    # Keeps the averages in main memory, for models that leave the GPU no room for them.
    ema_on_cpu: bool = False
    # Precision of this stage; None: trainer.precision. A CPU without bf16 instructions trains in float32 instead.
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

    # L_align alone, where `align_stage` asks for it.
    align: OptimOptions = field(default_factory=OptimOptions)
    # A new PatchAutoencoder's decoder, or adapters on a base's (`lora.decoder`).
    autoencoder: OptimOptions = field(default_factory=OptimOptions)
    # The layout UNet (TLG), with the text side.
    layout: OptimOptions = field(default_factory=OptimOptions)
    # The refine UNet (VFE); with `refine.train_text` the text side, too.
    refine: OptimOptions = field(default_factory=OptimOptions)


Component = Literal["vision_tower", "projector", "lvlm", "composition", "spelling"]


COMPONENTS: tuple[Component, ...] = get_args(Component)


Training = Literal["frozen", "lora", "full"]


@dataclass(frozen=True)
class ComponentRates:
    """Learning rates of single components; None: the stage's."""

    # Of the LVLM's vision tower.
    vision_tower: float | None = None
    # Of the projector from the vision tower into the LVLM.
    projector: float | None = None
    # Of the language model itself.
    lvlm: float | None = None
    # Of the CCM.
    composition: float | None = None
    # Of the spelling tokens' encoder.
    spelling: float | None = None

    def __post_init__(self) -> None:
        for entry in fields(self):
            rate = getattr(self, entry.name)
            if rate is not None and not rate > 0:
                raise UserError(f"trainable.learning_rates.{entry.name} must be positive, not {rate}.")


@dataclass(frozen=True)
class Phase:
    """What is trained until a step; a component that is left out is trained as `trainable` says outside of phases."""

    # The step at which the next phase begins, counted over all stages that train the text side; None in the last one.
    until_step: int | None = None
    # As `trainable.vision_tower`.
    vision_tower: Training | None = None
    # As `trainable.projector`.
    projector: Training | None = None
    # As `trainable.lvlm`.
    lvlm: Training | None = None
    # As `trainable.composition`.
    composition: Training | None = None
    # As `trainable.spelling`.
    spelling: Training | None = None


@dataclass(frozen=True)
class TrainableOptions:
    """How each component of the text side is trained: frozen, through adapters (lora) or in full.

    Where a run makes an adapter (`base` with `lora`), None is lora for the LVLM and frozen for the rest.
    """

    # The LVLM's vision tower. None: full where the LVLM is, else frozen.
    vision_tower: Training | None = None
    # The projector from the vision tower into the LVLM. None: full where the LVLM is, else frozen.
    projector: Training | None = None
    # The language model itself. None: full.
    lvlm: Training | None = None
    # The CCM. None: full.
    composition: Training | None = None
    # The spelling tokens' encoder. None: full.
    spelling: Training | None = None
    # Learning rates of single components.
    learning_rates: ComponentRates = field(default_factory=ComponentRates)
    # Phases that train other components one after the other; empty: one phase.
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
        """The options with their defaults for a run. Raises UserError for `full` in a run that makes an adapter."""
        phases = [(phase.until_step, self._modes(phase, makes_adapter)) for phase in self.phases or [Phase()]]
        training = TextTraining(tuple(phases), {name: getattr(self.learning_rates, name) for name in COMPONENTS})
        if makes_adapter and (full := training.components("full")):
            raise UserError(
                f"trainable.{full[0]}: full does not go with lora on a base, whose result is an adapter; set it to lora"
                " or frozen, or leave lora out."
            )
        return training

    def _modes(self, phase: Phase, makes_adapter: bool) -> dict[Component, Training]:
        given = {name: getattr(phase, name) or getattr(self, name) for name in COMPONENTS}
        lvlm: Training = given["lvlm"] or ("lora" if makes_adapter else "full")
        vision: Training = "full" if lvlm == "full" else "frozen"
        rest: Training = "frozen" if makes_adapter else "full"
        defaults = {"lvlm": lvlm, "vision_tower": vision, "projector": vision}
        return {name: given[name] or defaults.get(name, rest) for name in COMPONENTS}


@dataclass(frozen=True)
class TextTraining:
    """How a run trains its text side: phases, each with its end (None: to the last step) and every component's mode."""

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
    """Validation: images held out of training, early stopping and the best weights."""

    # The share of the images that is held out of training, chosen by the run's seed; 0: none.
    share: float = 0.0
    # Steps between two validation passes.
    every_steps: int = 50
    # The most held-out images that a pass measures the loss of.
    images: int = 64
    # The most captions of these that a pass generates images for, for OCR to read; 0: none.
    read_images: int = 16
    # Passes in a row without a lower loss or more letters read, after which the stage ends; 0: never.
    patience: int = 0
    # A pass that reads this much less of the letters than the base (0..1) is not the best, whatever its loss.
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
    """Prior preservation (DreamBooth, arXiv 2208.12242): images that the base generates, trained beside yours."""

    # How many images the base generates; 0: none.
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
        """The share of the samples of a batch that the base has generated."""
        return self.weight / (1 + self.weight)


MOST_DEVICES = 256  # more than any machine has GPUs


@dataclass(frozen=True)
class TrainerOptions:
    """Where and how a run computes, saves and logs."""

    # auto takes a GPU where there is one.
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    # Processes on each machine; auto: one a GPU, or one process without GPUs.
    devices: str = "auto"
    # Machines; torchrun or srun starts the run on each.
    nodes: int = 1
    # With several processes each holds everything (ddp), or a part of the UNets and of the LVLM's layers (fsdp).
    strategy: Literal["ddp", "fsdp"] = "ddp"
    # Of all stages that set none of their own. bf16-true also stores frozen matrices in bf16.
    precision: Precision = "32-true"
    # Keeps the UNets' and the autoencoder's weights in torch's channels-last memory format, which is faster; those
    # of a `base` keep their own.
    channels_last: bool = True
    # Activation checkpointing: what is computed again in the backward pass; less memory, about a third more time.
    activation_checkpointing: Checkpointing = "none"
    # What torch.compile compiles of the UNets: the block that they repeat, or all.
    compile: Compilation = "none"
    # The attention kernels of the UNets; auto takes xformers where it runs, else torch's SDPA.
    attention: Literal["auto", "xformers", "sdpa", "flash", "plain"] = "auto"
    # Steps between two checkpoints.
    checkpoint_every_steps: int = 250
    # How many of the newest checkpoints are kept.
    keep_checkpoints: int = 2
    # Keeps a checkpoint for good every so many steps, a multiple of checkpoint_every_steps; 0: none.
    keep_every_steps: int = 0
    # Writes checkpoints in a thread while training goes on; false: training waits for the disk.
    background_saving: bool = True
    # Where a checkpoint cannot be written: stop (after one more try), or warn and go on.
    on_save_failure: Literal["stop", "go_on"] = "stop"
    # Where a loss or gradient is not finite: stop, or skip the step.
    on_nonfinite: Literal["stop", "skip"] = "stop"
    # How long several processes wait for one that does not answer.
    timeout_minutes: float = 10.0
    # Steps between two sample grids; 0: none.
    sample_every_steps: int = 500
    # Steps between two lines of the logs.
    log_every_steps: int = 10
    # Weights & Biases (extra wandb) beside TensorBoard and CSV; offline keeps the run on the disk, for `wandb sync`.
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
