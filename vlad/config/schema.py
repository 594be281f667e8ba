"""The options of a run: the dataclasses of all components composed into one frozen `Config`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vlad.config.training import (
    PriorOptions,
    TextTraining,
    TrainableOptions,
    TrainerOptions,
    TrainOptions,
    ValidationOptions,
)
from vlad.data.options import DataOptions
from vlad.diffusion.options import NoiseOptions
from vlad.lora.options import LoraOptions
from vlad.losses.options import LossOptions
from vlad.models.options import AutoencoderOptions, CompositionOptions, LVLMOptions, StableDiffusionOptions, UNetOptions
from vlad.pipeline.options import SampleOptions
from vlad.utils.errors import UserError


@dataclass(frozen=True)
class LayoutOptions:
    """Stage one (TLG): prompt to z, the latents of a glyph map."""

    # none leaves stage one out, and z with it: the ablation of Table II.
    kind: Literal["latents", "none"] = "latents"
    # The layout UNet.
    unet: UNetOptions = field(default_factory=UNetOptions)
    # Its noise schedule and prediction.
    noise: NoiseOptions = field(default_factory=NoiseOptions)


@dataclass(frozen=True)
class RefineOptions:
    """Stage two (VFE): prompt and z to image."""

    # The refine UNet.
    unet: UNetOptions = field(default_factory=UNetOptions)
    # Its noise schedule and prediction.
    noise: NoiseOptions = field(default_factory=NoiseOptions)
    # Trains the text side here, too, after stage one has.
    train_text: bool = False
    # The share of samples trained for inpainting: a part of the image is given, the rest is generated. Above 0 the UNet
    # has input channels for it; to a base without them they are added with zero weights.
    editing_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.editing_share <= 1:
            raise UserError(f"refine.editing_share must be a share, 0 to 1, not {self.editing_share}.")


@dataclass(frozen=True)
class Config:
    """Everything that shapes a run."""

    # The run's name, and that of its folder.
    name: str = "tiny"
    # The folder of all runs.
    runs: str = "runs"
    # Decides every random number of the run.
    seed: int = 0
    # A run or pipeline to fine-tune; its models take the place of those described here. None: new models.
    base: str | None = None
    # A Stable Diffusion that both UNets, the autoencoder and the noise schedule come from. None: new ones.
    stable_diffusion: StableDiffusionOptions | None = None
    # A run of `align_stage: only` whose LVLM, CCM and alignment heads this one starts from; a base brings its own.
    text_base: str | None = None
    # A stage of L_align alone: before the others (first), or nothing but it (only).
    align_stage: Literal["none", "first", "only"] = "none"
    # auto continues what the run directory holds; none refuses one that holds a run; else the path of another run's
    # checkpoint to begin from.
    resume: str = "auto"
    # Shards, batches, image sizes.
    data: DataOptions = field(default_factory=DataOptions)
    # The language model with a vision tower that reads prompts.
    lvlm: LVLMOptions = field(default_factory=LVLMOptions)
    # The CCM and the spelling tokens.
    composition: CompositionOptions = field(default_factory=CompositionOptions)
    # Images to latents and back.
    autoencoder: AutoencoderOptions = field(default_factory=AutoencoderOptions)
    # Stage one: the layout UNet (TLG).
    layout: LayoutOptions = field(default_factory=LayoutOptions)
    # Stage two: the refine UNet (VFE).
    refine: RefineOptions = field(default_factory=RefineOptions)
    # Weights and kinds of the losses, dropout.
    losses: LossOptions = field(default_factory=LossOptions)
    # How each component of the text side is trained.
    trainable: TrainableOptions = field(default_factory=TrainableOptions)
    # Steps and optimiser of each stage.
    train: TrainOptions = field(default_factory=TrainOptions)
    # Devices, precision, checkpoints, logs.
    trainer: TrainerOptions = field(default_factory=TrainerOptions)
    # Defaults of sampling.
    sample: SampleOptions = field(default_factory=SampleOptions)
    # LoRA: with a base, adapters are trained and nothing else; with a Stable Diffusion, its UNets carry them.
    lora: LoraOptions | None = None
    # Images held out of training, early stopping.
    validation: ValidationOptions = field(default_factory=ValidationOptions)
    # Prior preservation: images of the base's beside yours.
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
