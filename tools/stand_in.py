"""A stand-in for Stable Diffusion, small and of random weights: python tools/stand_in.py sd15 --out FOLDER

Saved in the format of the real one, to try a config before the weights are downloaded. Its images are noise.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vlad.utils.command_line import run_command_line
from vlad.utils.errors import UserError
from vlad.utils.paths import writable_directory


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes a small model of random weights in Stable Diffusion's format.")
    parser.add_argument("kind", choices=("sd15", "sd21", "sdxl"))
    parser.add_argument("--out", required=True, help="a new folder")
    parser.add_argument("--real-size", action="store_true", help="as large as the real one (to plan its memory)")
    arguments = parser.parse_args()
    out = Path(arguments.out)
    if out.exists():
        raise UserError(f"{out} is there already; name a new folder with --out.")

    from vlad.profiling.stand_in import REAL, save_stand_in

    writable_directory(out, "a stand-in", needed_bytes=30_000_000_000 if arguments.real_size else 10_000_000)
    save_stand_in(arguments.kind, out, REAL[arguments.kind] if arguments.real_size else None)
    print(f"A stand-in for {arguments.kind} in {out}; train from it with stable_diffusion.path={out}")
    return 0


if __name__ == "__main__":
    run_command_line(main)
