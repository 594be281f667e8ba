"""A backend with an untrained model that edits: its images are noise, its behaviour is that of a trained one."""

import pytest
import torch

from vlad.config.load import load_config
from vlad.training.build import build_pipeline, new_parts
from vlad.webui.backend import Backend

CONFIG = """
data: {image_pixels: 32}
lvlm: {hidden_size: 32, layers: 1, heads: 2, vision_hidden_size: 32, vision_layers: 1, vision_pixels: 32}
composition: {width: 32, layers: 1, heads: 2, output_width: 32}
autoencoder: {latent_channels: 8, decoder_width: 16, decoder_layers: 1}
layout: {unet: {block_channels: [32, 32], heads: 2}, noise: {prediction: sample}}
refine: {unet: {block_channels: [32, 32], heads: 2}, noise: {prediction: sample}, editing_share: 0.5}
sample: {steps: 2, batch_size: 2}
"""


@pytest.fixture(scope="session")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Backend:
    folder = tmp_path_factory.mktemp("backend")
    (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
    config = load_config(folder / "config.yaml")
    torch.manual_seed(0)
    parts = new_parts(config)
    parts.autoencoder.fit(torch.rand(64, 3, 32, 32) * 2 - 1)
    pipeline = build_pipeline(config, parts)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipeline.set_progress_bar_config(disable=True)
    return Backend(pipeline, "runs/untrained", folder / "images")
