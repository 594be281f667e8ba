"""Samples images: python sample.py runs/tiny --prompt 'a blue sign that says "HOUSE"' --out samples"""

from __future__ import annotations

from vlad.utils.command_line import OptionParser, run_command_line
from vlad.utils.errors import UserError


def parser() -> OptionParser:
    result = OptionParser(description="Draws images of prompts, with the layout in between.")
    result.add_argument("run", nargs="?", help="a run directory, a pipeline folder, or hf://OWNER/NAME on the hub")
    asked = result.add_argument_group("what to draw")
    add = asked.add_argument
    add("--prompt", action="append", default=[], help="may be given several times")
    add("--prompts", action="append", default=[], metavar="FILE", help="text or JSONL; - reads standard input")
    add("--seed", "--seeds", metavar="SEEDS", help="7, 0-9 or 1,5,8-10: an image each of every prompt (default: 0)")
    add("--from", dest="repeat", metavar="IMAGE", help="repeat an image; other options change its recipe")
    add("--size", metavar="WxH", help="pixels (default: the model's own size)")
    add("--aspect", metavar="W:H", help="in place of --size: about as many pixels as the model's own size")
    add("--negative-prompt", metavar="TEXT", help="what guidance leads away from")

    where = result.add_argument_group("where the words go")
    add = where.add_argument
    add("--layout", metavar="FILE", help="a layout.json, or planner lines of TextDiffuser-2 (.txt)")
    add("--line", action="append", metavar="TEXT@L,T,R,B", help="a line in a box (or polygon); several times")
    add("--template", metavar="IMAGE", help="the text of an image, read by the OCR engine, stays where it is")
    add("--layout-only", action="store_true", help="stage one alone: layouts to edit, no images")
    add("--no-refit", action="store_true", help="hand the raw glyph map to stage two, as in the paper")
    add("--keep-raw", action="store_true", help="refit only the glyph maps that the OCR engine reads otherwise")

    part = result.add_argument_group("a part of an image drawn anew, the rest kept")
    add = part.add_argument
    add("--edit", metavar="IMAGE", help="what is written there: --line, or the prompt's strings; nothing removes text")
    add("--mask", action="append", default=[], metavar="MASK", help="an image (white: anew) or L,T,R,B; several times")

    how = result.add_argument_group("how to draw it")
    add = how.add_argument
    add("--steps", type=int, help="solver steps of each stage")
    add("--solver", help="ddim, dpm++, unipc, euler, flow-euler (default: the model's own)")
    add("--text-scale", type=float, help="guidance by the prompt, stage two")
    add("--layout-scale", type=float, help="guidance by the layout, stage two")
    add("--planning-scale", type=float, help="guidance by the prompt, stage one")
    add("--guidance-rescale", type=float, metavar="PHI", help="0 to 1: keeps large scales from glaring (default: 0)")
    add("--adapter", action="append", metavar="DIR[:WEIGHT]", help="a LoRA run or its adapter folder; several add up")
    add("--batch-size", type=int, help="images at once (default: the model's own)")
    add("--dtype", help="float32 (default), bfloat16 or float16")
    add("--compile", action="store_true", help="torch.compile: slow to start, for many images of one size")
    add("--channels-last", action="store_true", help="the memory format that convolutions may be faster in")
    add("--offload", action="store_true", help="keep on the GPU only the model that works")

    files = result.add_argument_group("what is written")
    add = files.add_argument
    add("--out", default="samples", metavar="DIR", help="where the images go (default: samples)")
    add("--overwrite", action="store_true", help="draw images that are there already again")
    return result


def main() -> int:
    arguments = parser().parse_args()
    if arguments.steps is not None and arguments.steps < 1:
        raise UserError("--steps must be at least 1.")
    # Late, so that --help and a mistyped option answer at once.
    from vlad.inference.sampling import sample

    return sample(arguments)


if __name__ == "__main__":
    run_command_line(main)
