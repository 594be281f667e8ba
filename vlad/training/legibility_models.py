"""Models behind the legibility losses: the bundled OCR recogniser, and a segmenter fitted to this run's latents."""

from __future__ import annotations

import sys

from safetensors.torch import load_file

from vlad.config.schema import Config
from vlad.data.collate import collate
from vlad.data.dataset import first_samples
from vlad.data.options import SyntheticOptions
from vlad.data.shard_sets import ShardSets
from vlad.data.signs import render_sign
from vlad.losses.extra.character_segmentation import CharacterSegmenter, fit_segmenter
from vlad.losses.extra.legibility_losses import LegibilityLosses
from vlad.losses.extra.ocr_perceptual import Recogniser
from vlad.models.autoencoder import encode
from vlad.training.parts import Parts
from vlad.types import Batch, Sample
from vlad.utils.atomic_files import save_tensors
from vlad.utils.distributed import derived_seed, is_main_process

SEGMENTER = "segmenter.safetensors"
FIT_STEPS, FIT_BATCH = 400, 64
RUN_IMAGES = 4  # one in so many images of a batch is the run's, the others are rendered signs


def build_legibility(config: Config, parts: Parts, shards: ShardSets) -> LegibilityLosses | None:
    """The networks behind losses.ocr_weight and losses.segmentation_weight; None where both are 0.

    A segmenter is fitted once and kept in the run directory.
    """
    losses = config.losses
    if not losses.ocr_weight and not losses.segmentation_weight:
        return None
    recogniser = Recogniser() if losses.ocr_weight else None
    segmenter = _segmenter(config, parts, shards) if losses.segmentation_weight else None
    return LegibilityLosses(parts.autoencoder, recogniser, segmenter)


def _segmenter(config: Config, parts: Parts, shards: ShardSets) -> CharacterSegmenter:
    path = config.directory / "refine" / SEGMENTER
    channels = parts.refine_unet.config.out_channels
    if path.is_file():
        segmenter = CharacterSegmenter(channels)
        segmenter.load_state_dict(load_file(path))
        return segmenter.requires_grad_(False).eval()
    images = first_samples(shards, config.data.stream(config.seed), 1000)
    options = SyntheticOptions(
        size_pixels=config.data.image_pixels, seed=derived_seed(config.seed, "segmenter") % 2**31
    )
    device = next(parts.autoencoder.parameters()).device

    def batch(step: int) -> Batch:
        return collate(_mixed(step, images, options)).to(device)

    segmenter, right = fit_segmenter(
        lambda read: encode(parts.autoencoder, read.images), batch, channels, FIT_STEPS, config.seed
    )
    if is_main_process():
        print(f"[refine] segmenter: {right:.0%} of the letters' places found", file=sys.stderr)
        save_tensors(segmenter.state_dict(), path)
    return segmenter


def _mixed(step: int, images: list[Sample], options: SyntheticOptions) -> list[Sample]:
    """A batch of rendered signs, with the run's own images among them."""
    own = [images[(step * FIT_BATCH // RUN_IMAGES + place) % len(images)] for place in range(FIT_BATCH // RUN_IMAGES)]
    return own + [render_sign(options, step * FIT_BATCH + place) for place in range(FIT_BATCH - len(own))]
