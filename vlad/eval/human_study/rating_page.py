"""The rating page of a human study: a Gradio app on one file of ratings, which loads nothing from other hosts.

Images are sent as pixels alone, without names, places or metadata of their files.
"""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vlad.eval.human_study.ratings import Ratings, check_rater
from vlad.eval.human_study.study import ASPECTS, SCALE, Question
from vlad.eval.image_files import load_image, paint_over
from vlad.eval.options import Box
from vlad.utils.errors import UserError, as_sentence, install_command
from vlad.utils.html import render, served_page_options

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is imported

INTRODUCTION = """# Images with text
You will see a prompt and an image that a model generated from it. Which model it was is not shown, and the order is
yours alone. You can stop at any time: come back with the same name to continue."""
SCORE_LABELS = {1: "1 very bad", 2: "2", 3: "3", 4: "4", 5: "5 very good"}
CHOICE_LABELS = {"left": "The left one", "right": "The right one", "tie": "Equally good"}
DONE = "**That was all. Thank you!**"
# A question: the prompt and its images. Nothing in it says where they come from.
QUESTION = """<p style="font-size:1.2em">{{ prompt }}</p>
<div style="display:flex; gap:16px; justify-content:center">
{% for image in images %}
<img alt="image" style="width:min({{ width }}, 512px); object-fit:contain" src="{{ image | data_uri("image/png") }}">
{% endfor %}
</div>"""
# Errors show in a corner of the page: over the questions, they would make these unanswerable.
PAGE_STYLE = '[data-testid="status-tracker"]:has(.error) { display: none !important; }'


def build_rating_page(ratings: Ratings) -> Any:
    """The page's `gradio.Blocks`. Raises UserError where Gradio is not installed."""
    try:
        import gradio as gr
    except ImportError as error:
        raise UserError(f"The page needs Gradio ({error}); run: {install_command('app')}.") from error
    scored = ratings.study.kind == "scores"
    aspects = ASPECTS if scored else {"choice": "Which image is better?"}
    choices: list[tuple[str, str]] = (
        [(SCORE_LABELS[value], str(value)) for value in SCALE]
        if scored
        else [(label, value) for value, label in CHOICE_LABELS.items()]
    )
    with gr.Blocks(title="Rate images", analytics_enabled=False) as page:
        with gr.Column() as door:
            gr.Markdown(INTRODUCTION)
            name = gr.Textbox(label="Your name, or a word of your own", elem_id="rater", max_length=200)
            begin = gr.Button("Begin", variant="primary", elem_id="begin")
        progress = gr.Markdown("", elem_id="progress")
        shown = gr.HTML("", elem_id="shown")
        radios = [
            gr.Radio(choices, label=label, elem_id=f"ask-{aspect}", visible=False) for aspect, label in aspects.items()
        ]
        forward = gr.Button("Next", variant="primary", elem_id="next", visible=False)
        rater, key, since = gr.State(""), gr.State(""), gr.State(0.0)
        outputs = [door, progress, shown, forward, rater, key, since, *radios]

        def show(who: str) -> list[Any]:
            question, done, total = ratings.next_question(who)
            visible = question is not None
            return [
                gr.Column(visible=False),  # room for the images
                f"{done} of {total} answered" if question is not None else DONE,
                "" if question is None else question_html(question),
                gr.Button(visible=visible),
                who,
                "" if question is None else question.key,
                time.time(),
                *(gr.Radio(value=None, visible=visible) for _ in radios),
            ]

        def begun(who: str) -> list[Any]:
            return show(check_rater(who))

        def answered(who: str, which: str, when: float, *values: str | None) -> list[Any]:
            question, _, _ = ratings.next_question(who)
            # Where it was answered in another window, the next question follows.
            if question is not None and question.key == which:
                given = {aspect: value for aspect, value in zip(aspects, values, strict=True) if value is not None}
                ratings.store(who, question, given, round(time.time() - when, 1))
            return show(who)

        begin.click(_with_errors(gr, begun, outputs), name, outputs, api_name="begin", show_progress="hidden")
        name.submit(_with_errors(gr, begun, outputs), name, outputs, api_visibility="private", show_progress="hidden")
        given = [rater, key, since, *radios]
        pressed = forward.click(
            _with_errors(gr, answered, outputs), given, outputs, api_name="answer", show_progress="hidden"
        )
        pressed.then(None, js="() => window.scrollTo(0, 0)")  # to the next image, on small screens
    return page


def question_html(question: Question) -> str:
    """The prompt and its images as HTML."""
    width = "100%" if len(question.images) == 1 else "calc(50% - 8px)"
    images = [_png(path, box) for path, box in zip(question.images, question.masked, strict=True)]
    return render(QUESTION, prompt=question.prompt, images=images, width=width)


def _png(path: Path, masked: Box | None) -> bytes:
    """The image's pixels as a PNG without metadata; `masked` is painted over."""
    image = load_image(path)
    buffer = io.BytesIO()
    Image.fromarray(image if masked is None else paint_over(image, masked)).save(buffer, "PNG")
    return buffer.getvalue()


def check_host(host: str) -> None:
    """Raises UserError for an address at which this machine cannot serve: Gradio would retry for ever."""
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host  # of IPv6
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(bare, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"--host {host!r} is no address of this machine ({reason}); give one of its own, 127.0.0.1 for this machine"
            " alone or 0.0.0.0 for all of its network."
        ) from error


def serve_rating_page(page: Any, host: str = "127.0.0.1", port: int | None = None, wait: bool = True) -> str:
    """Serves the page and returns its address, with `wait` once it is interrupted.

    Raises UserError for an address that is taken, or is not this machine's.
    """
    import gradio as gr

    check_host(host)
    # System fonts: nothing is fetched.
    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    try:
        _, address, _ = page.launch(
            server_name=f"[{host}]" if ":" in host and not host.startswith("[") else host,
            server_port=port,
            share=False,
            show_error=True,
            footer_links=[],
            ssr_mode=False,
            quiet=True,
            inbrowser=False,
            prevent_thread_lock=True,
            theme=theme,
            css=PAGE_STYLE,
            app_kwargs=served_page_options(),
        )
    except OSError as error:
        raise UserError(f"The page cannot be served at {host}:{port or ''}: {as_sentence(error)}") from error
    if wait:
        print(f"The page is at {address}; Ctrl-C ends it.", flush=True)
        page.block_thread()
    return str(address)


def _with_errors(gr: Any, work: Callable[..., list[Any]], outputs: Sequence[Any]) -> Callable[..., list[Any]]:
    """The work, with a rater's mistake as a message in the page, which otherwise stays as it is.

    Not `gr.Error`, which covers every part that the work would have changed, so that nobody could answer any more.
    """

    def wrapped(*values: Any) -> list[Any]:
        try:
            return work(*values)
        except UserError as error:
            gr.Warning(render("{{ message }}", message=str(error)), duration=10)
            return [gr.skip() for _ in outputs]

    return wrapped
