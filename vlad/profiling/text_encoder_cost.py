"""Cost of training the text encoder: speed and memory frozen, with LoRA, and in full."""

from __future__ import annotations

import multiprocessing
import time
import warnings
from dataclasses import dataclass
from itertools import cycle, islice

import torch

from vlad.data.options import SyntheticOptions
from vlad.data.signs import render_sign
from vlad.lora.inject import add_adapter
from vlad.lora.options import LoraOptions
from vlad.models.options import LVLMOptions
from vlad.models.text_encoder.lvlm import LVLMEncoder
from vlad.models.text_encoder.lvlm_loading import load_lvlm
from vlad.models.text_encoder.prompt import parse_prompt
from vlad.utils.hardware import best_device, peak_process_bytes, synchronize


@dataclass(frozen=True)
class TextFigures:
    """Speed and memory (in bytes) of one training mode; that of `training` is exact on any machine."""

    mode: str
    prompts_per_second: float
    weights: int
    trained_parameters: int
    # Gradients and the optimiser's state, summed over their tensors.
    training: int
    # Peaks of the process, and on a GPU (0 without one).
    peak_process: int
    peak_device: int


def compare_text_training(count: int, lvlm_path: str | None) -> None:
    """Prints prompts per second and memory of one LVLM frozen, with LoRA, and trained in full; a process each."""
    modes = ("frozen", "lora", "full")
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        figures = [pool.apply(measure_text, (mode, count, lvlm_path)) for mode in modes]
    device = "GPU" if figures[0].peak_device else "process"
    print(f"{'':8}{'prompts/s':>10}{'weights':>12}{'trained':>12}{'grads + optimiser':>19}{f'peak of {device}':>18}")
    for row in figures:
        print(
            f"{row.mode:8}{row.prompts_per_second:10.1f}{row.weights / 1e6:9.1f} MB{row.trained_parameters:12,}"
            f"{row.training / 1e6:16.2f} MB{(row.peak_device or row.peak_process) / 1e6:15.0f} MB"
        )
    print(f"LoRA's gradients and optimiser take {figures[1].training / figures[2].training:.3f} of full training's.")


def measure_text(mode: str, count: int, lvlm_path: str | None, batch_size: int = 16) -> TextFigures:
    """Encodes `count` prompts in batches, with training steps or without, and measures speed and memory."""
    warnings.filterwarnings("ignore", module=r"(transformers|peft).*")
    torch.manual_seed(0)
    # All modes from float32 weights, whatever the folder's dtype: the same model.
    options = LVLMOptions(path=lvlm_path, hidden_size=512, layers=6, heads=8)
    device = best_device()
    encoder = LVLMEncoder(*load_lvlm(options, with_vision=False), options).to(device)
    if mode == "lora":
        lora = LoraOptions()
        encoder.model = add_adapter(encoder.model, lora, lora.lvlm_targets, "benchmark", allowed=encoder.text_modules())
    else:
        read = encoder.parameters_used(with_images=False)
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad_(mode == "full" and name in read)
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5) if trained else None
    captions = [render_sign(SyntheticOptions(), index).caption for index in range(min(count, 200))]
    prompts = [parse_prompt(caption, strict=False) for caption in islice(cycle(captions), count)]
    encoder.train()

    def step(batch: list) -> None:
        with torch.set_grad_enabled(optimizer is not None):
            states = encoder(batch)
        if optimizer is not None:
            optimizer.zero_grad()
            states.global_state.square().mean().backward()
            optimizer.step()

    step(prompts[:batch_size])  # creates the optimiser's state
    started = time.perf_counter()
    for start in range(0, count, batch_size):
        step(prompts[start : start + batch_size])
    synchronize(device)
    seconds = time.perf_counter() - started
    kept = [parameter.grad for parameter in trained if parameter.grad is not None]
    if optimizer is not None:
        kept += [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return TextFigures(
        mode,
        count / seconds,
        sum(parameter.nbytes for parameter in encoder.parameters()),
        sum(parameter.numel() for parameter in trained),
        sum(tensor.nbytes for tensor in kept),
        peak_process_bytes(),
        torch.cuda.max_memory_allocated() if device.type == "cuda" else 0,
    )
