"""Verbs on a trained model: sample, app, export."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from vlad.cli.common_options import add_address
from vlad.cli.verb import Verb
from vlad.utils.command_line import OptionParser, whole
from vlad.utils.errors import UserError


def _add_sample_options(parser: OptionParser) -> None:
    parser.add_argument(
        "run", nargs="?", help="a run directory, a pipeline folder, or hf://OWNER/NAME[@REVISION] on the hub"
    )
    prompts = parser.add_argument_group("prompts and sizes")
    add = prompts.add_argument
    add("--prompt", action="append", default=[], help="may be given several times")
    add("--prompts", action="append", default=[], metavar="FILE", help="text or JSONL; - reads standard input")
    add("--seed", "--seeds", metavar="SEEDS", help="7, 0-9 or 1,5,8-10: an image each of every prompt (default: 0)")
    add("--from", dest="repeat", metavar="IMAGE", help="repeat an image; other options change its recipe")
    add("--size", metavar="WxH", help="pixels (default: the model's own size)")
    add("--aspect", metavar="W:H", help="in place of --size: about as many pixels as the model's own size")
    add("--negative-prompt", metavar="TEXT", help="what guidance leads away from")

    layout = parser.add_argument_group("layout")
    add = layout.add_argument
    add("--layout", metavar="FILE", help="a layout.json, or planner lines of TextDiffuser-2 (.txt)")
    add("--line", action="append", metavar="TEXT@L,T,R,B", help="a line in a box (or polygon); several times")
    add("--template", metavar="IMAGE", help="the text of an image, read by the OCR engine, stays where it is")
    add("--layout-only", action="store_true", help="stage one alone: layouts to edit, no images")
    add("--no-refit", action="store_true", help="hand the raw glyph map to stage two, as in the paper")
    add("--keep-raw", action="store_true", help="refit only the glyph maps that the OCR engine reads otherwise")

    edit = parser.add_argument_group("editing: generates a part of an image again, keeps the rest")
    add = edit.add_argument
    add(
        "--edit",
        metavar="IMAGE",
        help="write --line, or the prompt's strings, into the mask; without either, remove the text there",
    )
    add(
        "--mask",
        action="append",
        default=[],
        metavar="MASK",
        help="an image (white is generated again) or L,T,R,B; several times",
    )

    sampling = parser.add_argument_group("sampling")
    add = sampling.add_argument
    add("--steps", type=whole(1), help="solver steps of each stage")
    add("--solver", help="ddim, dpm++, unipc, euler, flow-euler (default: the model's own)")
    add("--text-scale", type=float, help="guidance scale of the prompt, stage two")
    add("--layout-scale", type=float, help="guidance scale of the layout, stage two")
    add("--planning-scale", type=float, help="guidance scale of the prompt, stage one")
    add(
        "--guidance-rescale",
        type=float,
        metavar="PHI",
        help="0 to 1: against overexposure by large scales (default: 0)",
    )
    add("--adapter", action="append", metavar="DIR[:WEIGHT]", help="a LoRA run or its adapter folder; several add up")
    add("--batch-size", type=int, help="images at once (default: the model's own)")
    add("--dtype", help="float32 (default), bfloat16 or float16")
    add("--compile", action="store_true", help="torch.compile: slow to start, for many images of one size")
    add("--channels-last", action="store_true", help="the memory format that convolutions may be faster in")
    add("--offload", action="store_true", help="keep on the GPU only the model that is running")

    files = parser.add_argument_group("output")
    add = files.add_argument
    add("--out", default="samples", metavar="DIR", help="where the images go (default: samples)")
    add("--overwrite", action="store_true", help="generate existing images again")


def _sample(arguments: argparse.Namespace) -> int:
    from vlad.inference.options import SampleCall

    call = SampleCall.from_arguments(arguments)  # before torch is loaded
    from vlad.inference.sampling import sample

    return sample(call)


SAMPLE = Verb(
    "sample",
    "Samples images from prompts, with the layout in between.",
    _add_sample_options,
    _sample,
    "vlad sample runs/tiny --prompt 'a blue sign that says \"HOUSE\"' --out samples",
)


LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")


def _add_app_options(parser: OptionParser) -> None:
    parser.add_argument(
        "run",
        nargs="?",
        help="a run directory, a pipeline folder, or hf://OWNER/NAME[@REVISION] on the hub (default: models/poster)",
    )
    parser.add_argument("--adapter", action="append", default=[], metavar="DIR[:WEIGHT]", help="several add up")
    parser.add_argument("--dtype", default="float32", help="float32 (default), bfloat16 or float16")
    add_address(parser)
    parser.add_argument(
        "--waiting", type=whole(1), default=32, help="requests that may wait; more are refused (default: 32)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where images are kept (default: a temporary folder)")


def _app(arguments: argparse.Namespace) -> None:
    from vlad.webui.page import ServerOptions, build_page, load_gradio, serve

    load_gradio()  # before a model is loaded
    from vlad.config.load import released_model
    from vlad.inference.load_pipeline import load_pipeline
    from vlad.webui.backend import Backend

    run = arguments.run or released_model()
    if run is None:
        raise UserError("No model is named, and there is none at models/poster; name a run or a pipeline folder.")
    if arguments.host not in LOCAL_HOSTS:
        print(f"Anyone who can reach {arguments.host} can use this page; it has no password.", file=sys.stderr)
    pipeline = load_pipeline(run, arguments.adapter, arguments.dtype)
    with tempfile.TemporaryDirectory(prefix="vlad-app-") as temporary:
        backend = Backend(pipeline, str(run), arguments.out or Path(temporary), arguments.adapter)
        page = build_page(backend, arguments.waiting)
        serve(page, backend, ServerOptions(arguments.host, arguments.port, arguments.waiting))


APP = Verb(
    "app",
    "Serves a page: prompt, layout to drag, image; images to edit.",
    _add_app_options,
    _app,
    "vlad app, or vlad app runs/tiny; then open the address that it prints",
)


def _add_export_options(parser: OptionParser) -> None:
    parser.add_argument("run", type=Path, help="a finished run directory, or a pipeline folder")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the folder goes")
    parser.add_argument("--variant", action="append", default=[], metavar="NAME", help="fp16 or bf16 beside --dtype")
    parser.add_argument("--dtype", default="float32", help="of the weights: float32 (default), bfloat16 or float16")
    parser.add_argument("--licence", metavar="ID", help="of the weights that the run has trained, like apache-2.0")
    parser.add_argument("--example", action="append", metavar="PROMPT", help="prompts of the card, in place of ours")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload it to the hub too, as a private repository")


def _export(arguments: argparse.Namespace) -> None:
    from vlad.inference.export import EXAMPLES, export_run, push

    examples = arguments.example or EXAMPLES
    card = export_run(arguments.run, arguments.out, arguments.variant, arguments.licence, examples, arguments.dtype)
    print(f"The pipeline is in {arguments.out}, its model card is {card}")
    if arguments.push:
        print(f"Uploaded to {push(arguments.out, arguments.push)}")


EXPORT = Verb(
    "export",
    "Writes a run's pipeline into one folder, with a model card and example images.",
    _add_export_options,
    _export,
    "vlad export runs/tiny --out exports/tiny",
)
