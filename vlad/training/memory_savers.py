"""What makes a stage smaller or faster, and not another: stored precision, recomputation, compilation."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vlad.config.training import Checkpointing, Compilation
from vlad.utils.errors import UserError


@contextmanager
def frozen_in_bf16(stage: nn.Module, trained: Collection[str], exact: str = "autoencoder.") -> Iterator[None]:
    """Inside the block the frozen matrices of a stage are stored in bf16, half of their memory; afterwards in float32.

    What is `trained` (parameter names), norms, biases and what begins with `exact` (the autoencoder: its latents
    are the targets) keep their precision. Under bf16 autocast a matrix is rounded before it multiplies
    anyway, so but for embeddings the result is that of bf16-mixed. Values that bf16 cannot hold come back from a
    copy in main memory; those of a model that was published in bf16 need none.
    """
    kept: dict[str, Tensor | None] = {}
    parameters = dict(stage.named_parameters())
    for name, parameter in parameters.items():
        if name in trained or parameter.ndim < 2 or parameter.dtype != torch.float32 or name.startswith(exact):
            continue
        rounded = parameter.data.to(torch.bfloat16)
        kept[name] = None if torch.equal(rounded.float(), parameter.data) else parameter.data.cpu()
        parameter.data = rounded
    try:
        yield
    finally:
        for name, value in kept.items():
            parameter = parameters[name]
            parameter.data = parameter.data.float() if value is None else value.to(parameter.device)


def checkpoint_activations(what: Checkpointing, unets: Sequence[Any], lvlm: Any) -> None:
    """Has the backward pass compute the activations of the UNets, or of the LVLM, block by block again.

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
    """Has torch compile the UNets: whole, or only the block that they repeat, which takes a fraction of the time.

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
    """Inside the block compiled modules run as they are written: a few images of other shapes are not worth a
    compilation."""
    with torch.compiler.set_stance("force_eager"):
        yield


def compile_as_written(unets: Sequence[nn.Module]) -> None:
    """Takes compilation back, so that what a run hands out is plain modules."""
    for unet in unets:
        for module in unet.modules():
            module._compiled_call_impl = None
