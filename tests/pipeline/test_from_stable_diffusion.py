"""At step 0 a pipeline that starts from Stable Diffusion generates Stable Diffusion's own images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from vlad.config.load import load_config
from vlad.pipeline.vlad_pipeline import VLADPipeline
from vlad.profiling.stand_in import StandInOptions, save_stand_in
from vlad.training.build import build_parts, build_pipeline
from vlad.types import Layout, TextLine

PROMPTS = ['a blue sign that says "HOUSE"', 'a red poster that says "OPEN"']
SEEDS = [3, 4]
LAYOUT = Layout((TextLine("HOUSE", ((0.1, 0.1), (0.9, 0.1), (0.9, 0.4), (0.1, 0.4))),))
CONFIG = """
name: start
data: {{image_pixels: 64, batch_size: 2}}
stable_diffusion: {{path: {path}, own_text: true}}
lvlm: {{hidden_size: 32, layers: 1, heads: 2, vision_hidden_size: 32, vision_layers: 1, vision_pixels: 32}}
composition: {{width: 32, layers: 1, heads: 2, output_width: 40, max_characters: 8}}
sample: {{steps: 4, batch_size: 2}}
"""


def untrained(folder: Path, path: Path) -> VLADPipeline:
    (folder / "config.yaml").write_text(CONFIG.format(path=path), encoding="utf-8")
    torch.manual_seed(0)
    parts, config = build_parts(load_config(folder / "config.yaml"))
    build_pipeline(config, parts).save_pretrained(folder / "pipeline")
    pipeline = VLADPipeline.from_pretrained(folder / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


# Another scale, another shift, more channels, a mean for each channel: the autoencoder's config decides.
AUTOENCODERS = {
    "sd15": StandInOptions(),
    "sd21": StandInOptions(latent_channels=6, autoencoder={"scaling_factor": 0.7, "shift_factor": None}),
    "sdxl": StandInOptions(
        levels=3, autoencoder={"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [0.9, 1.1, 1.2, 0.8]}
    ),
}


@pytest.mark.parametrize("kind", ["sd15", "sd21", "sdxl"])
def test_at_step_0_the_images_are_stable_diffusions(kind: str, tmp_path: Path) -> None:
    save_stand_in(kind, tmp_path / kind, AUTOENCODERS[kind])  # type: ignore[arg-type]
    pipeline = untrained(tmp_path, tmp_path / kind)
    original = DiffusionPipeline.from_pretrained(tmp_path / kind)
    original.set_progress_bar_config(disable=True)

    for scale, negative in ((7.5, None), (1.0, None), (5.0, "blurred")):
        wanted = original(
            PROMPTS,
            num_inference_steps=4,
            guidance_scale=scale,
            height=64,
            width=64,
            negative_prompt=None if negative is None else [negative] * 2,
            generator=[torch.Generator().manual_seed(2 * seed + 1) for seed in SEEDS],
            output_type="np",
        ).images
        # The same solver of the same config; a new one, as it has a state.
        pipeline.register_modules(refine_scheduler=type(original.scheduler).from_config(original.scheduler.config))
        found = pipeline(
            PROMPTS, SEEDS, [LAYOUT] * 2, text_scale=scale, layout_scale=1.0, negative_prompt=negative, output_type="np"
        ).images
        np.testing.assert_allclose(found, wanted, atol=2e-4)
        assert wanted.std() > 0.01 and np.abs(wanted[0] - wanted[1]).max() > 0.01


def test_layout_and_layout_scale_have_no_effect_yet(tmp_path: Path) -> None:
    save_stand_in("sd15", tmp_path / "sd15")
    pipeline = untrained(tmp_path, tmp_path / "sd15")

    def generate(layout_scale: float, text: str) -> np.ndarray:
        layout = Layout((TextLine(text, LAYOUT.lines[0].polygon),))
        return pipeline(PROMPTS[:1], 0, [layout], layout_scale=layout_scale, output_type="np").images

    np.testing.assert_allclose(generate(3.0, "HOUSE"), generate(1.0, "OPEN"), atol=1e-4)


def test_both_stages_start_from_the_base(tmp_path: Path) -> None:
    save_stand_in("sd21", tmp_path / "sd21")
    pipeline = untrained(tmp_path, tmp_path / "sd21")

    assert pipeline.layout_unet.config.in_channels == 4 and pipeline.refine_unet.config.in_channels == 8
    assert pipeline.config.process["layout"] == pipeline.config.process["refine"]
    assert pipeline.config.process["refine"]["prediction"] == "v_prediction"
    assert pipeline.config.process["refine"]["beta_end"] == 0.012
    once = pipeline(PROMPTS[:1], 5)
    assert np.array_equal(once.images[0], pipeline(PROMPTS[:1], 5).images[0])
    assert once.images[0].size == (64, 64)
