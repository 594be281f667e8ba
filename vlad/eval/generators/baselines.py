"""Table I's baseline models, each called in one way: prompts, seeds, layouts -> images.

ControlNet     a Stable Diffusion and a ControlNet of diffusers that takes the layout's glyph map or its edges
DeepFloyd IF   three pipelines: 64 pixels, enlarged four times, enlarged four times again
TextDiffuser   a Stable Diffusion whose UNet takes 17 channels: noisy latents 4, inpainting mask 1, masked latents 4,
               character mask 8 (arXiv 2305.10855)

Loaded from local folders alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from vlad.eval.generators.text_to_image import generators_of, load_diffusers_pipeline
from vlad.layout.control_images import ALPHABET, character_mask, glyph_edges
from vlad.layout.glyph_map import render_glyph_map
from vlad.models.weight_files import load_complete
from vlad.pipeline.folders import pipeline_class
from vlad.types import Layout
from vlad.utils.errors import UserError
from vlad.utils.failures import user_errors

Hint = Literal["edges", "glyphs"]
# DeepFloyd's pipelines: the second takes the prompt's embeddings, the third encodes the prompt itself.
STAGES = ("IFPipeline", "IFSuperResolutionPipeline", "StableDiffusionUpscalePipeline")
STABLE_DIFFUSION = "StableDiffusionPipeline"
UPSCALER_NOISE = 100  # noise level of DeepFloyd's third stage in MARIO-Eval
TEXTDIFFUSER_CHANNELS, LATENT_CHANNELS, MASK_CHANNELS, MASK_CLASSES = 17, 4, 8, 128


class GlyphControlNet:
    """Stable Diffusion (1, 2 or XL) with a ControlNet that takes an image of the letters."""

    def __init__(
        self, folder: Path, controlnet: Path, hint: Hint, pixels: int, scheduler: str | None, **arguments: Any
    ) -> None:
        """`arguments` go to the pipeline: num_inference_steps, guidance_scale, controlnet_conditioning_scale."""
        if not controlnet.is_dir():
            raise UserError(f"There is no ControlNet at {controlnet}; put its folder there, or name another place.")
        remedy = "give the folder of a ControlNet in diffusers' format"
        control = load_complete(ControlNetModel, controlnet, str(controlnet), remedy, local_files_only=True)
        from diffusers import AutoPipelineForText2Image  # late: it imports every pipeline that diffusers has

        steps = arguments.get("num_inference_steps")
        self.pipeline = load_diffusers_pipeline(folder, AutoPipelineForText2Image, scheduler, steps, controlnet=control)
        unet = getattr(self.pipeline, "unet", None)
        if unet is not None:
            _check_text_width(controlnet, control.config.cross_attention_dim, folder, unet.config.cross_attention_dim)
        self.hint, self.pixels, self.arguments = hint, pixels, arguments

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], layouts: Sequence[Layout]) -> list[Image.Image]:
        """An image a prompt."""
        result = self.pipeline(
            prompt=list(prompts),
            image=[hint_image(layout, self.hint, self.pixels) for layout in layouts],
            height=self.pixels,
            width=self.pixels,
            generator=generators_of(seeds),
            output_type="pil",
            **self.arguments,
        )
        return [image.convert("RGB") for image in result.images]


def _check_text_width(model: Path, taken: Any, folder: Path, given: Any) -> None:
    if taken != given:
        raise UserError(
            f"{model} takes text of {taken} channels, and the Stable Diffusion in {folder} has {given}; name the"
            " Stable Diffusion that it was trained from."
        )


def hint_image(layout: Layout, hint: Hint, pixels: int) -> Image.Image:
    """The ControlNet's image of a layout: white on black, RGB."""
    if hint == "edges":
        return Image.fromarray(glyph_edges(layout, pixels, pixels)).convert("RGB")
    glyphs = np.round(render_glyph_map(layout, pixels, pixels) * 255).astype(np.uint8)
    return Image.fromarray(glyphs).convert("RGB")


class DeepFloydIF:
    """Three stages; the first one's text encoder encodes the prompt for the second as well."""

    def __init__(self, folders: Sequence[Path], steps: int | None, guidance: float | None) -> None:
        """`folders` of the three stages; None leaves steps and the first stage's guidance to the pipelines."""
        for number, (folder, expected) in enumerate(zip(folders, STAGES, strict=True), start=1):
            found = pipeline_class(folder)
            if found is not None and found != expected:
                raise UserError(
                    f"Stage {number} of DeepFloyd IF is of the class {expected}, and {folder} holds {found}; name the"
                    " three stages' folders in their order."
                )
        first, second, third = folders
        self.first = load_diffusers_pipeline(first, steps=steps)
        # The second stage's text encoder is the first one's.
        self.second = load_diffusers_pipeline(second, steps=steps, text_encoder=None)
        safety = {
            name: part
            for name in ("feature_extractor", "safety_checker", "watermarker")
            if (part := getattr(self.first, name, None)) is not None
        }
        self.third = load_diffusers_pipeline(third, steps=steps, **safety)
        self.steps = {} if steps is None else {"num_inference_steps": steps}
        self.guidance = {} if guidance is None else {"guidance_scale": guidance}

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """An image a prompt, watermarked where the first stage's folder has a watermark."""
        positive, negative = self.first.encode_prompt(list(prompts))
        generators = generators_of(seeds)
        shared: dict[str, Any] = {
            "prompt_embeds": positive,
            "negative_prompt_embeds": negative,
            "generator": generators,
            "output_type": "pt",
            **self.steps,
        }
        small = self.first(**shared, **self.guidance).images
        medium = self.second(image=small, **shared).images
        result = self.third(
            prompt=list(prompts), image=medium, generator=generators, noise_level=UPSCALER_NOISE, **self.steps
        )
        return [image.convert("RGB") for image in result.images]


class CharacterUNet(nn.Module):
    """TextDiffuser's UNet: diffusers' UNet, and an encoder of character masks to eight channels.

    Its parts' names are those of the published weights.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet
        self.word_embedding = nn.Embedding(MASK_CLASSES, MASK_CHANNELS)
        layers: list[nn.Module] = []
        for before, after in ((MASK_CHANNELS, 32), (32, 64)):
            layers += [nn.Conv2d(before, after, 3, 1, 1), nn.ReLU(), nn.BatchNorm2d(after), nn.MaxPool2d(2, 2)]
        self.segmap_conv = nn.Sequential(*layers, nn.Conv2d(64, MASK_CHANNELS, 3, 1, 1))

    def encode_mask(self, classes: Tensor) -> Tensor:
        """Character masks (B 4h 4w, int64) -> B 8 h w."""
        return self.segmap_conv(self.word_embedding(classes).permute(0, 3, 1, 2))

    def forward(self, x_t: Tensor, t: Tensor, text: Tensor, masked: Tensor, characters: Tensor) -> Tensor:
        """Noisy latents B 4 h w, text B L D, mask and masked latents B 5 h w, character channels B 8 h w -> B 4 h w."""
        return self.unet(torch.cat([x_t, masked, characters], dim=1), t, encoder_hidden_states=text).sample


def load_character_unet(folder: Path) -> CharacterUNet:
    """The UNet of a folder as TextDiffuser's training saves it. Raises UserError for other weights."""
    if not (folder / "config.json").is_file():
        raise UserError(f"There is no TextDiffuser UNet at {folder}; name the folder with its config.json.")
    with user_errors(f"{folder}: TextDiffuser's UNet", unreadable="name the folder that its training has saved"):
        config = {**UNet2DConditionModel.load_config(folder), "in_channels": TEXTDIFFUSER_CHANNELS}
        # The published config has the channels of the Stable Diffusion that training started from.
        model = CharacterUNet(UNet2DConditionModel.from_config(config))
        safe = folder / "diffusion_pytorch_model.safetensors"
        stored = load_file(safe) if safe.is_file() else torch.load(safe.with_suffix(".bin"), "cpu", weights_only=True)
        own = tuple(name for name, _ in model.named_children() if name != "unet")
        model.load_state_dict({k if k.startswith(own) else f"unet.{k}": value for k, value in stored.items()})
    return model.requires_grad_(False).eval()


class TextDiffuser:
    """TextDiffuser's UNet in the Stable Diffusion that it was trained from, with character masks of the layout."""

    def __init__(
        self, folder: Path, unet: Path, pixels: int, steps: int, guidance: float, scheduler: str | None
    ) -> None:
        found = pipeline_class(folder)
        if found is not None and found != STABLE_DIFFUSION:
            raise UserError(
                f"TextDiffuser needs a {STABLE_DIFFUSION}, and {folder} holds {found}; name another folder."
            )
        self.unet = load_character_unet(unet)
        self.pipeline = load_diffusers_pipeline(folder, scheduler=scheduler, steps=steps, unet=None)
        for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
            if getattr(self.pipeline, part, None) is None:
                raise UserError(f"The pipeline in {folder} has no {part}, which TextDiffuser needs; save it again.")
        channels = self.pipeline.vae.config.latent_channels
        if channels != LATENT_CHANNELS:
            raise UserError(
                f"TextDiffuser's latents have {LATENT_CHANNELS} channels, and those of {folder} {channels}; name a"
                " Stable Diffusion 1.5."
            )
        text = self.pipeline.text_encoder.config.hidden_size
        _check_text_width(unet, self.unet.unet.config.cross_attention_dim, folder, text)
        self.device = self.pipeline.vae.device
        self.unet.to(self.device)
        self.pixels, self.steps, self.guidance = pixels, steps, guidance

    @torch.no_grad()
    def generate(self, prompts: Sequence[str], seeds: Sequence[int], layouts: Sequence[Layout]) -> list[Image.Image]:
        """An image a prompt."""
        vae, scheduler, generators = self.pipeline.vae, self.pipeline.scheduler, generators_of(seeds)
        positive, negative = self.pipeline.encode_prompt(
            list(prompts), self.device, num_images_per_prompt=1, do_classifier_free_guidance=True
        )
        text = torch.cat([negative, positive])
        characters, masked = self._layout_channels(layouts, generators)
        cells = masked.shape[-1]
        scheduler.set_timesteps(self.steps)
        noise = [torch.randn(vae.config.latent_channels, cells, cells, generator=own) for own in generators]
        x_t = torch.stack(noise).to(self.device) * scheduler.init_noise_sigma  # B 4 h w
        own_steps = {"generator": generators} if hasattr(scheduler.config, "variance_type") else {}
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x_t, t)
            without, with_text = self.unet(torch.cat([scaled] * 2), t, text, masked, characters).chunk(2)
            x_t = scheduler.step(without + self.guidance * (with_text - without), t, x_t, **own_steps).prev_sample
        pixels = vae.decode(x_t / vae.config.scaling_factor).sample
        return self.pipeline.image_processor.postprocess(pixels, output_type="pil")

    def _layout_channels(self, layouts: Sequence[Layout], generators: list[torch.Generator]) -> tuple[Tensor, Tensor]:
        """2B 8 h w of the character masks; 2B 5 h w of an inpainting mask that leaves nothing of a grey image."""
        vae = self.pipeline.vae
        grey = torch.zeros(1, 3, self.pixels, self.pixels, device=self.device)
        latents = torch.cat([vae.encode(grey).latent_dist.sample(own) for own in generators])  # B 4 h w
        latents = latents * vae.config.scaling_factor
        masked = torch.cat([torch.ones_like(latents[:, :1]), latents], dim=1)
        masks = np.stack([character_mask(layout, 4 * latents.shape[-1]) for layout in layouts])
        assert masks.max(initial=0) <= len(ALPHABET)
        characters = self.unet.encode_mask(torch.from_numpy(masks).long().to(self.device))
        return torch.cat([characters] * 2), torch.cat([masked] * 2)
