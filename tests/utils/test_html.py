"""Pages from templates."""

from pathlib import Path

import pytest
from jinja2 import UndefinedError

from vlad.utils.html import render, write_page

TEMPLATE = (
    '{% extends "page" %}{% block body %}<img src="{{ png | data_uri("image/png") }}">{{ caption }}{% endblock %}'
)


def test_a_page_escapes_its_values_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "template.html").write_text(TEMPLATE)
    values = {"title": "<title>", "png": b"\x89", "caption": "<script>alert('x')</script>\udc80"}
    page = render(TEMPLATE, **values)
    assert page == render(tmp_path / "template.html", **values)
    assert "<title>&lt;title&gt;</title>" in page
    assert '<img src="data:image/png;base64,iQ==">&lt;script&gt;alert(&#39;x&#39;)' in page
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page

    write_page(tmp_path / "page.html", page)
    assert "/script&gt;\\udc80" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_value_that_is_missing_is_a_bug() -> None:
    with pytest.raises(UndefinedError):
        render("{{ nothing }}")
