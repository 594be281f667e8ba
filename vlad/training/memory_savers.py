"""Memory and speed of a stage: bf16 frozen weights, activation checkpointing, attention, torch.compile."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vlad.config.schema import Config
from vlad.config.training import Checkpointing, Compilation, Precision
from vlad.models.attention import set_attention
from vlad.training.parts import Parts
from vlad.utils.errors import UserError


@contextmanager
def cast_frozen_weights(stage: nn.Module, trained: Collection[str], precision: Precision) -> Iterator[None]:
    """Under bf16-true stores the frozen matrices of a stage in bf16 inside the block: half of their memory.

    What is `trained` (parameter names), norms, biases and the autoencoder (its latents are the targets) keep their
    precision. Under bf16 autocast a matrix is rounded before it multiplies anyway, so but for
    embeddings the result is that of bf16-mixed. Values that bf16 cannot hold come back from a copy in main memory;
    those of a model that was published in bf16 need none. Other precisions change nothing.
    """
    originals: dict[str, Tensor | None] = {}
    parameters = dict(stage.named_parameters())
    for name, parameter in parameters.items() if precision == "bf16-true" else ():
        if name in trained or parameter.ndim < 2 or parameter.dtype != torch.float32 or name.startswith("autoencoder."):
            continue
        rounded = parameter.data.to(torch.bfloat16)
        originals[name] = None if torch.equal(rounded.float(), parameter.data) else parameter.data.cpu()
        parameter.data = rounded
    try:
        yield
    finally:
        for name, value in originals.items():
            parameter = parameters[name]
            parameter.data = parameter.data.float() if value is None else value.to(parameter.device)


def checkpoint_activations(what: Checkpointing, unets: Sequence[Any], lvlm: Any) -> None:
    """Activation checkpointing: the backward pass computes activations of the UNets, or the LVLM, again block by block.

    Raises UserError for an LVLM whose class cannot.
    """
    if what in ("unets", "all"):
        for unet in unets:
            unet.enable_gradient_checkpointing()
    if what not in ("lvlm", "all"):
        return
    # The name of transformers 5.23, and the older one.
    enable = getattr(lvlm, "activation_checkpointing_enable", None) or getattr(
        lvlm, "gradient_checkpointing_enable", None
    )
    try:
        if enable is None:
            raise ValueError("it has no such method")
        enable()
    except ValueError as error:
        raise UserError(
            f"trainer.activation_checkpointing: {type(lvlm).__name__} does not recompute its activations ({error});"
            " set it to unets or none."
        ) from error


BACKEND = "inductor"


def compile_unets(what: Compilation, unets: Sequence[Any], device: torch.device) -> None:
    """Compiles the UNets: whole, or only the block that they repeat, which takes a fraction of the time.

    In place: names of parameters and files stay as they are. Raises UserError where torch cannot compile.
    """
    if what == "none":
        return
    reason = prove_compile(device)
    if reason is not None:
        remedy = "install Triton" if device.type == "cuda" else "install a C++ compiler (g++)"
        raise UserError(f"trainer.compile: torch cannot compile here ({reason}); {remedy}, or set it to none.")
    for unet in unets:
        if what == "whole":
            unet.compile(backend=BACKEND)
        else:
            unet.compile_repeated_blocks(backend=BACKEND)


def prove_compile(device: torch.device) -> str | None:
    """None when torch has compiled and run a function on the device just now, else the reason in a few words."""

    def wave(x: Tensor) -> Tensor:
        return (x.sin() * 2).sum()

    try:
        torch.compile(wave, backend=BACKEND)(torch.ones(8, device=device))
    except Exception as error:  # the compiler's own, the C++ compiler's, Triton's: they share no class
        inner = getattr(error, "inner_exception", error)
        lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
        return (lines[0] if lines else type(inner).__name__)[:160]
    return None


@contextmanager
def uncompiled() -> Iterator[None]:
    """Inside the block compiled modules run eagerly: a few images of other shapes are not worth a compilation."""
    with torch.compiler.set_stance("force_eager"):
        yield


def remove_compilation(unets: Sequence[nn.Module]) -> None:
    """Makes compiled modules plain ones again, for what a run publishes."""
    for unet in unets:
        for module in unet.modules():
            module._compiled_call_impl = None


def configure_models(config: Config, parts: Parts, device: torch.device, dtype: torch.dtype) -> str:
    """Sets attention, recomputation and compilation of a run's models; returns the line that says which attention runs.

    Raises UserError for what cannot run here.
    """
    line = set_attention(parts.unets, config.trainer.attention, device, dtype)
    checkpoint_activations(config.trainer.activation_checkpointing, parts.unets, parts.text_side.lvlm.model)
    compile_unets(config.trainer.compile, parts.unets, device)
    return line
