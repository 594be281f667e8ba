"""Stand-ins for the models of Table I: their classes with random weights, saved as the real ones are."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DDPMScheduler,
    IFPipeline,
    IFSuperResolutionPipeline,
    StableDiffusionPipeline,
    StableDiffusionUpscalePipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.deepfloyd_if.watermark import IFWatermarker
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from vlad.eval.generators.baselines import CharacterUNet

BLOCKS = {
    "block_out_channels": [8, 8],
    "norm_num_groups": 2,
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
}
UP = ["CrossAttnUpBlock2D", "UpBlock2D"]


@pytest.fixture(scope="session")
def controlnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ControlNet that does something: the published ones begin with zeros, too, but were trained."""
    torch.manual_seed(1)
    model = ControlNetModel(conditioning_embedding_out_channels=(4,), **BLOCKS)
    for name, weight in model.named_parameters():
        if "controlnet" in name:
            torch.nn.init.normal_(weight, std=0.5)
    folder = tmp_path_factory.mktemp("controlnet")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def character_unet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TextDiffuser's UNet as its training saves it: 17 channels, and a config that says 4."""
    torch.manual_seed(2)
    unet = UNet2DConditionModel(sample_size=8, in_channels=17, up_block_types=UP, **BLOCKS)
    model = CharacterUNet(unet)
    torch.nn.init.normal_(model.segmap_conv[-1].weight)
    folder = tmp_path_factory.mktemp("textdiffuser")
    unet.save_config(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "in_channels": 4}), encoding="utf-8")
    weights = {name.removeprefix("unet."): value for name, value in model.state_dict().items()}
    save_file(weights, folder / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def deepfloyd(tmp_path_factory: pytest.TempPathFactory, stable_diffusion: Path) -> Path:
    """Three stages: 8, 16 and 64 pixels, with a watermark that is white."""
    folder = tmp_path_factory.mktemp("deepfloyd")
    torch.manual_seed(3)
    letters = {
        letter: number for number, letter in enumerate(["<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"])
    }
    words = Tokenizer(models.WordLevel(letters, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    text = T5EncoderModel(T5Config(vocab_size=len(letters), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    noise = DDPMScheduler(variance_type="learned_range")
    watermarker = IFWatermarker()
    watermarker.watermark_image.fill_(255)
    first = IFPipeline(
        tokenizer=tokenizer,
        text_encoder=text,
        unet=UNet2DConditionModel(sample_size=8, in_channels=3, out_channels=6, up_block_types=UP, **BLOCKS),
        scheduler=noise,
        safety_checker=None,
        feature_extractor=None,
        watermarker=watermarker,
        requires_safety_checker=False,
    )
    first.save_pretrained(folder / "IF-I")
    second = IFSuperResolutionPipeline(
        tokenizer=tokenizer,
        text_encoder=text,
        unet=UNet2DConditionModel(
            sample_size=16, in_channels=6, out_channels=6, class_embed_type="timestep", up_block_types=UP, **BLOCKS
        ),
        scheduler=noise,
        image_noising_scheduler=DDPMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )
    second.save_pretrained(folder / "IF-II")
    plain = StableDiffusionPipeline.from_pretrained(stable_diffusion)
    third = StableDiffusionUpscalePipeline(
        vae=AutoencoderKL(
            block_out_channels=[8, 8, 8],
            norm_num_groups=2,
            down_block_types=["DownEncoderBlock2D"] * 3,
            up_block_types=["UpDecoderBlock2D"] * 3,
        ),
        text_encoder=plain.text_encoder,
        tokenizer=plain.tokenizer,
        unet=UNet2DConditionModel(sample_size=16, in_channels=7, num_class_embeds=1000, up_block_types=UP, **BLOCKS),
        low_res_scheduler=DDPMScheduler(),
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
    )
    third.save_pretrained(folder / "upscaler")
    return folder
