"""A page to play with: python tools/app.py runs/tiny, then open the address that it prints."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from vlad.utils.command_line import OptionParser, run_command_line
from vlad.utils.errors import UserError

LOCAL = ("127.0.0.1", "localhost", "::1")


def main() -> None:
    parser = OptionParser(description="Serves a page: prompt, layout to drag, image; images to edit.")
    parser.add_argument("run", help="a run directory, a pipeline folder, or hf://OWNER/NAME on the hub")
    parser.add_argument("--adapter", action="append", default=[], metavar="DIR[:WEIGHT]", help="several add up")
    parser.add_argument("--dtype", default="float32", help="float32 (default), bfloat16 or float16")
    parser.add_argument("--host", default="127.0.0.1", help="which address listens (default: this machine alone)")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    parser.add_argument(
        "--waiting", type=int, default=32, help="requests that may wait; more are refused (default: 32)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where images are kept (default: a temporary folder)")
    arguments = parser.parse_args()
    if arguments.waiting < 1:
        raise UserError(f"--waiting must be at least 1, not {arguments.waiting}.")
    if arguments.port is not None and not 0 < arguments.port < 65536:
        raise UserError(f"--port must be from 1 to 65535, not {arguments.port}.")
    from vlad.webui.page import ServerOptions, build_page, load_gradio, serve

    load_gradio()  # before a model is loaded
    from vlad.inference.load_pipeline import load_pipeline
    from vlad.webui.backend import Backend

    if arguments.host not in LOCAL:
        print(f"Everybody who reaches {arguments.host} can draw here; there is no password.", file=sys.stderr)
    pipeline = load_pipeline(arguments.run, arguments.adapter, arguments.dtype)
    with tempfile.TemporaryDirectory(prefix="vlad-app-") as temporary:
        backend = Backend(pipeline, arguments.run, arguments.out or Path(temporary), arguments.adapter)
        page = build_page(backend, arguments.waiting)
        serve(page, backend, ServerOptions(arguments.host, arguments.port, arguments.waiting))


if __name__ == "__main__":
    run_command_line(main)
