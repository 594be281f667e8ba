"""A folder with shards of 16 signs of 32 pixels and the config of a run that trains tiny models on them."""

from __future__ import annotations

from pathlib import Path

from vlad.data.options import SyntheticOptions
from vlad.data.shards.writer import write_manifest, write_shards
from vlad.data.signs import render_sign
from vlad.types import Sample

CONFIG = """
name: small
runs: {folder}/runs
data: {{shards: {folder}/shards, image_pixels: 32, batch_size: 4, workers: 0, shuffle_window: 8}}
lvlm: {{hidden_size: 32, layers: 1, heads: 2, vision_hidden_size: 32, vision_layers: 1, vision_pixels: 32}}
composition: {{width: 32, layers: 1, heads: 2, output_width: 32}}
autoencoder: {{latent_channels: 8, decoder_width: 16, decoder_layers: 1}}
layout: {{unet: {{block_channels: [32], heads: 2}}}}
refine: {{unet: {{block_channels: [32], heads: 2}}}}
trainer: {{accelerator: cpu}}
"""


def small_signs() -> list[Sample]:
    return [render_sign(SyntheticOptions(size_pixels=32, count=16), number) for number in range(16)]


def write_small_shards(folder: Path, samples: list[Sample]) -> None:
    folder.mkdir()
    write_manifest(folder, write_shards(samples, folder, 8), {})


def write_small_world(folder: Path) -> Path:
    """Writes FOLDER/shards and FOLDER/config.yaml."""
    write_small_shards(folder / "shards", small_signs())
    (folder / "config.yaml").write_text(CONFIG.format(folder=folder), encoding="utf-8")
    return folder
