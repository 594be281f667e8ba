"""The page for raters in a real browser, without network."""

import base64
import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from vlad.eval.human_study.rating_page import build_rating_page, question_html, serve_rating_page
from vlad.eval.human_study.ratings import Ratings
from vlad.eval.human_study.study import make_study, questions_of
from vlad.eval.protocols.protocol import BenchmarkPrompt

PROMPTS = [BenchmarkPrompt(str(number), f"a <b>sign</b> '{number}'", (str(number),)) for number in range(2)]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="the browser is driven by Playwright")
    with sync_api.sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, (*BROWSERS, playwright.chromium.executable_path))), None)
        if found is None:
            pytest.skip("there is no Chromium here (Debian: apt install chromium; or playwright install chromium)")
        opened = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
        yield opened
        opened.close()


def ratings_in(folder: Path, kind: Any) -> Ratings:
    """Two systems whose images say in their files who drew them."""
    metadata = PngImagePlugin.PngInfo()
    metadata.add_text("recipe", "secretsystem")
    for name, colour in (("secretsystem", "red"), ("other", "blue")):
        (folder / name).mkdir(parents=True)
        for prompt in PROMPTS:
            Image.new("RGB", (32, 32), colour).save(folder / name / f"{prompt.key}.png", pnginfo=metadata)
    study = make_study(kind, {name: folder / name for name in ("secretsystem", "other")}, PROMPTS)
    return Ratings(folder / "r.sqlite", study)


def test_a_question_does_not_reveal_its_systems(tmp_path: Path) -> None:
    ratings = ratings_in(tmp_path, "pairs")
    for question in questions_of(ratings.study, 0):
        shown = question_html(question)
        assert "secretsystem" not in shown and str(tmp_path) not in shown
        assert "c2VjcmV0c3lzdGVt"[:12] not in shown
        assert shown.count("<img") == 2 and "<b>" not in shown and "&lt;b&gt;sign" in shown


def test_a_watermark_is_painted_over_for_its_system_alone(tmp_path: Path) -> None:
    plain = ratings_in(tmp_path, "pairs").study
    marked = np.zeros((32, 32, 3), np.uint8)
    marked[24:28, 24:28] = 255
    for path in (*plain.systems["other"].values(), *plain.systems["secretsystem"].values()):
        Image.fromarray(marked).save(path)
    folders = {name: tmp_path / name for name in plain.systems}
    study = make_study("pairs", folders, PROMPTS, masked={"secretsystem": (0.75, 0.75, 0.875, 0.875)})
    assert study.digest != make_study("pairs", folders, PROMPTS).digest
    question = questions_of(study, 0)[0]
    shown = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        for data in re.findall(r"base64,([^\"]+)", question_html(question))
    ]
    for image, path in zip(shown, question.images, strict=True):
        assert image.any() == (path.parent.name == "other")


def check_look(page: Any, kind: str) -> None:
    """The name has made room; the images fill a small screen, one as wide as the other, and nothing is wider."""
    assert not page.locator("#rater").is_visible()
    before = page.viewport_size
    page.set_viewport_size({"width": 390, "height": 800})
    widths = [box["width"] for box in (shown.bounding_box() for shown in page.locator("#shown img").all())]
    assert (min(widths) > 250 if kind == "scores" else min(widths) > 120) and max(widths) == min(widths)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.set_viewport_size(before)


@pytest.mark.parametrize("kind", ["scores", "pairs"])
def test_a_rater_stops_and_continues_later(kind: str, browser: Any, tmp_path: Path) -> None:
    pytest.importorskip("gradio", minversion="6", reason="the page needs Gradio (pip install -e '.[app]')")
    ratings = ratings_in(tmp_path, kind)
    app = build_rating_page(ratings)
    address = serve_rating_page(app, wait=False)
    requests: list[str] = []
    total = 4 if kind == "scores" else 2
    answer = (
        {"quality": "4", "alignment": "3", "text": "5 very good"} if kind == "scores" else {"choice": "The left one"}
    )

    def opened() -> Any:
        page = browser.new_page(viewport={"width": 1100, "height": 1100})
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        page.wait_for_selector("#rater textarea, #rater input")
        return page

    def begin(page: Any, name: str) -> None:
        page.fill("#rater textarea, #rater input", name)
        page.click("#begin")

    def choose(page: Any) -> None:
        for aspect, label in answer.items():
            page.locator(f"#ask-{aspect} label", has_text=label).first.click()

    try:
        page = opened()
        begin(page, "ann")
        page.wait_for_selector(f"text=0 of {total} answered")
        assert page.locator("#shown img").count() == (1 if kind == "scores" else 2)
        check_look(page, kind)
        # Nothing chosen: a message, and the same question, which can be answered.
        page.click("#next")
        page.wait_for_selector("text=Answer every question")
        choose(page)
        page.click("#next")
        page.wait_for_selector(f"text=1 of {total} answered")
        assert "secretsystem" not in page.content()
        page.close()
        # Another window, later: on with the second.
        page = opened()
        begin(page, "ann")
        for done in range(1, total):
            page.wait_for_selector(f"text={done} of {total} answered")
            choose(page)
            page.click("#next")
        page.wait_for_selector("text=That was all")
        page.close()
    finally:
        app.close()
    answers = ratings.answers()
    assert len(answers) == total * len(answer)
    if kind == "scores":
        assert {(a.aspect, a.value) for a in answers} == {("quality", "4"), ("alignment", "3"), ("text", "5")}
    else:
        assert {a.value for a in answers} == {"left"}
    assert {a.rater for a in answers} == {"ann"}
    assert [url for url in requests if not url.startswith((address, "data:", "blob:"))] == []
    assert not any("secretsystem" in url for url in requests)
