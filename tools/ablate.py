"""What each part is worth, by training without it: python tools/ablate.py configs/tiny.yaml

Run it again: what is done is not done twice, and what was interrupted goes on. With more --seeds, those are added.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from vlad.errors import UserError, run_command_line

ROOT = Path(__file__).resolve().parent.parent


def call(*command: str) -> None:
    """Runs one of the project's own commands, its output shown; a failure ends the ablation with its code."""
    print(f"\n== python {' '.join(command)}", flush=True)
    code = subprocess.run([sys.executable, str(ROOT / command[0]), *command[1:]], check=False).returncode
    if code == 2:
        raise UserError(f"the ablation stopped at: python {' '.join(command)} (see above).")
    if code != 0:
        sys.exit(code)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Trains the full method and four without a part of it, several seeds each, and prints the table."
    )
    parser.add_argument("config", type=Path, help="a config of the whole method, such as configs/tiny.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="options that replace the file's, in all runs"
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant (default: 3)")
    parser.add_argument("--count", type=int, default=200, help="held-out words that are drawn (default: 200)")
    parser.add_argument("--out", type=Path, help="the table and the pictures; default: RUNS/NAME-ablation")
    arguments = parser.parse_args()
    if min(arguments.seeds, arguments.count) < 1:
        raise UserError("--seeds and --count must be at least 1.")

    from vlad.ablation import ablation_grid, ablation_page, read_scores, run_overrides, share_autoencoder, variants
    from vlad.config import load_config
    from vlad.errors import writable_directory
    from vlad.evaluation.held_out import held_out_signs
    from vlad.evaluation.ocr import build_engine
    from vlad.launch import is_finished

    config = load_config(arguments.config, arguments.overrides)
    rows = variants(config)
    out = writable_directory(arguments.out or Path(config.runs) / f"{config.name}-ablation", "the table")
    engine = build_engine("rapidocr").name
    captions = [sign.caption for sign in held_out_signs(config.data.synthetic, arguments.count)]
    runs: dict[tuple[str, int], Path] = {}

    def write(seeds: int) -> str:
        """Writes the table of the first seeds and the pictures; gives the table."""
        found = [(variant, [read_scores(runs[variant.name, seed]) for seed in range(seeds)]) for variant in rows]
        given = " ".join(["python tools/ablate.py", str(arguments.config), *arguments.overrides])
        command = f"{given} --seeds {seeds} --count {arguments.count}"
        page = ablation_page(config, found, command, arguments.count, engine, "ablation.png")
        (out / "ablation.md").write_text(page, encoding="utf-8")
        ablation_grid([(variant, runs[variant.name, 0]) for variant in rows], captions).save(out / "ablation.png")
        return page

    # Seed by seed: whoever stops early has every variant once, and the table of it.
    for seed in range(arguments.seeds):
        for variant in rows:
            overrides = run_overrides(config, variant, seed, arguments.overrides)
            trained = load_config(arguments.config, overrides)
            runs[variant.name, seed] = trained.directory
            if not is_finished(trained):
                share_autoencoder(runs[rows[0].name, seed], trained.directory)
                call("train.py", str(arguments.config), *overrides)
                if not is_finished(trained):
                    print("\nThe training was interrupted; the same command goes on with it.")
                    return 130
            call("tools/evaluate.py", str(trained.directory), "--count", str(arguments.count))
        print(f"\n{write(seed + 1)}\nTable and pictures: {out}")
    return 0


if __name__ == "__main__":
    run_command_line(main)
