"""What all tests share."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import settings

pytest_plugins = [
    "llava_fixtures",
    "pipeline_fixtures",
    "stand_in_fixtures",
    "storage_fixtures",
    "backend_fixtures",
    "table1_fixtures",
    "tool_fixtures",
    "trainer_fixtures",
]

# The same examples on every machine: green stays green. To look further: HYPOTHESIS_PROFILE=explore pytest
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

# No fonts but those that come along, whatever the machine has. With Noto's:
# VLAD_FONTS=/usr/share/fonts pytest tests/layout/test_fonts.py
os.environ.setdefault("VLAD_FONTS", "")

ROOT = Path(__file__).resolve().parents[1]
TINY = (
    "data.image_pixels=32 lvlm.hidden_size=32 lvlm.layers=1 lvlm.heads=2 lvlm.vision_pixels=32 composition.width=32"
    " composition.layers=1 composition.heads=2 composition.output_width=32 autoencoder.latent_channels=8"
    " autoencoder.decoder_width=16 layout.unet.block_channels=[32] refine.unet.block_channels=[32] sample.steps=1"
    " sample.batch_size=2"
).split()


def _untrained(folder: Path, *overrides: str) -> Path:
    import torch

    from vlad.config.load import load_config
    from vlad.training.build import build_pipeline, new_parts

    torch.manual_seed(0)
    config = load_config(ROOT / "configs" / "tiny.yaml", [*TINY, *overrides])
    build_pipeline(config, new_parts(config)).save_pretrained(folder / "pipeline")
    return folder


@pytest.fixture(scope="session")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of ours with random weights, 32 pixels."""
    return _untrained(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="session")
def without_layouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without stage one, as a run with layout.kind: none publishes it."""
    return _untrained(tmp_path_factory.mktemp("without"), "layout.kind=none")


@pytest.fixture(scope="session")
def stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion with random weights, in diffusers' format."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("sd")
    words = [*"abcdefghijklmnopqrstuvwxyz'\"", *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz'\"")]
    vocabulary = {word: number for number, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=len(vocabulary) - 2,
        eos_token_id=len(vocabulary) - 1,
    )
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=[8], norm_num_groups=2),
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77),
        unet=UNet2DConditionModel(
            sample_size=8,
            block_out_channels=[8, 8],
            norm_num_groups=2,
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=2,
            down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
            up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
        ),
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder / "pipeline")
    return folder / "pipeline"
