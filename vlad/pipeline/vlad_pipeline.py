"""VLADPipeline: the trained models in diffusers' format; prompt -> layout -> image.

    prompts -- encode_prompts --> t --+-- _plan: layout UNet --> z -- decode --> glyph map -- refit --> Layout
                                      |                                                                   |
        pixels <-- _pixels <-- x_0 <--+-- _refine: refine UNet <-- z <-- encode <-- glyph map <-- render -+

Letters: B images, C latent channels, h w cells, H W pixels, K tokens, D width.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor, nn

from vlad.diffusion.guidance import guided_prediction
from vlad.diffusion.noise_schedule import noise_fields_of
from vlad.diffusion.options import NoiseOptions
from vlad.diffusion.solvers import OnStep, build_solver, check_scheduler, sample_latents
from vlad.layout.fonts import CANONICAL_FONT
from vlad.layout.glyph_map import render_glyph_map
from vlad.layout.image_edits import Edit, ImageLike, common_size, layout_of_edit, pair_edits
from vlad.layout.refit import refit_layout
from vlad.layout.typefaces import typefaces_of
from vlad.lora.weighted_adapters import set_adapters
from vlad.models.attention import set_decoupled_attention
from vlad.models.autoencoder import decode, latent_moments, spatial_factor
from vlad.models.composition import CompositionModule, TextSide
from vlad.models.options import BaseTextOptions, LVLMOptions
from vlad.models.text_encoder.base_encoders import BaseTextEncoders
from vlad.models.text_encoder.lvlm import LVLMEncoder
from vlad.models.text_encoder.prompt import parse_prompt, wrap_strings
from vlad.models.unet import denoise
from vlad.pipeline.batching import (
    PromptConditioning,
    SampleBatch,
    full_batches,
    initial_noise,
    padded_conditioning,
)
from vlad.pipeline.diffusers_interface import StepCallback, as_output_type, check_arguments, onload, step_function
from vlad.pipeline.edits import check_can_edit, edit_conditioning, paste_edits
from vlad.pipeline.image_request import ImageRequest, check_strings
from vlad.pipeline.options import SCALES, SampleSettings, check_model_limits
from vlad.types import Conditioning, Layout, Prompt
from vlad.utils.errors import UserError

Computed = TypeVar("Computed")

KEPT_CONDITIONINGS = 64  # prompts whose t `reuse_conditioning` keeps
# Modules of components in pipelines that version 0.1 saved, and where they are now.
MODULES_OF_0_1 = {
    "vlad.diffusion.autoencoder": "vlad.models.autoencoder",
    "vlad.text.composition": "vlad.models.composition",
}
# Reads the strings in a glyph map (H W, 0..1): an OCR engine.
Reader = Callable[[np.ndarray], Sequence[str]]


@dataclass(frozen=True)
class Plan:
    """What stands between the stages: the layout; where stage one ran, its raw glyph map (H W, 0..1) and z (C h w)."""

    layout: Layout
    glyph_map: np.ndarray | None = None
    z: Tensor | None = None
    # Stage two takes the raw z rather than the latents of the layout rendered again.
    keep_raw: bool = False


class NotFiniteError(ArithmeticError):
    """A model's output holds NaN or infinity: its weights do, or its precision is too narrow."""


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
        glyph_font: str = CANONICAL_FONT,
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
        """`process`: the noise that each stage was trained with; None reads it off the schedulers. `own_...`: the base
        model's text encoders, which are read beside the LVLM as `own_text` says (`BaseTextOptions`)."""
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
            glyph_font=glyph_font,
            steps=steps,
            text_scale=text_scale,
            layout_scale=layout_scale,
            planning_scale=planning_scale,
            refit=refit,
            batch_size=batch_size,
            process=process,
            own_text=own_text,
        )
        self._conditionings: dict[str, Conditioning] | None = None

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
        """The LVLM and the CCM as training holds them: prompts to t."""
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
        """The base model's own text encoders; None where they were not kept."""
        pairs = ((self.own_text_encoder, self.own_tokenizer), (self.own_text_encoder_2, self.own_tokenizer_2))
        kept = [pair for pair in pairs if pair[0] is not None]
        if not kept:
            return None
        return BaseTextEncoders(
            [pair[0] for pair in kept], [pair[1] for pair in kept], BaseTextOptions(**self.config.own_text)
        )

    def check_prompt(self, prompt: str | Prompt, layout: Layout | None = None) -> Prompt:
        """The prompt parsed, where it is not yet, its strings wrapped into the lines that this model writes.

        Raises UserError for text that it cannot write.
        """
        parsed = parse_prompt(prompt) if isinstance(prompt, str) else prompt
        if layout is not None and not self.uses_layout:
            raise UserError("This model was trained without layouts (layout.kind: none) and cannot follow one.")
        limits = self.composition.config
        parsed = wrap_strings(parsed, limits.max_characters)
        check_strings(parsed, layout, limits.max_strings, limits.max_characters)
        return parsed

    def image_request(
        self, prompt: str | Prompt, seed: int, layout: Layout | None = None, edit: Edit | None = None
    ) -> ImageRequest:
        """What `generate` takes, checked. In an edit a layout holds the lines in the mask; None: the prompt's strings.

        Raises UserError for a prompt, layout or edit that this model cannot generate.
        """
        if edit is not None:
            check_can_edit(self.config.edits)
        parsed = self.check_prompt(prompt, layout)
        if edit is not None and self.uses_layout:
            layout = layout_of_edit(edit, layout, parsed.strings)
        return ImageRequest(parsed, seed, layout, edit)

    def load_adapters(self, adapters: Sequence[str]) -> None:
        """Merges LoRA adapters, `DIR` or `DIR:WEIGHT` each, in place of those that are merged now.

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
        """The model's sampling defaults with the given fields of `SampleSettings` in their place; None is not given.

        Raises UserError for values that this model cannot sample with; for a size it names the nearest that it can.
        """
        config = self.config
        defaults = {name: config[name] for name in ("steps", *SCALES, "refit", "batch_size")}
        defaults |= {"width": config.image_pixels, "height": config.image_pixels}
        settings = SampleSettings(**defaults | {name: value for name, value in given.items() if value is not None})
        check_model_limits(settings, self.size_unit, self.refine_scheduler.config.num_train_timesteps)
        return settings

    def use_solver(self, name: str) -> None:
        """Samples both stages with one of `vlad.diffusion.solvers.SOLVERS`. Raises UserError for one that cannot."""
        for stage, process in self.config.process.items():
            self.register_modules(**{f"{stage}_scheduler": build_solver(name, NoiseOptions(**process))})

    @contextmanager
    def reuse_conditioning(self) -> Iterator[None]:
        """Within it t of a prompt is computed once for all calls. The text side must stay as it is meanwhile."""
        if self._conditionings is not None:
            yield
            return
        self._conditionings = {}
        try:
            yield
        finally:
            self._conditionings = None

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

        `seeds`: one for all prompts or one each; image k of a prompt has its seed + k. `layouts`: one a prompt; None
        has stage one plan it. `width` and `height` in pixels; `num_inference_steps` is diffusers' name for `steps`.
        With an `image` and a `mask_image` (one for all prompts or one each, see `vlad.layout.image_edits.pair_edits`)
        only what is white in the mask is generated, and the rest of the image returns as it was; a layout then holds
        the lines in the mask, and without one the prompt's strings fill it. Other arguments: see `generate`. Raises
        UserError for a prompt, layout, size, scheduler or edit that does not go with this model.
        """
        check_arguments(num_images_per_prompt, output_type, callback_on_step_end_tensor_inputs)
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        each_layout = list(layouts) if layouts is not None else [None] * len(texts)
        each_seed = [seeds] * len(texts) if isinstance(seeds, int) else list(seeds)
        edits = pair_edits(image, mask_image, len(texts))
        requests = [self.image_request(*request) for request in zip(texts, each_seed, each_layout, edits, strict=True)]
        if image is not None:
            edit_height, edit_width = common_size(edits)
            if (height or edit_height, width or edit_width) != (edit_height, edit_width):
                raise UserError(
                    f"The image to edit has {edit_width} x {edit_height} pixels and keeps them; leave width and height"
                    " out."
                )
            height, width = edit_height, edit_width
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
        each = [replace(request, seed=request.seed + k) for request in requests for k in range(num_images_per_prompt)]
        return self.generate(
            each,
            settings,
            reader=reader,
            generator=generator,
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
        )

    @torch.no_grad()
    def generate(
        self,
        requests: Sequence[ImageRequest],
        settings: SampleSettings,
        *,
        reader: Reader | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        callback_on_step_end: StepCallback | None = None,
    ) -> VLADPipelineOutput:
        """An image for each request, as `image_request` and `settings` have checked them.

        An image depends on its prompt, its seed, its layout and the settings, not on what else is generated.
        `generator` (one, or one an image) replaces the seeds; one for several images makes them depend on each other.
        With a `reader`, a raw glyph map in which it reads the prompt's strings is kept as it is; only the others are
        refitted. `callback_on_step_end(pipeline, step, timestep, {"latents": x_t})` runs after each step, those of
        stage one first; what it returns as "latents" takes x_t's place. Raises UserError for a scheduler that does not
        fit.
        """
        for stage, process in self.config.process.items():
            check_scheduler(getattr(self, f"{stage}_scheduler"), NoiseOptions(**process), stage)
        stages = 1 + (self.uses_layout and any(request.layout is None for request in requests))
        steps = -(-len(requests) // settings.batch_size) * settings.steps * stages
        output, images = VLADPipelineOutput(images=[], layouts=[], glyph_maps=[]), []
        with self.reuse_conditioning(), self.progress_bar(total=steps) as bar:
            on_step = step_function(self, bar, callback_on_step_end)

            def sampled(batch: SampleBatch) -> tuple[list[Plan], Tensor]:
                plans = self._plan(batch, settings, on_step, reader)  # layouts, or z: B C h w
                x_0 = self._refine(batch, plans, settings, on_step)  # B C h w
                return plans, x_0.cpu() if output_type == "latent" else self._pixels(batch, x_0)  # B 3 H W

            for batch in self._batches(requests, settings, generator):  # t: B K D
                plans, result = self._in_wide_enough_precision(batch, settings, sampled)
                images.append(result[: batch.count])
                output.layouts += [plan.layout for plan in plans[: batch.count]]
                output.glyph_maps += [plan.glyph_map for plan in plans[: batch.count]]
        self.maybe_free_model_hooks()
        output.images = as_output_type(torch.cat(images), output_type)
        return output

    @torch.no_grad()
    def plan(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        settings: SampleSettings | None = None,
        layouts: Sequence[Layout | None] | None = None,
    ) -> list[Plan]:
        """Stage one alone: for each prompt the layout that is given, or the glyph map and the layout read off it."""
        settings = settings or self.settings()
        requests = list(map(ImageRequest, prompts, seeds, layouts or [None] * len(prompts)))
        plans = []
        with self.reuse_conditioning():
            for batch in self._batches(requests, settings):
                made = self._in_wide_enough_precision(batch, settings, lambda batch: self._plan(batch, settings))
                plans += made[: batch.count]
        self.maybe_free_model_hooks()
        return plans

    @torch.no_grad()
    def refine(self, prompts: Sequence[Prompt], seeds: Sequence[int], layouts: Sequence[Layout]) -> list[Image.Image]:
        """Stage two alone: images of prompts and layouts."""
        settings = self.settings()
        images: list[Image.Image] = []

        def refined(batch: SampleBatch) -> Tensor:
            x_0 = self._refine(batch, self._plan(batch, settings), settings)  # B C h w
            return self._pixels(batch, x_0)

        for batch in self._batches(list(map(ImageRequest, prompts, seeds, layouts)), settings):
            images += as_output_type(self._in_wide_enough_precision(batch, settings, refined)[: batch.count], "pil")
        self.maybe_free_model_hooks()
        return images

    def _in_wide_enough_precision(
        self, batch: SampleBatch, settings: SampleSettings, compute: Callable[[SampleBatch], Computed]
    ) -> Computed:
        """`compute(batch)`, once more in float32, and from then on, where a 16-bit model gives values that are no
        numbers. Raises UserError where float32 does, too: no black image passes for a result."""
        try:
            return compute(batch)
        except NotFiniteError as error:
            narrow = self.refine_unet.dtype
            if narrow == torch.float32:
                raise UserError(
                    f"{error}; the weights are damaged or were never trained: load another copy."
                ) from error
            print(
                f"warning: {error} in {str(narrow).removeprefix('torch.')}; sampled again in float32", file=sys.stderr
            )
        for component in self.components.values():
            if isinstance(component, nn.Module):
                component.to(dtype=torch.float32)
        if self._conditionings is not None:
            self._conditionings.clear()
        negative = parse_prompt(settings.negative_prompt, strict=False) if settings.negative_prompt else None
        size = settings.height, settings.width
        wide = replace(batch, t=self.encode_prompts([row.prompt for row in batch.requests], negative, size))
        return self._in_wide_enough_precision(wide, settings, compute)

    def _batches(
        self,
        requests: Sequence[ImageRequest],
        settings: SampleSettings,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> Iterator[SampleBatch]:
        """The requests in batches of one size, each with its noise and with t of its prompts."""
        noise = initial_noise([request.seed for request in requests], generator, self._latent_shape(settings))
        negative = parse_prompt(settings.negative_prompt, strict=False) if settings.negative_prompt else None
        for indices, count in full_batches(len(requests), settings.batch_size):
            rows = [requests[i] for i in indices]
            t = self.encode_prompts([row.prompt for row in rows], negative, (settings.height, settings.width))
            yield SampleBatch(rows, [noise[i] for i in indices], t, count)

    def encode_prompts(
        self, prompts: Sequence[Prompt], negative: Prompt | None, size: tuple[int, int]
    ) -> PromptConditioning:
        """t of every prompt (B K D), and of the negative one; `size` is H W in pixels.

        Each prompt is encoded on its own: it cannot depend on its neighbours. One that occurs several times is encoded
        once, under `reuse_conditioning` once for all calls.
        """
        different = {prompt.text: prompt for prompt in (*prompts, *([] if negative is None else [negative]))}
        known = {} if self._conditionings is None else self._conditionings
        known.update(self._encode([prompt for text, prompt in different.items() if text not in known]))
        texts = [prompt.text for prompt in prompts]
        t = padded_conditioning(known, texts, None if negative is None else negative.text, size)
        for text in list(known)[:-KEPT_CONDITIONINGS]:  # the oldest
            del known[text]
        return t

    def _encode(self, prompts: list[Prompt]) -> dict[str, Conditioning]:
        """t of each prompt (1 K D), by its text: P(Z_T | T), then Eq. 2."""
        if not prompts:
            return {}
        text_side = self.text_side
        onload(self.lvlm)
        states = [text_side.lvlm([prompt]) for prompt in prompts]
        onload(self.composition)
        return {prompt.text: text_side.compose(state, [prompt]) for state, prompt in zip(states, prompts, strict=True)}

    def _plan(
        self,
        batch: SampleBatch,
        settings: SampleSettings,
        on_step: OnStep | None = None,
        reader: Reader | None = None,
    ) -> list[Plan]:
        """Stage one, Eq. 6: for each request its layout, or the one that is read off a generated glyph map."""
        if not self.uses_layout or all(request.layout is not None for request in batch.requests):
            return [Plan(request.layout or Layout(())) for request in batch.requests]
        if self.layout_unet is None:
            raise UserError("This pipeline has no layout UNet; give a layout with every prompt.")
        noise = torch.stack([row.layout for row in batch.noise])
        z = self._sample("layout", batch, noise, None, (settings.planning_scale, 1.0), settings, on_step)  # B C h w
        maps = ((self._decode(z).mean(dim=1) + 1) / 2).cpu().numpy()  # B H W
        plans = []
        for request, glyph_map, latents in zip(batch.requests, maps, z, strict=True):
            if request.layout is not None:
                plans.append(Plan(request.layout))
                continue
            strings = request.prompt.strings
            keep_raw = not settings.refit or (reader is not None and same_strings(reader(glyph_map), strings))
            faces = typefaces_of(request.prompt)
            layout = refit_layout(glyph_map, strings, self.config.glyph_font, faces)
            plans.append(Plan(layout, glyph_map, latents, keep_raw))
        return plans

    def _refine(
        self, batch: SampleBatch, plans: list[Plan], settings: SampleSettings, on_step: OnStep | None = None
    ) -> Tensor:
        """Stage two, Eq. 5 and 7: the image latents x_0 (B C h w) of t and z."""
        device = batch.t.positive.tokens.device
        noise = torch.stack([row.refine for row in batch.noise])
        z = self._layout_latents(plans, settings, device) if self.uses_layout else None  # B C h w
        edit = None
        if self.config.edits:
            onload(self.autoencoder)
            edits, shape = [request.edit for request in batch.requests], self._latent_shape(settings)
            edit = edit_conditioning(self.autoencoder, edits, shape, device)  # B 1+C h w
        scales = settings.text_scale, settings.layout_scale
        return self._sample("refine", batch, noise, z, scales, settings, on_step, edit)

    def _sample(
        self,
        stage: str,
        batch: SampleBatch,
        noise: Tensor,
        z: Tensor | None,
        scales: tuple[float, float],
        settings: SampleSettings,
        on_step: OnStep | None,
        edit: Tensor | None = None,
    ) -> Tensor:
        """Scaled latents (B C h w) of a stage's UNet, by its solver, guided with the scales of t and z."""
        unet, scheduler, t = getattr(self, f"{stage}_unet"), getattr(self, f"{stage}_scheduler"), batch.t
        onload(unet)
        predict = guided_prediction(
            partial(denoise, unet), unet.dtype, t.positive, z, *scales, settings.guidance_rescale, t.negative, edit
        )
        latents = sample_latents(predict, scheduler, noise.to(t.positive.tokens.device), settings.steps, on_step)
        return finite(latents, f"the {stage} UNet's output")

    def _layout_latents(self, plans: list[Plan], settings: SampleSettings, device: torch.device) -> Tensor:
        """z of each plan (B C h w): of its layout rendered, or the raw latents of stage one where those are kept."""
        different = {id(plan.layout): plan.layout for plan in plans}  # all seeds of a prompt may share one
        rendered = {
            key: render_glyph_map(replace(layout, glyph_font=self.config.glyph_font), settings.width, settings.height)
            for key, layout in different.items()
        }
        maps = torch.from_numpy(np.stack([rendered[id(plan.layout)] for plan in plans]))  # B H W
        canvas = maps.to(device)[:, None].expand(-1, 3, -1, -1) * 2 - 1
        onload(self.autoencoder)
        # The posterior's mean: the same layout gives the same image.
        z = latent_moments(self.autoencoder, canvas.to(self.autoencoder.dtype))[0].float()
        return torch.stack(
            [plan.z if plan.keep_raw and plan.z is not None else row for row, plan in zip(z, plans, strict=True)]
        )

    def _pixels(self, batch: SampleBatch, x_0: Tensor) -> Tensor:
        """Pixels (B 3 H W, 0..1) of image latents; outside the masks of edits, those of the edited images."""
        return paste_edits(((self._decode(x_0) + 1) / 2).cpu(), [request.edit for request in batch.requests])

    def _decode(self, latents: Tensor) -> Tensor:
        """Pixels B 3 H W in [-1, 1], in the precision of the latents."""
        onload(self.autoencoder)
        return finite(decode(self.autoencoder, latents.to(self.autoencoder.dtype)), "the autoencoder's output").to(
            latents.dtype
        )

    def _latent_shape(self, settings: SampleSettings) -> tuple[int, int, int]:
        """C h w."""
        factor = spatial_factor(self.autoencoder)
        return self.refine_unet.config.out_channels, settings.height // factor, settings.width // factor


def finite(values: Tensor, what: str) -> Tensor:
    """The values. Raises NotFiniteError where some are no numbers."""
    if not bool(values.isfinite().all()):
        raise NotFiniteError(f"{what} is not a number")
    return values


def same_strings(read: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether a reading holds exactly the wanted strings, case, spaces and order aside."""

    def folded(strings: Sequence[str]) -> list[str]:
        return sorted("".join(text.split()).casefold() for text in strings)

    return folded(read) == folded(wanted) or folded(["".join(read)]) == folded(["".join(wanted)])
