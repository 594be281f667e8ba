"""Mixed precision: which precision a stage runs in, as configured or as far as the device has it natively.

              frozen weights                          trained weights, gradients, moments, averages   computed in
32-true       float32                                 float32                                         float32
bf16-mixed    float32                                 float32                                         bf16 (autocast)
bf16-true     matrices in bf16, the autoencoder,      float32: steps of a thousandth of a weight are  bf16 (autocast)
              norms and biases in float32             lost in bf16
16-mixed      float32                                 float32, with a loss scaler                     float16 (autocast)

The latents that the autoencoder makes are targets: always float32.
"""

from __future__ import annotations

import platform
from typing import Literal

import torch

from vlad.config.schema import Config
from vlad.config.training import OptimOptions, Precision
from vlad.utils.errors import UserError
from vlad.utils.hardware import best_device


def cpu_has_bf16() -> bool:
    """Whether this CPU computes in bf16 itself: AVX-512 BF16 or AMX, or what oneDNN finds on another architecture."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def native_precision(wanted: Precision, device: torch.device) -> tuple[Precision, str | None]:
    """The precision to run in, with a note where it is another than `wanted`.

    A CPU without bf16 instructions emulates them nine times slower than float32 (docs/LOG.md): there, and on MPS,
    float32 takes its place. Raises UserError for what a device cannot do: 16-mixed on a CPU, bf16 on a GPU older than
    Ampere.
    """
    if device.type == "mps" and wanted != "32-true":
        return "32-true", f"on MPS: trained in float32 in place of {wanted}"
    if wanted == "16-mixed" and device.type == "cpu":
        raise UserError("trainer.precision: 16-mixed needs a GPU; on a CPU use bf16-mixed or 32-true.")
    if not wanted.startswith("bf16"):
        return wanted, None
    if device.type == "cuda":
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            raise UserError(
                f"trainer.precision: {torch.cuda.get_device_name()} has no bf16; use 16-mixed or 32-true (a stage's own"
                " is train.STAGE.precision)."
            )
        return wanted, None
    if not cpu_has_bf16():
        return "32-true", f"this CPU has no bf16 instructions: trained in float32 in place of {wanted}"
    return wanted, None


def computed_in(precision: Precision) -> torch.dtype:
    """The dtype that the UNets compute in."""
    return {"16-mixed": torch.float16, "32-true": torch.float32}.get(precision, torch.bfloat16)


def autocast_of(precision: Precision) -> Literal["32-true", "bf16-mixed", "16-mixed"]:
    """Lightning's precision plugin: its bf16-true would store trained weights in bf16, too."""
    return "bf16-mixed" if precision == "bf16-true" else precision


def stage_precision(config: Config, name: str) -> tuple[Precision, str | None]:
    """A stage's precision here, with a note where another was asked for. Raises UserError for an impossible one."""
    optim: OptimOptions = getattr(config.train, name)
    return native_precision(optim.precision or config.trainer.precision, best_device(config.trainer.accelerator))
