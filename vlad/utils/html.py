"""HTML pages from Jinja2 templates: values are escaped, and a page runs no script and loads nothing from elsewhere."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from vlad.utils.atomic_files import replaced_file
from vlad.utils.foreign_text import MOST_CHARACTERS, printable
from vlad.utils.secrets import redacted

# What every page extends. The policy is for what escaping might miss: captions and file names come from anywhere.
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; color: #1d1d1f; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
table { border-collapse: collapse; } td, th { padding: .15rem 1rem .15rem 0; text-align: left; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.ok { color: #14752f; } .bad { color: #b3261e; } .quiet { color: #666; } code { overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(224px, 1fr)); gap: 1rem; }
.cards figure { margin: 0; border: 1px solid #ddd; border-radius: 6px; overflow: hidden; }
.cards figure div { background: #f2f2f4; display: flex; align-items: center; justify-content: center; height: 224px; }
.cards figure img { max-width: 100%; max-height: 224px; }
.cards figcaption { padding: .5rem .7rem; font-size: .8rem; overflow-wrap: anywhere; }
{% block style %}{% endblock %}
</style></head>
<body>
{% block body %}{% endblock %}
</body></html>
"""

# Of a page that Gradio serves, whose scripts are inline and compile templates: nothing comes from or goes elsewhere.
SERVED_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; base-uri 'self';"
    " form-action 'self'; frame-ancestors 'self'"
)


class ContentPolicy:
    """ASGI middleware that sends `SERVED_POLICY` with every answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (b"content-security-policy", SERVED_POLICY.encode())]
                message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, receive, send_with_policy)


def served_page_options() -> dict[str, Any]:
    """`app_kwargs` of Gradio's `launch`."""
    from starlette.middleware import Middleware  # comes with Gradio

    return {"middleware": [Middleware(ContentPolicy)]}


def data_uri(content: bytes, media_type: str) -> Markup:
    """The content as a `data:` address, so that a page holds its images."""
    return Markup(f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}")


def _shown(value: Any) -> Any:
    """A value as it is filled in: texts without secrets, control characters and bidirectional overrides."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return redacted(printable(value, MOST_CHARACTERS))


_ENVIRONMENT = Environment(
    loader=DictLoader({"page": PAGE}),
    autoescape=True,
    finalize=_shown,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_ENVIRONMENT.filters["data_uri"] = data_uri


def render(template: str | Path, **values: Any) -> str:
    """Fills in a template, given as its text or as its file.

    A whole page says `{% extends "page" %}`, takes a `title` and fills the blocks `style` and `body`.
    """
    source = template.read_text(encoding="utf-8") if isinstance(template, Path) else template
    return _ENVIRONMENT.from_string(source).render(values)


def write_page(path: Path, page: str) -> None:
    """Writes a page whole or not at all. Lone surrogates, of names of files that are no UTF-8, become backslashes."""
    with replaced_file(path) as temporary:
        temporary.write_bytes(page.encode("utf-8", "backslashreplace"))
