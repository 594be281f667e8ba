"""Scores a run on held-out words: python tools/evaluate.py runs/tiny"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from vlad.errors import UserError, run_command_line


def evaluate_run(run: Path, count: int = 200, engine: str = "rapidocr") -> dict[str, Any]:
    """Scores a finished run in all three ways, once: writes RUN/evaluation/ and returns its metrics."""
    from tqdm import tqdm

    from vlad.config import load_config
    from vlad.errors import existing_file, writable_directory
    from vlad.evaluation.held_out import MODES, held_out_signs, score_spelling, spelling_grid
    from vlad.evaluation.ocr import build_engine
    from vlad.sampling import load_pipeline
    from vlad.training.callbacks import write_metrics

    out = run / "evaluation"
    metrics_file = out / "metrics.json"
    name = build_engine(engine).name
    if metrics_file.is_file():
        stored: dict[str, Any] = json.loads(metrics_file.read_text(encoding="utf-8"))
        if (stored["words"], stored["engine"]) == (count, name):
            return stored
    pipeline = load_pipeline(run)
    config = load_config(existing_file(run / "config.yaml", "config", "name a run directory that train.py made"))
    writable_directory(out, "the evaluation", needed_bytes=20_000_000)
    signs = held_out_signs(config.data.synthetic, count)
    metrics: dict[str, Any] = {
        "words": count,
        "engine": name,
        "protocol": "picture enlarged 4 times (bicubic), exact match of the whole reading, case and spaces ignored",
        "modes": {},
    }
    for mode in MODES if pipeline.layout_unet is not None else ("true layout",):
        with tqdm(total=count, desc=f"scoring, {mode}", unit="picture") as bar:

            def show(done: int, bar: Any = bar) -> None:
                bar.update(done - bar.n)

            score, images, rows = score_spelling(pipeline, signs, mode, engine, show)
        metrics["modes"][mode] = dataclasses.asdict(score)
        folder = out / mode.replace(" ", "-")
        writable_directory(folder, "pictures")
        for number, image in enumerate(images):
            image.save(folder / f"{number:04d}.png")
        spelling_grid(rows[:32]).save(out / f"{folder.name}.png")
    write_metrics(metrics_file, metrics)
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description="Reads held-out words in a run's pictures, and its colours.")
    parser.add_argument("run", type=Path, help="a finished run directory")
    parser.add_argument("--count", type=int, default=200, help="how many words (default: 200)")
    parser.add_argument("--engine", default="rapidocr", help="the OCR engine (default: rapidocr)")
    arguments = parser.parse_args()
    if arguments.count < 1:
        raise UserError("--count must be at least 1.")
    metrics = evaluate_run(arguments.run, arguments.count, arguments.engine)
    print(f"{metrics['words']} held-out words, {metrics['engine']}, {metrics['protocol']}")
    for mode, score in metrics["modes"].items():
        colours = score["colours"]
        print(
            f"{mode:12} words {score['word_accuracy']:6.1%}  letters {score['letter_accuracy']:6.1%}"
            f"  ground {colours['grounds_right']:6.1%} (off by {colours['ground_distance']:.0f})"
            f"  ink {colours['inks_right']:6.1%} (off by {colours['ink_distance']:.0f})"
            f"  {score['words'] / score['sampling_seconds']:.1f} pictures/s"
        )
        print("             misread:", ", ".join(f"{wanted}>{read or '-'}" for wanted, read in score["misread"][:12]))
    print(f"Pictures and grids: {arguments.run / 'evaluation'}")


if __name__ == "__main__":
    run_command_line(main)
