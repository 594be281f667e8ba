"""VLADPipeline: the trained parts in diffusers' format; prompt -> layout -> image.

    prompts -- text side --> t --+-- layout UNet --> z -- decode --> glyph map -- refit --> Layout
                                 |                                                            |
                                 +-- refine UNet <-------------- encode <-- glyph map <-- draw

Letters: B images, C latent channels, h w cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor, nn

from vlad.diffusion.guidance import guided
from vlad.diffusion.noise_schedule import noise_fields_of
from vlad.diffusion.options import NoiseOptions
from vlad.diffusion.solvers import OnStep, build_solver, check_scheduler, sample_latents
from vlad.layout.fonts import missing_glyphs, no_font_reason
from vlad.layout.glyph_map import draw_glyph_map
from vlad.layout.masks import Edit, ImageLike, edits_of, layout_of_edit
from vlad.layout.refit import refit_layout
from vlad.lora.weighted_adapters import set_adapters
from vlad.models.attention import set_decoupled_attention
from vlad.models.autoencoder import decode, latent_moments, spatial_factor
from vlad.models.composition import CompositionModule, TextSide
from vlad.models.options import BaseTextOptions, LVLMOptions
from vlad.models.text_encoder.base_encoders import BaseTextEncoders
from vlad.models.text_encoder.lvlm import LVLMEncoder
from vlad.models.text_encoder.prompt import parse_prompt
from vlad.models.unet import denoise
from vlad.pipeline.batching import (
    Guidance,
    Noise,
    Plan,
    StepCallback,
    agrees,
    as_output,
    draw_noise,
    full_batches,
    guidance_of,
    onload,
    stepping,
)
from vlad.pipeline.edits import check_edits, edit_conditioning, paste_edits
from vlad.pipeline.options import SampleSettings, check_model_limits
from vlad.types import Conditioning, Layout, Prompt
from vlad.utils.errors import UserError

KEPT_READINGS = 64  # prompts whose t is kept where they are read once
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
# Where the components of pipelines lay that version 0.1 has saved.
MODULES_OF_0_1 = {
    "vlad.diffusion.autoencoder": "vlad.models.autoencoder",
    "vlad.text.composition": "vlad.models.composition",
}
# Reads a glyph map (H W, 0..1) as strings.
Reader = Callable[[np.ndarray], Sequence[str]]


@dataclass
class VLADPipelineOutput(BaseOutput):
    """Images with the layouts between the stages and, where stage one ran, its raw glyph maps (H W, 0..1).

    `images` are Pillow images, or as `output_type` says: np B H W 3 and pt B 3 H W in 0..1, latent B C h w.
    """

    images: Any
    layouts: list[Layout]
    glyph_maps: list[np.ndarray | None]


class VLADPipeline(DiffusionPipeline):
    """Prompts with quoted strings -> images that spell them."""

    model_cpu_offload_seq = (
        "lvlm->own_text_encoder->own_text_encoder_2->composition->layout_unet->refine_unet->autoencoder"
    )
    _optional_components: ClassVar[list[str]] = [
        "layout_unet",
        "layout_scheduler",
        "own_text_encoder",
        "own_tokenizer",
        "own_text_encoder_2",
        "own_tokenizer_2",
    ]

    def __init__(
        self,
        lvlm: nn.Module,
        tokenizer: Any,
        composition: CompositionModule,
        autoencoder: nn.Module,
        layout_unet: nn.Module | None,
        layout_scheduler: SchedulerMixin | None,
        refine_unet: nn.Module,
        refine_scheduler: SchedulerMixin,
        image_pixels: int = 64,
        with_layout: bool = True,
        edits: bool = False,
        pooling: str = "mean",  # diffusers warns of a Literal
        states: str = "last",
        template: str = "plain",
        max_tokens: int = 160,
        vision_pixels: int = 64,
        steps: int = 20,
        text_scale: float = 2.0,
        layout_scale: float = 2.0,
        planning_scale: float = 1.0,
        refit: bool = True,
        batch_size: int = 16,
        process: dict[str, dict[str, Any]] | None = None,
        own_text_encoder: nn.Module | None = None,
        own_tokenizer: Any = None,
        own_text_encoder_2: nn.Module | None = None,
        own_tokenizer_2: Any = None,
        own_text: dict[str, Any] | None = None,
    ) -> None:
        """`process`: the noise that each stage was trained with; None reads it off the schedulers. `own_...`: the text
        encoders of the model that it started from, read beside the LVLM as `own_text` says (`BaseTextOptions`)."""
        super().__init__()
        if process is None:
            schedulers = {"layout": layout_scheduler, "refine": refine_scheduler}
            process = {
                stage: noise_fields_of(scheduler) for stage, scheduler in schedulers.items() if scheduler is not None
            }
        self.register_modules(
            lvlm=lvlm,
            tokenizer=tokenizer,
            composition=composition,
            autoencoder=autoencoder,
            layout_unet=layout_unet,
            layout_scheduler=layout_scheduler,
            refine_unet=refine_unet,
            refine_scheduler=refine_scheduler,
            own_text_encoder=own_text_encoder,
            own_tokenizer=own_tokenizer,
            own_text_encoder_2=own_text_encoder_2,
            own_tokenizer_2=own_tokenizer_2,
        )
        set_decoupled_attention([layout_unet, refine_unet])
        self.register_to_config(
            image_pixels=image_pixels,
            with_layout=with_layout,
            edits=edits,
            pooling=pooling,
            states=states,
            template=template,
            max_tokens=max_tokens,
            vision_pixels=vision_pixels,
            steps=steps,
            text_scale=text_scale,
            layout_scale=layout_scale,
            planning_scale=planning_scale,
            refit=refit,
            batch_size=batch_size,
            process=process,
            own_text=own_text,
        )
        self._readings: dict[str, Conditioning] | None = None

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """The content of model_index.json, with today's names where version 0.1 wrote others."""
        loaded = super().load_config(*args, **kwargs)
        index = loaded[0] if isinstance(loaded, tuple) else loaded
        if "picture_pixels" in index:
            index["image_pixels"] = index.pop("picture_pixels")
        for name, part in tuple(index.items()):
            if isinstance(part, list | tuple) and part and part[0] in MODULES_OF_0_1:
                index[name] = [MODULES_OF_0_1[part[0]], *part[1:]]
        return loaded

    @property
    def uses_layout(self) -> bool:
        """Whether the refine UNet takes z (False: the ablation without hierarchical guidance)."""
        return self.config.with_layout

    @property
    def text_side(self) -> TextSide:
        """The LVLM and the CCM as training holds them."""
        config = self.config
        options = LVLMOptions(
            pooling=config.pooling,
            states=config.states,
            template=config.template,
            max_tokens=config.max_tokens,
            vision_pixels=config.vision_pixels,
        )
        return TextSide(LVLMEncoder(self.lvlm, self.tokenizer, options), self.composition, self._base_encoders())

    def _base_encoders(self) -> BaseTextEncoders | None:
        """The text encoders of the model that this one started from; None where they were not kept."""
        pairs = ((self.own_text_encoder, self.own_tokenizer), (self.own_text_encoder_2, self.own_tokenizer_2))
        kept = [pair for pair in pairs if pair[0] is not None]
        if not kept:
            return None
        return BaseTextEncoders(
            [pair[0] for pair in kept], [pair[1] for pair in kept], BaseTextOptions(**self.config.own_text)
        )

    def check_prompt(self, prompt: str, layout: Layout | None = None) -> Prompt:
        """The prompt taken apart. Raises UserError for what this model cannot draw."""
        for said in (prompt, *(line.text for line in (layout.lines if layout is not None else ()))):
            if any("\ud800" <= character <= "\udfff" for character in said):
                raise UserError(f"{said!r} holds half a character, which is no text (UTF-8); type it anew.")
        parsed = parse_prompt(prompt)
        limits = self.composition.config
        if layout is not None and not self.uses_layout:
            raise UserError("This model was trained without layouts (layout.kind: none) and cannot follow one.")
        given = () if layout is None else tuple(line.text for line in layout.lines)
        for where, strings in ((f"The prompt {prompt!r}", parsed.strings), ("The layout", given)):
            if len(strings) > limits.max_strings:
                raise UserError(
                    f"{where} asks for {len(strings)} lines of text; this model draws at most {limits.max_strings};"
                    " quote fewer strings."
                )
        for text in (*parsed.strings, *given):
            if len(text) > limits.max_characters:
                raise UserError(
                    f'The string "{text}" has {len(text)} characters; this model draws at most'
                    f" {limits.max_characters} on a line. Shorten it, or split it into several quoted strings."
                )
            if missing_glyphs(text):
                raise UserError(f'The string "{text}" cannot be drawn: {no_font_reason(text)}.')
        return parsed

    def load_adapters(self, adapters: Sequence[str]) -> None:
        """Merges LoRA folders, `DIR` or `DIR:WEIGHT` each, in place of those that are merged now.

        Raises UserError for a folder without an adapter, and for one of another base; nothing is merged then.
        """
        set_adapters(self, adapters)

    def unload_adapters(self) -> None:
        """Takes out what `load_adapters` has merged: the base's own weights, bit for bit."""
        set_adapters(self, [])

    @property
    def size_unit(self) -> int:
        """Both sides of an image are multiples of this: pixels a latent cell, halved on each level of the UNet."""
        levels = len(self.refine_unet.config.block_out_channels)
        return spatial_factor(self.autoencoder) * 2 ** (levels - 1)

    def settings(self, **given: Any) -> SampleSettings:
        """The pipeline's own settings with what is given (None: nothing) in their place.

        Raises UserError for what cannot be drawn: steps, scales, and sizes with the nearest that can.
        """
        config = self.config
        defaults = SampleSettings(
            config.steps,
            config.text_scale,
            config.layout_scale,
            config.planning_scale,
            config.refit,
            config.image_pixels,
            config.image_pixels,
            config.batch_size,
        )
        asked = replace(defaults, **{name: value for name, value in given.items() if value is not None})
        check_model_limits(asked, self.size_unit, self.refine_scheduler.config.num_train_timesteps)
        return asked

    def use_solver(self, name: str) -> None:
        """Samples both stages with another of `diffusion.samplers.SOLVERS`. Raises UserError for one that cannot."""
        for stage, process in self.config.process.items():
            self.register_modules(**{f"{stage}_scheduler": build_solver(name, NoiseOptions(**process))})

    @contextmanager
    def reading_once(self) -> Iterator[None]:
        """Within it a prompt is read once, whatever calls it stands in. The text side must stay as it is meanwhile."""
        if self._readings is not None:
            yield
            return
        self._readings = {}
        try:
            yield
        finally:
            self._readings = None

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        seeds: int | Sequence[int] = 0,
        layouts: Sequence[Layout | None] | None = None,
        steps: int | None = None,
        text_scale: float | None = None,
        layout_scale: float | None = None,
        refit: bool | None = None,
        *,
        planning_scale: float | None = None,
        guidance_rescale: float | None = None,
        negative_prompt: str | None = None,
        width: int | None = None,
        height: int | None = None,
        batch_size: int | None = None,
        num_inference_steps: int | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        reader: Reader | None = None,
        image: ImageLike | Sequence[ImageLike] | None = None,
        mask_image: ImageLike | Sequence[ImageLike] | None = None,
    ) -> VLADPipelineOutput:
        """`num_images_per_prompt` images a prompt, those of one prompt together.

        `seeds`: one for all prompts or one each; image k of a prompt has its seed + k. An image depends on its
        prompt, its seed, its layout and the settings, not on what else is drawn. `generator` (one, or one an image)
        takes the place of the seeds; one for several images makes them depend on each other. A layout that is given
        takes the place of stage one. `width` and `height` in pixels; `num_inference_steps` is diffusers' name of
        `steps`. With a `reader`, a raw glyph map in which it reads the prompt's strings is kept as it is; only the
        others are refitted. `callback_on_step_end(pipeline, step, timestep, {"latents": x_t})` runs after each step,
        those of stage one first; what it returns as "latents" goes on. With an `image` and a `mask_image` (one for
        all prompts or one each, as `layout.masks.edits_of` takes them) only what is white in the mask is drawn, and the
        rest of the image is returned as it was; a layout then holds the lines in the mask, and without one the
        prompt's strings fill it. Raises UserError for a prompt, layout, size, scheduler or edit that this model cannot
        draw.
        """
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        given = list(layouts) if layouts is not None else [None] * len(texts)
        seed_list = [seeds] * len(texts) if isinstance(seeds, int) else list(seeds)
        assert len(texts) == len(given) == len(seed_list)
        edits = edits_of(image, mask_image, len(texts))
        if edits and edits[0] is not None:
            height, width = check_edits(edits, self.config.edits, width, height)
        settings = self.settings(
            steps=steps if num_inference_steps is None else num_inference_steps,
            text_scale=text_scale,
            layout_scale=layout_scale,
            planning_scale=planning_scale,
            refit=refit,
            width=width,
            height=height,
            batch_size=batch_size,
            guidance_rescale=guidance_rescale,
            negative_prompt=negative_prompt,
        )
        if num_images_per_prompt < 1:
            raise UserError(f"num_images_per_prompt must be at least 1, not {num_images_per_prompt}.")
        if output_type not in OUTPUT_TYPES:
            raise UserError(f"There is no output_type {output_type!r}; known: {', '.join(OUTPUT_TYPES)}.")
        if set(callback_on_step_end_tensor_inputs) - {"latents"}:
            raise UserError(
                f"callback_on_step_end_tensor_inputs: {list(callback_on_step_end_tensor_inputs)} holds more than"
                " 'latents'."
            )
        self._check_solvers()
        each = range(num_images_per_prompt)
        parsed = [self.check_prompt(text, layout) for text, layout in zip(texts, given, strict=True)]
        given = [
            layout_of_edit(edit, layout, prompt.strings) if edit is not None and self.uses_layout else layout
            for edit, layout, prompt in zip(edits, given, parsed, strict=True)
        ]
        every_edit = [edit for edit in edits for _ in each]
        prompts, plans = [one for one in parsed for _ in each], [layout for layout in given for _ in each]
        noise = draw_noise([seed + k for seed in seed_list for k in each], generator, self._latent_shape(settings))
        output = VLADPipelineOutput(images=[], layouts=[], glyph_maps=[])
        batches = list(full_batches(len(prompts), settings.batch_size))
        images = []
        two_stages = self.uses_layout and any(layout is None for layout in given)
        with self.reading_once(), self.progress_bar(total=len(batches) * settings.steps * (1 + two_stages)) as bar:
            on_step = stepping(self, bar, callback_on_step_end)
            for chunk, count in batches:
                conditioning = self._read_prompts([prompts[i] for i in chunk], settings)
                rows = [prompts[i] for i in chunk], conditioning, [noise[i] for i in chunk]
                planned = self._plan_batch(*rows, [plans[i] for i in chunk], settings, on_step, reader)
                own = [every_edit[i] for i in chunk]
                drawn = self._refine_batch(*rows[1:], planned, settings, on_step, output_type, own)
                images.append(drawn[:count])
                output.layouts.extend(plan.layout for plan in planned[:count])
                output.glyph_maps.extend(plan.glyph_map for plan in planned[:count])
        self.maybe_free_model_hooks()
        output.images = as_output(torch.cat(images), output_type)
        return output

    def _check_solvers(self) -> None:
        for stage, process in self.config.process.items():
            check_scheduler(getattr(self, f"{stage}_scheduler"), NoiseOptions(**process), stage)

    @torch.no_grad()
    def plan(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        settings: SampleSettings | None = None,
        layouts: Sequence[Layout | None] | None = None,
    ) -> list[Plan]:
        """Stage one alone: the layout that is given, or the glyph map and the layout read off it, for each prompt."""
        settings = settings or self.settings()
        given = list(layouts) if layouts is not None else [None] * len(prompts)
        noise = draw_noise(seeds, None, self._latent_shape(settings))
        plans = []
        with self.reading_once():
            for chunk, count in full_batches(len(prompts), settings.batch_size):
                part = [prompts[i] for i in chunk]
                conditioning = self._read_prompts(part, settings)
                own = [given[i] for i in chunk]
                plans += self._plan_batch(part, conditioning, [noise[i] for i in chunk], own, settings)[:count]
        self.maybe_free_model_hooks()
        return plans

    @torch.no_grad()
    def refine(self, prompts: Sequence[Prompt], seeds: Sequence[int], layouts: Sequence[Layout]) -> list[Image.Image]:
        """Stage two alone: images of prompts and layouts."""
        settings = self.settings()
        noise = draw_noise(seeds, None, self._latent_shape(settings))
        images: list[Image.Image] = []
        for chunk, count in full_batches(len(prompts), settings.batch_size):
            conditioning = self._read_prompts([prompts[i] for i in chunk], settings)
            plans = [Plan(layouts[i], None, None) for i in chunk]
            drawn = self._refine_batch(conditioning, [noise[i] for i in chunk], plans, settings)
            images += as_output(drawn[:count], "pil")
        self.maybe_free_model_hooks()
        return images

    def _plan_batch(
        self,
        prompts: list[Prompt],
        conditioning: Guidance,
        noise: list[Noise],
        given: list[Layout | None],
        settings: SampleSettings,
        on_step: OnStep | None = None,
        reader: Reader | None = None,
    ) -> list[Plan]:
        """A plan for each prompt: what was given, or what stage one draws."""
        if not self.uses_layout or all(layout is not None for layout in given):
            return [Plan(layout or Layout(()), None, None) for layout in given]
        if self.layout_unet is None:
            raise UserError("This pipeline has no layout UNet; give a layout with every prompt.")
        onload(self.layout_unet)
        scales = settings.planning_scale, 1.0, settings.guidance_rescale
        z = sample_latents(
            guided(
                partial(denoise, self.layout_unet),
                self.layout_unet.dtype,
                conditioning.wanted,
                None,
                *scales,
                conditioning.negative,
            ),
            self.layout_scheduler,
            torch.stack([row.layout for row in noise]).to(conditioning.wanted.tokens.device),
            settings.steps,
            on_step,
        )  # B C h w
        maps = ((self._decode(z).mean(dim=1) + 1) / 2).cpu().numpy()  # B H W
        plans = []
        for prompt, layout, glyph_map, latents in zip(prompts, given, maps, z, strict=True):
            if layout is not None:
                plans.append(Plan(layout, None, None))
                continue
            keep = not settings.refit or (reader is not None and agrees(reader(glyph_map), prompt.strings))
            plans.append(Plan(refit_layout(glyph_map, prompt.strings), glyph_map, latents, keep))
        return plans

    def _refine_batch(
        self,
        conditioning: Guidance,
        noise: list[Noise],
        plans: list[Plan],
        settings: SampleSettings,
        on_step: OnStep | None = None,
        output_type: str = "pil",
        edits: Sequence[Edit | None] | None = None,
    ) -> Tensor:
        """Stage two: pixels (B 3 H W, 0..1) of the plans, or with output_type latent x_0 (B C h w).

        What an edit keeps is its image's.
        """
        edits = [None] * len(plans) if edits is None else edits
        device = conditioning.wanted.tokens.device
        z = self._layout_latents(plans, settings, device) if self.uses_layout else None  # B C h w
        edit = self._edit_inputs(edits, settings, device)
        onload(self.refine_unet)
        scales = settings.text_scale, settings.layout_scale, settings.guidance_rescale
        x_0 = sample_latents(
            guided(
                partial(denoise, self.refine_unet),
                self.refine_unet.dtype,
                conditioning.wanted,
                z,
                *scales,
                conditioning.negative,
                edit,
            ),
            self.refine_scheduler,
            torch.stack([row.refine for row in noise]).to(device),
            settings.steps,
            on_step,
        )  # B C h w
        if output_type == "latent":
            return x_0.cpu()
        return paste_edits(((self._decode(x_0) + 1) / 2).cpu(), edits)

    def _edit_inputs(
        self, edits: Sequence[Edit | None], settings: SampleSettings, device: torch.device
    ) -> Tensor | None:
        """What the refine UNet is told of the images that are edited: B 1+C h w, zero for the others."""
        if not self.config.edits:
            return None
        onload(self.autoencoder)
        return edit_conditioning(self.autoencoder, edits, self._latent_shape(settings), device)

    def _decode(self, latents: Tensor) -> Tensor:
        """Pixels B 3 H W in [-1, 1], in the precision of the latents."""
        onload(self.autoencoder)
        return decode(self.autoencoder, latents.to(self.autoencoder.dtype)).to(latents.dtype)

    def _layout_latents(self, plans: list[Plan], settings: SampleSettings, device: torch.device) -> Tensor:
        """z of each plan: of its layout drawn again, or the raw latents of stage one where those are kept."""
        different = {id(plan.layout): plan.layout for plan in plans}  # all seeds of a prompt may share one
        drawn = {key: draw_glyph_map(layout, settings.width, settings.height) for key, layout in different.items()}
        maps = np.stack([drawn[id(plan.layout)] for plan in plans])  # B H W
        canvas = torch.from_numpy(maps).to(device)[:, None].expand(-1, 3, -1, -1) * 2 - 1
        onload(self.autoencoder)
        # The mean, not a draw: the same layout gives the same image.
        z = latent_moments(self.autoencoder, canvas.to(self.autoencoder.dtype))[0].float()
        return torch.stack(
            [plan.z if plan.keep_raw and plan.z is not None else row for row, plan in zip(z, plans, strict=True)]
        )

    def _read_prompts(self, prompts: list[Prompt], settings: SampleSettings) -> Guidance:
        """t of every prompt, each read on its own and filled up to one width: it cannot depend on its neighbours.

        A prompt that stands there several times is read once, and under `reading_once` once for all calls.
        """
        against = parse_prompt(settings.negative_prompt, strict=False) if settings.negative_prompt else None
        different = {prompt.text: prompt for prompt in (*prompts, *filter(None, [against]))}
        known = {} if self._readings is None else self._readings
        known.update(self._read([prompt for text, prompt in different.items() if text not in known]))
        size = settings.height, settings.width
        guidance = guidance_of(
            known, [prompt.text for prompt in prompts], None if against is None else against.text, size
        )
        for text in list(known)[:-KEPT_READINGS]:  # the oldest
            del known[text]
        return guidance

    def _read(self, prompts: list[Prompt]) -> dict[str, Conditioning]:
        """t of each prompt (tokens 1 K D), by its text."""
        if not prompts:
            return {}
        text_side = self.text_side
        onload(self.lvlm)
        states = [text_side.lvlm([prompt]) for prompt in prompts]
        onload(self.composition)
        return {prompt.text: text_side.compose(state, [prompt]) for state, prompt in zip(states, prompts, strict=True)}

    def _latent_shape(self, settings: SampleSettings) -> tuple[int, int, int]:
        """C h w."""
        factor = spatial_factor(self.autoencoder)
        return self.refine_unet.config.out_channels, settings.height // factor, settings.width // factor
