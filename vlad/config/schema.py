"""The options of a run: the components' dataclasses composed, read from YAML and overrides, frozen.

No OmegaConf node leaves this module. A file may start from another: `inherit: tiny.yaml` (beside it).
"""

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
    # The share of samples trained as edits: a part of the image is given, the rest is drawn (docs/sampling.md). Above
    # 0 the UNet has input channels for it from the start; those of a base that has none are added and weigh nothing.
    editing_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.editing_share <= 1:
            raise UserError(f"refine.editing_share must be a share, 0 to 1, not {self.editing_share}.")


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
    # For small sets: images held out, and images of the base's own mixed in.
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
