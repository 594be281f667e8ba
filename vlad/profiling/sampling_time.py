"""Sampling time by part of the pipeline, compared with diffusers' StableDiffusionPipeline."""

from __future__ import annotations

import copy
import functools
import operator
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from vlad.config.load import bundled_configs, load_config
from vlad.layout.polygons import box_polygon
from vlad.training.build import build_pipeline, new_parts
from vlad.types import Layout, TextLine
from vlad.utils.hardware import best_device, peak_memory_bytes, synchronize

SAMPLE_PROMPT = 'a blue sign that says "HOUSE" in white letters at the top'
SAMPLE_ROUNDS = 15
STAGE_TWO = "stage two without its decoder"
STABLE_DIFFUSION = "diffusers' StableDiffusionPipeline without its decoder"


@dataclass(frozen=True)
class SampleFigures:
    """Sampling time and memory; times are medians of the rounds."""

    seconds: dict[str, float]  # per image, by part of the pipeline
    ratio: float  # stage two's time over that of StableDiffusionPipeline, median of the rounds' ratios
    peak: int  # bytes of the process or of the GPU, for our pipeline


def random_pipeline() -> Any:
    """A pipeline of the embedded default's sizes with random weights, on the GPU where there is one."""
    config = load_config(bundled_configs() / "tiny.yaml")
    pipeline = build_pipeline(config, new_parts(config))
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(best_device())


def measure_sample(
    pipeline: Any, steps: int, batch: int, rounds: int = SAMPLE_ROUNDS, faster: tuple[str, ...] = ()
) -> SampleFigures:
    """Measures the parts of sampling, and StableDiffusionPipeline, in alternating rounds.

    `faster`: "channels last", "compiled": variants of the UNet for which stage two is measured once more.
    """
    device = pipeline.refine_unet.device
    prompts, seeds = [SAMPLE_PROMPT] * batch, list(range(batch))
    parsed = [pipeline.check_prompt(prompt) for prompt in prompts]
    settings = pipeline.settings(steps=steps, batch_size=batch, text_scale=2.0, layout_scale=2.0)
    size = settings.height, settings.width
    tokens = pipeline.encode_prompts(parsed[:1], None, size).positive.tokens.expand(batch, -1, -1)
    layouts = [Layout((TextLine("HOUSE", box_polygon(0.1, 0.1, 0.9, 0.3)),))] * batch
    own = pipeline.refine_unet

    def stage_two(output_type: str, unet: Any = own) -> None:
        pipeline.register_modules(refine_unet=unet)
        pipeline(prompts, seeds, layouts, steps, 2.0, 2.0, batch_size=batch, output_type=output_type)

    parts: dict[str, Callable[[], object]] = {
        "encoding the prompts": lambda: pipeline.encode_prompts(parsed, None, size),
        STAGE_TWO: lambda: stage_two("latent"),
        "stage two": lambda: stage_two("pil"),
    }
    if pipeline.layout_unet is not None:
        parts["stage one, with its decoder and refit"] = lambda: pipeline.plan(parsed, seeds, settings)

    def seconds_of(work: Callable[[], object]) -> float:
        started = time.perf_counter()
        with torch.no_grad():
            work()
        synchronize(device)
        return time.perf_counter() - started

    for work in parts.values():  # warm-up, and our own peak before other models are built
        seconds_of(work)
    peak = peak_memory_bytes(device)
    others = {STABLE_DIFFUSION: stable_diffusion(own, tokens, seeds, steps)}
    for variant in faster:
        unet = copy.deepcopy(own)
        if variant == "compiled":
            unet.compile()
        else:
            unet.to(memory_format=torch.channels_last)
        others[f"{STAGE_TWO}, {variant}"] = functools.partial(stage_two, "latent", unet)
    for work in others.values():
        seconds_of(work)
    parts |= others
    measured: dict[str, list[float]] = {part: [] for part in parts}
    for _ in range(rounds):
        for part, work in parts.items():
            measured[part].append(seconds_of(work) / batch)
    ratio = statistics.median(map(operator.truediv, measured[STAGE_TWO], measured[STABLE_DIFFUSION]))
    return SampleFigures({part: statistics.median(values) for part, values in measured.items()}, ratio, peak)


def stable_diffusion(unet: Any, tokens: Any, seeds: list[int], steps: int) -> Callable[[], object]:
    """Sampling with diffusers' own pipeline on tokens (B K D), with a new UNet of the same blocks and width.

    It has neither the channels concatenated to x_t nor the pooled conditioning.
    """
    options = {**unet.config, "in_channels": unet.config.out_channels, "class_embed_type": None}
    options["projection_class_embeddings_input_dim"] = None
    plain = UNet2DConditionModel.from_config(options).eval().to(unet.device)
    solver = DDIMScheduler(steps_offset=1, clip_sample=False)
    pipeline = StableDiffusionPipeline(None, None, None, plain, solver, None, None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    side = unet.config.sample_size * pipeline.vae_scale_factor

    def work() -> object:
        return pipeline(
            prompt_embeds=tokens,
            negative_prompt_embeds=torch.zeros_like(tokens),
            height=side,
            width=side,
            num_inference_steps=steps,
            guidance_scale=2.0,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="latent",
        )

    return work
