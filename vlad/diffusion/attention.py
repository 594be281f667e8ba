"""Attention backends of the UNets. The only room that imports xformers.

`auto` takes xformers where its kernel really runs on this device, else torch's own (SDPA).
"""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0, XFormersAttnProcessor

from vlad.errors import UserError


def prove_xformers(device: torch.device) -> str | None:
    """None when xformers' kernel ran on the device just now, else the reason why it did not, in a few words."""
    try:
        from xformers import ops  # an optional extra, and slow to import
    except ImportError:
        return "xformers is not installed (pip install 'vlad[xformers]')"
    if device.type != "cuda":
        return f"xformers has no kernels for {device.type}"
    q = torch.randn(1, 8, 2, 32, device=device, dtype=torch.bfloat16)
    try:
        ops.memory_efficient_attention(q, q, q)
        torch.cuda.synchronize(device)
    except (NotImplementedError, RuntimeError) as error:
        # Not swallowed: `auto` prints the reason beside the backend it falls back to, `xformers` refuses with it.
        reason = str(error).strip() or type(error).__name__
        return f"its kernel does not run here: {reason.splitlines()[0]}"
    return None


def set_attention(unets: list[UNet2DConditionModel], backend: str, device: torch.device) -> str:
    """Gives the UNets the backend and returns the line that says which runs and why.

    Raises UserError for `xformers` where it cannot run.
    """
    reason = None if backend == "sdpa" else prove_xformers(device)
    if backend == "xformers" and reason is not None:
        raise UserError(f"trainer.attention: xformers was asked for, but {reason}; use auto or sdpa.")
    use_xformers = backend != "sdpa" and reason is None
    for unet in unets:
        unet.set_attn_processor(XFormersAttnProcessor() if use_xformers else AttnProcessor2_0())
    if use_xformers:
        return "attention: xformers (its kernel ran on this device)"
    return "attention: torch SDPA" + (f" ({reason})" if reason else "")
