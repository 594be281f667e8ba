"""How much memory a run takes, before it starts: python tools/plan.py CONFIG [key=value ...] [--gpu-gb 12]

A table for each stage: weights, gradients, optimiser, averages and activations, and what would make it fit. Reads the
models that the run would read; trains nothing.
"""

from __future__ import annotations

import argparse

from vlad.utils.command_line import run_command_line
from vlad.utils.errors import UserError


def main() -> int:
    parser = argparse.ArgumentParser(description="Tells the memory of each stage, and what would make it fit.")
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument(
        "--gpu-gb", type=float, help="memory of the GPU, GB of 10^9 bytes; left out: that of the one here"
    )
    arguments = parser.parse_args()
    if arguments.gpu_gb is not None and not 0 < arguments.gpu_gb < 1e6:
        raise UserError(f"--gpu-gb must be a number of gigabytes above 0, not {arguments.gpu_gb:g}.")

    from vlad.config.checks import check_config
    from vlad.config.load import load_config

    config = load_config(arguments.config, arguments.overrides)
    check_config(config)
    from vlad.training.build import build_parts
    from vlad.training.devices import sharding_ranks
    from vlad.training.memory_plan import CONTEXT_BYTES, GB, device_bytes, is_packed, plan_table, ways_to_fit

    if config.align_stage == "only":
        raise UserError("align_stage: only trains no UNet; a plan is of the stages layout and refine.")
    parts, config = build_parts(config)
    if is_packed(parts):
        raise UserError("lora.base_bits: leave it out here; the plan says what packing the base would bring.")
    room = device_bytes() if arguments.gpu_gb is None else int(arguments.gpu_gb * GB)
    for name in ["refine"] if parts.layout_unet is None else ["layout", "refine"]:
        print(plan_table(ways_to_fit(config, parts, name, room, sharding_ranks(config)), room) + "\n")
    counted = "; --gpu-gb SIZE says what fits" if room is None else ", which 'fits' counts"
    print(
        f"GB of 10^9 bytes, of each process. A GPU takes about {CONTEXT_BYTES / GB:.1f} more for itself (assumed)"
        f"{counted}."
    )
    return 0


if __name__ == "__main__":
    run_command_line(main)
