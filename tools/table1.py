"""Table I, every row beside its published figures: python tools/table1.py --prompts FILE ... vlad.path=runs/NAME

Run it again: images that are drawn and read already are not made twice.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vlad.utils.command_line import run_command_line
from vlad.utils.errors import UserError
from vlad.utils.paths import checked_path

ENTRIES = Path(__file__).resolve().parent.parent / "configs" / "eval"


def main() -> int:
    parser = argparse.ArgumentParser(description="Draws and scores every row of configs/eval, and prints the table.")
    parser.add_argument("overrides", nargs="*", metavar="ROW.key=value", help="such as vlad.path=runs/tiny")
    parser.add_argument(
        "--prompts", type=Path, nargs="+", required=True, metavar="FILE", help="MARIO-Eval's, or others"
    )
    parser.add_argument("--entries", type=Path, default=ENTRIES, metavar="DIR", help="default: configs/eval")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="only these (default: all)")
    parser.add_argument("--out", default="evaluations/table1", metavar="DIR", help="default: evaluations/table1")
    parser.add_argument("--engine", default="rapidocr", help="rapidocr (default), tesseract or paddleocr")
    parser.add_argument("--workers", type=int, help="processes that read; default: one a core")
    parser.add_argument("--first", type=int, metavar="N", help="only the first N prompts")
    parser.add_argument("--images-per-prompt", type=int, default=4, help="as in MARIO-Eval: 4 (default)")
    parser.add_argument("--seed", type=int, default=0, help="of all images together (default: 0)")
    parser.add_argument("--use-layouts", action="store_true", help="rows that take layouts get the prompt file's")
    parser.add_argument("--weights", type=Path, default=Path("weights"), help="where Inception and CLIP are looked for")
    parser.add_argument(
        "--references", type=Path, metavar="DIR", help="real images for FID, such as MARIOEval with its sets' folders"
    )
    arguments = parser.parse_args()
    for name in ("workers", "first", "images_per_prompt"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1.")
    if not arguments.out:
        raise UserError("--out names no folder; name one, such as evaluations/table1.")
    for name in ("entries", "out", "weights", "references"):
        if (place := getattr(arguments, name)) is not None:
            checked_path(place, f"--{name}")

    from vlad.eval.benchmark.prompt_files import prompts_and_overrides, read_prompt_files

    prompts, more = prompts_and_overrides(arguments.prompts)
    if not prompts:
        raise UserError("--prompts names no file; name one of your benchmark's.")
    read_prompt_files(prompts)  # a mistake in them answers at once, also where no row has its models

    from vlad.eval.options import BenchmarkOptions, OCROptions
    from vlad.eval.table1 import evaluate_table1

    # Settings behind --rows are no rows, as those behind --prompts are no files.
    behind = arguments.rows or []
    chosen_rows = [name for name in behind if "=" not in name]
    overrides = [*more, *(name for name in behind if "=" in name), *arguments.overrides]
    options = BenchmarkOptions(
        prompts=prompts,
        ocr=OCROptions(arguments.engine, workers=arguments.workers),
        first=arguments.first,
        images_per_prompt=arguments.images_per_prompt,
        seed=arguments.seed,
        use_layouts=arguments.use_layouts,
        weights=arguments.weights,
        references=arguments.references,
    )
    rows, text = evaluate_table1(arguments.entries, chosen_rows, overrides, options, Path(arguments.out))
    print(text)
    print(f"Table, and a report of each row: {arguments.out}")
    return 1 if any(row.faults for row in rows) else 0


if __name__ == "__main__":
    run_command_line(main)
