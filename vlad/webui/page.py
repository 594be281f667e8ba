"""The page: a Gradio app on one Backend. Nothing in it comes from another host."""

from __future__ import annotations

import functools
import html
import math
import os
import socket
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vlad.types import Layout
from vlad.utils.errors import UserError, install_command
from vlad.webui.backend import MOST_UPLOAD_BYTES, Backend, Controls, Result
from vlad.webui.canvas import COLOURS, FONTS, SCRIPT, STYLE, TEMPLATE, Drawn, canvas_value, drawn_on, still_drawn

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is imported

EXAMPLE = 'a blue sign that says "HOUSE" in white letters at the top'
IMAGES = [".png", ".jpg", ".jpeg", ".webp"]
INTRODUCTION = """# vlad
Say what to draw, with the words to spell in quotation marks. *Plan* shows where they will stand: drag a line, pull its
corners, rewrite it. *Draw* paints the image around the lines. Colours go into the prompt; fonts are kept with the
layout, but the model chooses its own."""
EDITING = """Upload an image, put a box over each place that is to be drawn anew, and write into it what shall stand
there; an empty box removes what stands there. Everything outside the boxes stays as it is, pixel for pixel."""
HINTS = ("Plan shows where the words will stand", "")
EDITING_HINTS = ("Upload an image first", "Add a box where it is to be drawn anew")
# A mistake is told in a corner of the page: it must not lie over images and canvas as well. A gallery of four, nine
# or sixteen images is square: its lower rows must not be cut off.
PAGE_STYLE = """
[data-testid="status-tracker"]:has(.error) { display: none !important; }
.grid-wrap.fixed-height { max-height: none !important; }
"""


@dataclass(frozen=True)
class ServerOptions:
    """Where the page is served, and how many requests may wait."""

    host: str = "127.0.0.1"
    port: int | None = None
    waiting: int = 32


def load_gradio() -> Any:
    """Gradio, imported late. Raises UserError where it is not installed."""
    try:
        import gradio
    except ImportError as error:
        raise UserError(f"The page needs Gradio ({error}); run: {install_command('app')}.") from error
    return gradio


def build_page(backend: Backend, waiting: int = ServerOptions.waiting) -> Any:
    """The page's `gradio.Blocks` with its queue: one request at a time draws, `waiting` more wait, others are refused.

    Raises UserError where Gradio is not installed.
    """
    gr = load_gradio()
    with gr.Blocks(title="vlad", analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as page:
        gr.Markdown(f"{INTRODUCTION}\n\n{_model(backend)}")
        with gr.Tab("Draw", elem_id="draw-tab"):
            _drawing(gr, backend)
        with gr.Tab("Edit an image", elem_id="edit-tab"):
            if backend.edits:
                _editing(gr, backend)
            else:
                gr.Markdown(
                    "This model was not trained to edit images. One with `refine.editing_share` is, such as"
                    " `configs/tiny_edit.yaml` makes of this one."
                )
    page.queue(max_size=waiting, default_concurrency_limit=1)
    return page


def serve(page: Any, backend: Backend, options: ServerOptions, wait: bool = True) -> str:
    """Serves the page and returns its address; with `wait`, until it is interrupted.

    It serves files from the backend's folder and uploads only. Raises UserError for an address that is taken or cannot
    be reached.
    """
    gr = load_gradio()
    _check_address(options)
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # the reader's own
    try:
        _, address, _ = page.launch(
            server_name=options.host,
            server_port=options.port,
            share=False,
            show_error=True,
            max_file_size=MOST_UPLOAD_BYTES,
            allowed_paths=[str(backend.folder.resolve())],
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            quiet=True,
            inbrowser=False,
            prevent_thread_lock=True,
            enable_monitoring=False,
            theme=gr.themes.Base(**fonts),
            css=PAGE_STYLE,
        )
    except OSError as error:
        raise UserError(_unreachable(options, error)) from error
    except ValueError as error:  # Gradio asks itself for the page, and got no answer
        raise UserError(
            f"The page at {options.host} does not answer this machine: let proxies leave it out"
            " (NO_PROXY=localhost,127.0.0.1), or start it again when the machine is less busy."
        ) from error
    if wait:
        print(f"The page is at {address}; Ctrl-C ends it.", flush=True)
        page.block_thread()
    return str(address)


def _check_address(options: ServerOptions) -> None:
    """Raises UserError for an address that cannot be had: Gradio would try a hundred ports, and log each."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            options.host, options.port or 0, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except OSError as error:
        raise UserError(_unreachable(options, error)) from error


def _unreachable(options: ServerOptions, error: OSError) -> str:
    reason = error.strerror or str(error).split(". ")[0].rstrip(".")  # Gradio goes on with options of its own
    where = f"{options.host}:{options.port}" if options.port else options.host
    return f"The page cannot be served at {where} ({reason}); name another --port, or a --host that is this machine."


def _drawing(gr: Any, backend: Backend) -> None:
    size = backend.pipeline.config.image_pixels
    with gr.Row():
        with gr.Column():
            prompt = gr.Textbox(EXAMPLE, label="Prompt", lines=2, elem_id="prompt", max_length=4000)
            seeds, controls = _controls(gr, backend, "seeds")
            with gr.Row():
                plan = gr.Button("Plan", elem_id="plan")
                draw = gr.Button("Draw", variant="primary", elem_id="draw")
            canvas = _canvas(gr, "canvas", canvas_value(Drawn(Layout(()), size, size)), HINTS, may_be_blank=False)
        with gr.Column():
            shown = _Gallery(gr, "draw")

    def planned(text: str, numbers: str) -> dict[str, Any]:
        return canvas_value(backend.plan(text, numbers))

    def drawn(text: str, numbers: str, lines: Any, *values: Any) -> tuple:
        before = drawn_on(lines)
        results, after = backend.draw(text, before, numbers, _controls_of(values))
        said = results[0].recipe["prompt"]  # the canvas's words in place of the prompt's
        shown_canvas = still_drawn(after.said) if after.layout is before.layout else canvas_value(after)
        return gr.skip() if said == text else said, shown_canvas, *shown.show(results)

    plan.click(_told(gr, planned), [prompt, seeds], canvas, concurrency_id="model", api_name="plan")
    draw.click(
        _told(gr, drawn),
        [prompt, seeds, canvas, *controls],
        [prompt, canvas, *shown.outputs],
        concurrency_id="model",
        api_name="draw",
    )


def _editing(gr: Any, backend: Backend) -> None:
    size = backend.pipeline.config.image_pixels
    gr.Markdown(EDITING)
    with gr.Row():
        with gr.Column():
            image = gr.File(label="Image", file_types=IMAGES, type="filepath", elem_id="upload", height=120)
            canvas = _canvas(gr, "edit-canvas", canvas_value(Drawn(Layout(()), size, size)), EDITING_HINTS, True)
            prompt = gr.Textbox("", label="Prompt (may stay empty)", elem_id="edit-prompt", max_length=4000)
            seeds, controls = _controls(gr, backend, "edit-seeds")
            edit = gr.Button("Edit", variant="primary", elem_id="edit")
        with gr.Column():
            shown = _Gallery(gr, "edit")

    def opened(path: str | None) -> dict[str, Any]:
        if path is None:
            return canvas_value(Drawn(Layout(()), size, size))
        uploaded = backend.open(path)
        return canvas_value(Drawn(Layout(()), uploaded.width, uploaded.height), uploaded)

    def edited(path: str | None, lines: Any, text: str, numbers: str, *values: Any) -> tuple:
        return shown.show(backend.edit(path, drawn_on(lines, True), text, numbers, _controls_of(values)))

    image.change(_told(gr, opened), image, canvas, concurrency_id="open", api_name="open")
    edit.click(
        _told(gr, edited),
        [image, canvas, prompt, seeds, *controls],
        shown.outputs,
        concurrency_id="model",
        api_name="edit",
    )


class _Gallery:
    """Images, the recipe of the chosen one, and its file to take home."""

    def __init__(self, gr: Any, name: str) -> None:
        self.gallery = gr.Gallery(
            label="Images",
            show_label=False,
            elem_id=f"{name}-gallery",
            format="png",
            object_fit="contain",
            height="auto",
        )
        self.download = gr.DownloadButton(
            "Download (the recipe is inside)", elem_id=f"{name}-download", interactive=False
        )
        self.recipe = gr.JSON(label="Recipe", elem_id=f"{name}-recipe")
        self.recipes, self.files = gr.State([]), gr.State([])
        self.outputs = [self.gallery, self.download, self.recipe, self.recipes, self.files]
        self._gr = gr

        def chosen(event: gr.SelectData, recipes: list[dict[str, Any]], files: list[str]) -> tuple[Any, Any]:
            if not 0 <= event.index < len(files):
                return gr.skip(), gr.skip()
            return gr.DownloadButton(value=files[event.index], interactive=True), recipes[event.index]

        chosen.__annotations__["event"] = gr.SelectData  # postponed annotations are text, and Gradio reads them
        self.gallery.select(
            chosen, [self.recipes, self.files], [self.download, self.recipe], api_visibility="private", queue=False
        )

    def show(self, results: list[Result]) -> tuple:
        """Values of `outputs`."""
        files = [str(result.path) for result in results]
        captions = [f"seed {result.recipe['seed']}" for result in results]
        return (
            self._gr.Gallery(list(zip(files, captions, strict=True)), columns=min(4, math.ceil(len(files) ** 0.5))),
            self._gr.DownloadButton(value=files[0], interactive=True),
            results[0].recipe,
            [result.recipe for result in results],
            files,
        )


def _canvas(gr: Any, name: str, value: dict[str, Any], hints: tuple[str, str], may_be_blank: bool) -> Any:
    return gr.HTML(
        value,
        html_template=TEMPLATE,
        css_template=STYLE,
        js_on_load=SCRIPT,
        elem_id=name,
        colours=list(COLOURS),
        fonts=list(FONTS),
        hints=list(hints),
        blank=may_be_blank,
    )


def _model(backend: Backend) -> str:
    """What draws here, for the head of the page."""
    side = backend.pipeline.config.image_pixels
    return f"Drawing with `{backend.run.replace('`', '')}`, at {side} x {side} pixels."


def _controls(gr: Any, backend: Backend, name: str) -> tuple[Any, list[Any]]:
    """The seeds, called `name`, and the sliders that `_controls_of` reads; two beside each other."""
    own = backend.pipeline.settings()
    with gr.Row():
        seeds = gr.Textbox("0", label="Seeds, like 7, 0-3 or 1,5", elem_id=name, max_length=100)
        steps = gr.Slider(1, 50, own.steps, step=1, label="Steps")
    with gr.Row():
        text_scale = gr.Slider(0, max(10, own.text_scale), own.text_scale, step=0.5, label="Prompt guidance")
        layout_scale = gr.Slider(0, max(10, own.layout_scale), own.layout_scale, step=0.5, label="Layout guidance")
    return seeds, [steps, text_scale, layout_scale]


def _controls_of(values: tuple) -> Controls:
    steps, text_scale, layout_scale = values
    return Controls(int(steps), float(text_scale), float(layout_scale))


def _told(gr: Any, work: Callable) -> Callable:
    """The work with a user's mistake as a message in the page; anything else is logged, and said to be ours."""

    @functools.wraps(work)
    def told(*values: Any) -> Any:
        try:
            return work(*values)
        except UserError as error:
            raise gr.Error(html.escape(str(error), quote=False), duration=15, print_exception=False) from None
        except Exception:  # a bug of ours ends one click, not the page that others have open
            traceback.print_exc()
            raise gr.Error(
                "Something went wrong here that is no mistake of yours; the server's terminal says what.", duration=15
            ) from None

    return told
