"""VLADPipeline: the trained parts in diffusers' format; prompt -> layout -> picture.

    prompts -- text side --> t --+-- layout UNet --> z -- decode --> glyph map -- refit --> Layout
                                 |                                                            |
                                 +-- refine UNet <-------------- encode <-- glyph map <-- draw

Letters: B pictures, C latent channels, h w cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from vlad.diffusion.autoencoder import decode, encode, spatial_factor
from vlad.diffusion.samplers import guided, sample_latents
from vlad.errors import UserError
from vlad.layout.fonts import missing_glyphs
from vlad.layout.glyphmap import draw_glyph_map
from vlad.layout.refit import refit_layout
from vlad.records import Conditioning, Layout, Prompt
from vlad.text.composition import CompositionModule, TextSide
from vlad.text.lvlm import LVLMEncoder, LVLMOptions
from vlad.text.prompt import parse_prompt

TOKEN_ROUNDING = 32  # conditioning tokens are filled up to a multiple of this


@dataclass(frozen=True)
class SampleOptions:
    """How pictures are drawn unless the call says otherwise."""

    steps: int = 20
    # Guidance: s_t and s_z of `diffusion.samplers.guided`; the layout stage has a text scale of its own.
    text_scale: float = 2.0
    layout_scale: float = 2.0
    planning_scale: float = 1.0
    # Read the layout off the generated glyph map and draw it again before stage two.
    refit: bool = True
    # Pictures drawn at once. Always filled up: a picture must not depend on how many others are drawn.
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise UserError("sample: steps and batch_size must be at least 1.")


@dataclass
class VLADPipelineOutput(BaseOutput):
    """Pictures with the layouts between the stages and, where stage one ran, its raw glyph maps (H W, 0..1)."""

    images: list[Image.Image]
    layouts: list[Layout]
    glyph_maps: list[np.ndarray | None]


class VLADPipeline(DiffusionPipeline):
    """Prompts with quoted strings -> pictures that spell them."""

    model_cpu_offload_seq = "lvlm->composition->layout_unet->refine_unet->autoencoder"
    _optional_components: ClassVar[list[str]] = ["layout_unet", "layout_scheduler"]

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
        picture_pixels: int = 64,
        with_layout: bool = True,
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
    ) -> None:
        super().__init__()
        self.register_modules(
            lvlm=lvlm,
            tokenizer=tokenizer,
            composition=composition,
            autoencoder=autoencoder,
            layout_unet=layout_unet,
            layout_scheduler=layout_scheduler,
            refine_unet=refine_unet,
            refine_scheduler=refine_scheduler,
        )
        self.register_to_config(
            picture_pixels=picture_pixels,
            with_layout=with_layout,
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
        )

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
        return TextSide(LVLMEncoder(self.lvlm, self.tokenizer, options), self.composition)

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
                    f"{where} asks for {len(strings)} lines of text; this model draws at most {limits.max_strings}."
                )
        for text in (*parsed.strings, *given):
            if len(text) > limits.max_characters:
                raise UserError(
                    f'The string "{text}" has {len(text)} characters; this model draws at most'
                    f" {limits.max_characters} on a line. Shorten it, or split it into several quoted strings."
                )
            if missing := missing_glyphs(text):
                raise UserError(f'The fonts here have no {" ".join(missing)} of the string "{text}"; replace it.')
        return parsed

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
        on_step: Callable[[], None] | None = None,
    ) -> VLADPipelineOutput:
        """One picture a prompt.

        `seeds`: one for all prompts or one each; a picture depends on its prompt, seed and layout, not on what
        else is drawn. A layout that is given takes the place of stage one. `on_step` is called after every step
        of a batch of pictures. Raises UserError for a prompt or layout that this model cannot draw.
        """
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        given = list(layouts) if layouts is not None else [None] * len(texts)
        seed_list = [seeds] * len(texts) if isinstance(seeds, int) else list(seeds)
        assert len(texts) == len(given) == len(seed_list)
        prompts = [self.check_prompt(text, layout) for text, layout in zip(texts, given, strict=True)]
        config = self.config
        settings = _Settings(
            steps or config.steps,
            config.text_scale if text_scale is None else text_scale,
            config.layout_scale if layout_scale is None else layout_scale,
            config.refit if refit is None else refit,
            on_step or _no_report,
        )
        most = self.refine_scheduler.config.num_train_timesteps
        if not 1 <= settings.steps <= most:
            raise UserError(f"{settings.steps} steps cannot be taken: this model was trained for 1 to {most}.")
        output = VLADPipelineOutput(images=[], layouts=[], glyph_maps=[])
        for chunk, count in _full_batches(len(texts), config.batch_size):
            part_prompts, part_seeds = [prompts[i] for i in chunk], [seed_list[i] for i in chunk]
            plans = self._plan_batch(part_prompts, part_seeds, [given[i] for i in chunk], settings)
            pictures = self._refine_batch(part_prompts, part_seeds, plans, settings)
            output.images.extend(pictures[:count])
            output.layouts.extend(plan.layout for plan in plans[:count])
            output.glyph_maps.extend(plan.glyph_map for plan in plans[:count])
        return output

    @torch.no_grad()
    def plan(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[Plan]:
        """Stage one alone: the glyph map and the layout read off it, for each prompt."""
        plans = []
        for chunk, count in _full_batches(len(prompts), self.config.batch_size):
            part = [prompts[i] for i in chunk]
            plans += self._plan_batch(part, [seeds[i] for i in chunk], [None] * len(part), self._defaults())[:count]
        return plans

    @torch.no_grad()
    def refine(self, prompts: Sequence[Prompt], seeds: Sequence[int], layouts: Sequence[Layout]) -> list[Image.Image]:
        """Stage two alone: pictures of prompts and layouts."""
        pictures = []
        for chunk, count in _full_batches(len(prompts), self.config.batch_size):
            plans = [Plan(layouts[i], None, None) for i in chunk]
            part = [prompts[i] for i in chunk]
            pictures += self._refine_batch(part, [seeds[i] for i in chunk], plans, self._defaults())[:count]
        return pictures

    def _defaults(self) -> _Settings:
        config = self.config
        return _Settings(config.steps, config.text_scale, config.layout_scale, config.refit, _no_report)

    def _plan_batch(
        self, prompts: list[Prompt], seeds: list[int], given: list[Layout | None], settings: _Settings
    ) -> list[Plan]:
        """A plan for each prompt: what was given, or what stage one draws."""
        if not self.uses_layout or all(layout is not None for layout in given):
            return [Plan(layout or Layout(()), None, None) for layout in given]
        if self.layout_unet is None:
            raise UserError("This pipeline has no layout UNet; give a layout with every prompt.")
        z = sample_latents(
            guided(self.layout_unet, self._read_prompts(prompts), None, self.config.planning_scale, 1.0),
            self.layout_scheduler,
            self._noise(seeds, 0),
            settings.steps,
            lambda _: settings.on_step(),
        )  # B C h w
        maps = ((decode(self.autoencoder, z).mean(dim=1) + 1) / 2).cpu().numpy()  # B H W
        plans = []
        for prompt, layout, glyph_map, latents in zip(prompts, given, maps, z, strict=True):
            if layout is not None:
                plans.append(Plan(layout, None, None))
            else:
                plans.append(Plan(refit_layout(glyph_map, prompt.strings), glyph_map, latents))
        return plans

    def _refine_batch(
        self, prompts: list[Prompt], seeds: list[int], plans: list[Plan], settings: _Settings
    ) -> list[Image.Image]:
        """Stage two: pictures of the plans."""
        z = self._layout_latents(plans, settings.refit) if self.uses_layout else None  # B C h w
        x_0 = sample_latents(
            guided(self.refine_unet, self._read_prompts(prompts), z, settings.text_scale, settings.layout_scale),
            self.refine_scheduler,
            self._noise(seeds, 1),
            settings.steps,
            lambda _: settings.on_step(),
        )  # B C h w
        pictures = ((decode(self.autoencoder, x_0) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(picture) for picture in pictures]

    def _layout_latents(self, plans: list[Plan], refit: bool) -> Tensor:
        """z of each plan: of its layout drawn again, or without refit the raw latents of stage one."""
        pixels = self.config.picture_pixels
        maps = np.stack([draw_glyph_map(plan.layout, pixels, pixels) for plan in plans])  # B H W
        canvas = torch.from_numpy(maps).to(self.device)[:, None].expand(-1, 3, -1, -1) * 2 - 1
        z = encode(self.autoencoder, canvas)
        if refit:
            return z
        return torch.stack([row if plan.z is None else plan.z for row, plan in zip(z, plans, strict=True)])

    def _read_prompts(self, prompts: list[Prompt]) -> Conditioning:
        """t of every prompt, each read on its own and filled up to one width: it cannot depend on its neighbours."""
        text_side = self.text_side
        parts = [text_side([prompt]) for prompt in prompts]
        width = -(-max(part.tokens.shape[1] for part in parts) // TOKEN_ROUNDING) * TOKEN_ROUNDING
        tokens = [F.pad(part.tokens, (0, 0, 0, width - part.tokens.shape[1])) for part in parts]
        masks = [F.pad(part.mask, (0, width - part.mask.shape[1])) for part in parts]
        return Conditioning(torch.cat(tokens), torch.cat(masks), torch.cat([part.pooled for part in parts]))

    def _noise(self, seeds: list[int], stage: int) -> Tensor:
        """Noise of one stage, B C h w, a picture's own generator each; drawn on the CPU, so that devices agree."""
        cells = self.config.picture_pixels // spatial_factor(self.autoencoder)
        shape = (self.refine_unet.config.out_channels, cells, cells)
        rows = [torch.randn(shape, generator=torch.Generator().manual_seed(2 * seed + stage)) for seed in seeds]
        return torch.stack(rows).to(self.device)


@dataclass(frozen=True)
class Plan:
    """What stands between the stages: the layout; with stage one its raw glyph map (H W, 0..1) and latents (C h w)."""

    layout: Layout
    glyph_map: np.ndarray | None
    z: Tensor | None


@dataclass(frozen=True)
class _Settings:
    steps: int
    text_scale: float
    layout_scale: float
    refit: bool
    on_step: Callable[[], None]


def _no_report() -> None:
    pass


def _full_batches(count: int, size: int) -> Iterator[tuple[list[int], int]]:
    """Indices in batches of exactly `size`, and how many of them count.

    The last batch repeats its last picture: with the same shapes the same kernels run, so that a picture comes
    out bit for bit the same alone and in company.
    """
    for start in range(0, count, size):
        indices = list(range(start, min(start + size, count)))
        yield indices + indices[-1:] * (size - len(indices)), len(indices)
