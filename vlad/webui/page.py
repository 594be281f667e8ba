"""The page: a Gradio app over one Backend. It loads nothing from other hosts."""

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

from PIL import Image

from vlad.types import Layout
from vlad.utils.errors import UserError, install_command
from vlad.utils.foreign_text import printable_line
from vlad.utils.html import served_page_options
from vlad.webui.backend import MOST_UPLOAD_BYTES, Backend, Controls, Result
from vlad.webui.canvas import (
    COLOURS,
    FONTS,
    SCRIPT,
    STYLE,
    TEMPLATE,
    CanvasState,
    canvas_state,
    canvas_value,
    same_lines_value,
)

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is imported

EXAMPLE = 'a blue poster that says "HOUSE" in large white letters at the top'
IMAGES = [".png", ".jpg", ".jpeg", ".webp"]
INTRODUCTION = """# vlad
Describe the image, with the words to spell in quotation marks. *Plan* generates the layout: drag a line, pull its
corners, rewrite it. *Generate* makes the image for the layout. Colours are added to the prompt; fonts are saved with
the layout, but the model chooses its own."""
EDITING = """Upload an image, put a box over each region to generate anew, and write the new text into it; an empty box
removes the text there. Everything outside the boxes is kept, pixel for pixel."""
HINTS = ("Plan generates the layout", "")
EDITING_HINTS = ("Upload an image first", "Add a box over the region to generate anew")
# Error messages show in a corner of the page, so they must not cover images and canvas as well. A gallery of four, nine
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
    """The page's `gradio.Blocks` with its queue: one request runs, `waiting` more wait, others are refused.

    Raises UserError where Gradio is not installed.
    """
    gr = load_gradio()
    with gr.Blocks(title="vlad", analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as page:
        gr.Markdown(f"{INTRODUCTION}\n\n{_model_line(backend)}")
        with gr.Tab("Generate", elem_id="draw-tab"):
            _add_generation(gr, backend)
        with gr.Tab("Edit an image", elem_id="edit-tab"):
            if backend.edits:
                _add_editing(gr, backend)
            else:
                gr.Markdown(
                    "This model was not trained to edit images. Train one with `refine.editing_share`, such as"
                    " `configs/tiny_edit.yaml`."
                )
    page.queue(max_size=waiting, default_concurrency_limit=1)
    return page


def serve(page: Any, backend: Backend, options: ServerOptions, wait: bool = True) -> str:
    """Serves the page and returns its address; with `wait`, until it is interrupted.

    It serves uploads and the images that it has generated, nothing else. Raises UserError for an address that is taken
    or cannot be reached.
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
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            quiet=True,
            inbrowser=False,
            prevent_thread_lock=True,
            enable_monitoring=False,
            theme=gr.themes.Base(**fonts),
            css=PAGE_STYLE,
            app_kwargs=served_page_options(),
        )
    except OSError as error:
        raise UserError(_unreachable(options, error)) from error
    except ValueError as error:  # Gradio requests its own page, and got no answer
        raise UserError(
            f"The page at {options.host} does not answer this machine: exclude it from proxies"
            " (NO_PROXY=localhost,127.0.0.1), or start it again when the machine is less busy."
        ) from error
    page.allowed_paths = backend.served  # grows with every image; `launch` copies none of it
    if wait:
        print(f"The page is at {address}; Ctrl-C ends it.", flush=True)
        page.block_thread()
    return str(address)


def _check_address(options: ServerOptions) -> None:
    """Raises UserError for an address that cannot be bound: Gradio would try a hundred ports, and log each."""
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
    reason = error.strerror or str(error).split(". ")[0].rstrip(".")  # Gradio's text continues with its own options
    where = f"{options.host}:{options.port}" if options.port else options.host
    return f"The page cannot be served at {where} ({reason}); name another --port, or a --host that is this machine."


def _add_generation(gr: Any, backend: Backend) -> None:
    size = backend.pipeline.config.image_pixels
    with gr.Row():
        with gr.Column():
            prompt = gr.Textbox(EXAMPLE, label="Prompt", lines=2, elem_id="prompt", max_length=4000)
            seeds, controls = _controls(gr, backend, "seeds")
            with gr.Row():
                plan = gr.Button("Plan", elem_id="plan")
                generate = gr.Button("Generate", variant="primary", elem_id="draw")
            canvas = _canvas(gr, "canvas", _empty_canvas(size, size), HINTS, may_be_blank=False)
        with gr.Column():
            gallery = _Gallery(gr, "draw")

    def show_notes(text: str) -> None:
        for note in backend.notes(text):
            gr.Info(note)

    def on_plan(text: str, seeds_text: str) -> dict[str, Any]:
        planned = canvas_value(backend.plan(text, seeds_text))
        show_notes(text)
        return planned

    def on_generate(text: str, seeds_text: str, lines: Any, *values: Any) -> tuple:
        before = canvas_state(lines)
        results, after = backend.generate(text, before, seeds_text, _controls_of(values))
        show_notes(text)
        used = results[0].recipe["prompt"]  # with the canvas's words in place of the prompt's
        new_canvas = same_lines_value(after.strings) if after.layout is before.layout else canvas_value(after)
        return gr.skip() if used == text else used, new_canvas, *gallery.values(results)

    plan.click(_with_messages(gr, on_plan), [prompt, seeds], canvas, concurrency_id="model", api_name="plan")
    generate.click(
        _with_messages(gr, on_generate),
        [prompt, seeds, canvas, *controls],
        [prompt, canvas, *gallery.outputs],
        concurrency_id="model",
        api_name="draw",
    )


def _add_editing(gr: Any, backend: Backend) -> None:
    size = backend.pipeline.config.image_pixels
    gr.Markdown(EDITING)
    with gr.Row():
        with gr.Column():
            image = gr.File(label="Image", file_types=IMAGES, type="filepath", elem_id="upload", height=120)
            canvas = _canvas(gr, "edit-canvas", _empty_canvas(size, size), EDITING_HINTS, may_be_blank=True)
            prompt = gr.Textbox("", label="Prompt (optional)", elem_id="edit-prompt", max_length=4000)
            seeds, controls = _controls(gr, backend, "edit-seeds")
            edit = gr.Button("Edit", variant="primary", elem_id="edit")
        with gr.Column():
            gallery = _Gallery(gr, "edit")

    def on_upload(path: str | None) -> dict[str, Any]:
        if path is None:
            return _empty_canvas(size, size)
        uploaded = backend.open_upload(path)
        return _empty_canvas(uploaded.width, uploaded.height, uploaded)

    def on_edit(path: str | None, lines: Any, text: str, seeds_text: str, *values: Any) -> tuple:
        boxes = canvas_state(lines, may_be_blank=True)
        return gallery.values(backend.edit(path, boxes, text, seeds_text, _controls_of(values)))

    image.change(_with_messages(gr, on_upload), image, canvas, concurrency_id="open", api_name="open")
    edit.click(
        _with_messages(gr, on_edit),
        [image, canvas, prompt, seeds, *controls],
        gallery.outputs,
        concurrency_id="model",
        api_name="edit",
    )


class _Gallery:
    """Images, the recipe of the selected one, and its file to download."""

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

        def on_select(event: gr.SelectData, recipes: list[dict[str, Any]], files: list[str]) -> tuple[Any, Any]:
            if not 0 <= event.index < len(files):
                return gr.skip(), gr.skip()
            return gr.DownloadButton(value=files[event.index], interactive=True), recipes[event.index]

        on_select.__annotations__["event"] = gr.SelectData  # postponed annotations are text, and Gradio reads them
        self.gallery.select(
            on_select, [self.recipes, self.files], [self.download, self.recipe], api_visibility="private", queue=False
        )

    def values(self, results: list[Result]) -> tuple:
        """The values of `outputs`."""
        files = [str(result.path) for result in results]
        captions = [f"seed {result.recipe['seed']}" for result in results]
        return (
            self._gr.Gallery(list(zip(files, captions, strict=True)), columns=min(4, math.ceil(len(files) ** 0.5))),
            self._gr.DownloadButton(value=files[0], interactive=True),
            results[0].recipe,
            [result.recipe for result in results],
            files,
        )


def _empty_canvas(width: int, height: int, image: Image.Image | None = None) -> dict[str, Any]:
    return canvas_value(CanvasState(Layout(()), width, height), image)


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


def _model_line(backend: Backend) -> str:
    """The model and its image size, for the head of the page."""
    side = backend.pipeline.config.image_pixels
    return f"The model is `{backend.run.replace('`', '')}`, at {side} x {side} pixels."


def _controls(gr: Any, backend: Backend, name: str) -> tuple[Any, list[Any]]:
    """The seeds (element id `name`) and the sliders that `_controls_of` reads."""
    own = backend.pipeline.settings()
    with gr.Row():
        seeds = gr.Textbox("0", label="Seeds, such as 7, 0-3 or 1,5", elem_id=name, max_length=100)
        steps = gr.Slider(1, 50, own.steps, step=1, label="Steps")
    with gr.Row():
        text_scale = gr.Slider(0, max(10, own.text_scale), own.text_scale, step=0.5, label="Prompt guidance")
        layout_scale = gr.Slider(0, max(10, own.layout_scale), own.layout_scale, step=0.5, label="Layout guidance")
    return seeds, [steps, text_scale, layout_scale]


def _controls_of(values: tuple) -> Controls:
    steps, text_scale, layout_scale = values
    return Controls(int(steps), float(text_scale), float(layout_scale))


def _with_messages(gr: Any, work: Callable) -> Callable:
    """The work with its UserErrors as messages in the page; any other error is logged and said to be ours."""

    @functools.wraps(work)
    def wrapped(*values: Any) -> Any:
        try:
            return work(*values)
        except UserError as error:
            raise gr.Error(
                html.escape(printable_line(str(error)), quote=False), duration=15, print_exception=False
            ) from None
        except Exception:  # a bug of ours ends one request, not the page that others have open
            traceback.print_exc()
            raise gr.Error("Internal error; the server's terminal has the details.", duration=15) from None

    return wrapped
