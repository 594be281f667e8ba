"""Options that several verbs share: the same name means the same everywhere."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from vlad.utils.command_line import OptionParser, whole
from vlad.utils.errors import UserError


def add_config(parser: OptionParser) -> None:
    """A run's config with overrides."""
    parser.add_argument("config", help="a YAML file, a run's config.yaml, or the name of a bundled config such as tiny")
    parser.add_overrides("options that replace the file's, anywhere on the line")


def add_engine(parser: OptionParser) -> None:
    """Which OCR engine reads images."""
    parser.add_argument(
        "--engine", "--ocr", default="rapidocr", metavar="NAME", help="rapidocr (default), tesseract or paddleocr"
    )


def add_prompts(parser: OptionParser, *, required: bool) -> None:
    """Prompt files, and how many of their prompts are taken."""
    parser.add_argument(
        "--prompts",
        type=Path,
        nargs="+",
        action="extend",
        required=required,
        metavar="FILE",
        help="prompt files in the benchmark's own format",
    )
    parser.add_argument(
        "--count", "--first", type=whole(1), metavar="N", help="only the first N prompts (default: all)"
    )


def add_seed(parser: OptionParser, of_what: str) -> None:
    """One seed."""
    parser.add_argument("--seed", type=whole(), default=0, metavar="N", help=f"{of_what} (default: 0)")


def add_address(parser: OptionParser) -> None:
    """Where a page is served."""
    parser.add_argument("--host", default="127.0.0.1", help="which address listens (default: this machine alone)")
    parser.add_argument("--port", type=whole(1, 65535), help="default: the first free one from 7860")


def side(least: int = 1, most: int | None = None) -> Callable[[str], int]:
    """The type of a `--size` whose images are square: 512, or 512x512."""
    in_range = whole(least, most)

    def parse(text: str) -> int:
        square = re.fullmatch(r"(\d+)[xX×](\d+)", text)
        if square is not None and int(square[1]) != int(square[2]):
            raise argparse.ArgumentTypeError(f"must be a square's, such as 512 or 512x512, not {text!r}")
        return in_range(text if square is None else square[1])

    return parse


def named_places(words: list[str]) -> dict[str, str]:
    """NAME=PLACE pairs; a place alone has the name of its last part. Raises UserError for a name given twice."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, place = word.partition("=")
        name, place = (name, place) if equals else (Path(word).name, word)
        if not name or not place or name in found:
            raise UserError(f"{word!r} names nothing, or the same twice; write NAME=PLACE for each.")
        found[name] = place
    return found
