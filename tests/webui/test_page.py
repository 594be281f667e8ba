"""The page: its endpoints under load and against hostile requests, and in a real browser without network."""

import concurrent.futures
import json
import shutil
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlad.inference.recipes import FIELD
from vlad.types import Layout
from vlad.utils.errors import UserError
from vlad.webui.backend import Backend
from vlad.webui.canvas import CanvasState, canvas_value
from vlad.webui.page import ServerOptions, build_page, serve

gradio = pytest.importorskip("gradio", reason="the page needs Gradio (pip install -e '.[app]')")
WAITING, REQUESTS = 16, 50
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")


@pytest.fixture(scope="module")
def address(backend: Backend) -> Iterator[str]:
    page = build_page(backend, WAITING)
    yield serve(page, backend, ServerOptions(), wait=False)
    page.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="the browser is driven by Playwright")
    with sync_api.sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        found = next(filter(None, map(shutil.which, (*BROWSERS, own))), None)
        if found is None:
            pytest.skip("there is no Chromium here (Debian: apt install chromium; or playwright install chromium)")
        opened = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
        yield opened
        opened.close()


def post(address: str, name: str, *values: object) -> tuple[int, Any]:
    """The status and the answer of one call to an endpoint of the page, waited for."""
    body = json.dumps({"data": values}).encode()
    asked = urllib.request.Request(f"{address}gradio_api/call/{name}", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            number = json.load(answer)["event_id"]
        with urllib.request.urlopen(f"{address}gradio_api/call/{name}/{number}", timeout=120) as stream:
            said = stream.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    kind, _, data = said.strip().rpartition("event: ")[2].partition("\n")
    return (200 if kind == "complete" else 500), json.loads(data.removeprefix("data: "))


def arguments(seed: int, prompt: str = "a wall") -> tuple:
    return prompt, str(seed), canvas_value(CanvasState(Layout(()), 32, 32)), 2, 2.0, 2.0


def status_of(address: str) -> int:
    try:
        with urllib.request.urlopen(address, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_fifty_requests_at_once_are_answered_or_refused(address: str) -> None:
    with concurrent.futures.ThreadPoolExecutor(REQUESTS) as pool:
        answers = list(pool.map(lambda seed: post(address, "draw", *arguments(seed)), range(REQUESTS)))
    generated = [data for status, data in answers if status == 200]
    refused = [data for status, data in answers if status != 200]
    assert len(generated) >= WAITING and len(generated) + len(refused) == REQUESTS
    assert all("queue" in str(said).lower() and "full" in str(said).lower() for said in refused), refused[:1]
    # Every answer belongs to its request: the seeds differ.
    seeds = [data[4]["seed"] for data in generated]
    assert len(set(seeds)) == len(generated)
    assert post(address, "draw", *arguments(7))[0] == 200


def test_a_wrong_request_gets_its_message_and_the_server_stays(address: str) -> None:
    for values, said in (
        (arguments(0, 'a "sign'), "never closed"),
        (arguments(0, "<b>'x</b>"), "&lt;b&gt;"),
        (("a wall", "x", *arguments(0)[2:]), "are no seeds"),
        (("a wall", "0", {"lines": "<script>"}, 2, 2, 2), "no lines that can be read"),
        (("a wall", "0", None, 2, 2, 2), "no lines that can be read"),
    ):
        status, data = post(address, "draw", *values)
        assert status == 500
        assert said in json.dumps(data), data
    for values in (("a wall",), ("a wall", "0", None, "x", "y", "z"), ([], {}, 3, None, None, None)):
        assert post(address, "draw", *values)[0] != 200
    assert post(address, "draw", *arguments(0))[0] == 200


def test_an_address_that_cannot_be_served_raises_one_sentence(backend: Backend) -> None:
    class Unreachable:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def launch(self, **_: object) -> None:
            raise self.error

    for error, said in (
        (ValueError("no localhost"), "NO_PROXY"),
        (OSError("taken. Or not."), r"127\.0\.0\.1 \(taken\); name another"),
    ):
        with pytest.raises(UserError, match=said):
            serve(Unreachable(error), backend, ServerOptions(), wait=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"127\.0\.0\.1:{port} \(Address already in use\)"):
            serve(Unreachable(AssertionError()), backend, ServerOptions(port=port), wait=False)
    with pytest.raises(UserError, match=r"served at 203\.0\.113\.1 \(.*\); name another --port, or a --host"):
        serve(Unreachable(AssertionError()), backend, ServerOptions(host="203.0.113.1"), wait=False)


def test_files_that_the_page_has_not_generated_are_not_served(address: str, backend: Backend, tmp_path: Path) -> None:
    secret = Path.cwd() / "pyproject.toml"
    _, data = post(address, "draw", *arguments(0))
    shown = f"{address}gradio_api/file={data[3]['value']['path'] if 'value' in data[3] else data[3]['path']}"
    assert status_of(shown) == 200
    beside = backend.folder / "of-the-user.png"
    beside.write_bytes(b"a secret")
    inside = (str(beside), f"{backend.folder}/../config.yaml", f"{backend.folder}/..%2fconfig.yaml")
    for path in ("/etc/passwd", str(secret), *inside):
        assert status_of(f"{address}gradio_api/file={path}") in (403, 404), path
    canvas = canvas_value(CanvasState(Layout(()), 32, 32))
    for path in ("/etc/passwd", str(secret)):
        named = {"path": path, "meta": {"_type": "gradio.FileData"}}
        assert post(address, "open", named)[0] != 200
        assert post(address, "edit", named, canvas, "", "0", 2, 2.0, 2.0)[0] != 200


def test_too_large_an_upload_is_refused(address: str, backend: Backend) -> None:
    def upload(content: bytes) -> int:
        head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        body = head + content + b"\r\n--x--\r\n"
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        try:
            with urllib.request.urlopen(
                urllib.request.Request(f"{address}gradio_api/upload", body, kind), timeout=60
            ) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    assert upload(bytes(1000)) == 200
    assert upload(bytes(11_000_000)) == 413
    assert status_of(address) == 200


def test_plan_drag_rewrite_and_generate_in_a_browser(address: str, browser: Any, tmp_path: Path) -> None:
    page = browser.new_page(viewport={"width": 1200, "height": 1600})
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    page.wait_for_selector("#canvas svg")
    page.fill("#prompt textarea", 'a red sign that says "BUS"')
    page.click("#plan")
    page.wait_for_selector("#canvas g.line")
    assert page.input_value("#canvas .row input") == "BUS"
    page.click("#draw")
    page.wait_for_selector("#draw-gallery img")
    first = page.get_attribute("#draw-gallery img", "src")
    # Made smaller by a corner, dragged down, rewritten and coloured.
    corner = page.locator('#canvas circle[data-corner="2"]').bounding_box()
    drag(page, middle(corner), (-120, -150))
    line = page.locator("#canvas g.line polygon")
    before = line.bounding_box()
    drag(page, middle(before), (20, 60))
    after = line.bounding_box()
    assert after["y"] > before["y"] + 20 or after["x"] > before["x"] + 10
    page.fill("#canvas .row input", "TAXI")
    page.select_option('#canvas select[aria-label="colour of line 1"]', "yellow")
    page.click("#draw")
    page.wait_for_function(
        "before => { const i = document.querySelector('#draw-gallery img'); return i && i.src !== before }",
        arg=first,
    )
    assert line.bounding_box() == after, "a line that was moved keeps its place"
    with page.expect_download() as started:
        page.click("#draw-download")
    started.value.save_as(tmp_path / "drawn.png")
    with Image.open(tmp_path / "drawn.png") as image:
        recipe = json.loads(image.info[FIELD])
    assert recipe["prompt"] == 'a red sign that says "TAXI" in yellow letters'
    assert [line["text"] for line in recipe["layout"]["lines"]] == ["TAXI"]
    # A mistake shows a message, and the page keeps working.
    page.fill("#prompt textarea", 'a red "sign')
    page.click("#draw")
    page.wait_for_selector("text=never closed")
    page.close()
    assert [url for url in requests if not url.startswith((address, "data:", "blob:"))] == []


def test_edit_an_image_in_a_browser(address: str, browser: Any, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "shop.png")
    page = browser.new_page(viewport={"width": 1200, "height": 1400})
    page.goto(address)
    page.click("#edit-tab-button")
    page.set_input_files("#upload input[type=file]", tmp_path / "shop.png")
    page.wait_for_selector("#edit-canvas svg image")
    page.click("#edit-canvas .add")
    page.fill("#edit-canvas .row input", "SALE")
    page.click("#edit")
    page.wait_for_selector("#edit-gallery img")
    with page.expect_download() as started:
        page.click("#edit-download")
    started.value.save_as(tmp_path / "edited.png")
    page.close()
    with Image.open(tmp_path / "edited.png") as image:
        changed = (np.asarray(image) != pixels).any(axis=-1)
    assert changed.any() and not changed[12:].any() and not changed[:, :3].any()


def middle(box: dict[str, float]) -> tuple[float, float]:
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def drag(page: Any, start: tuple[float, float], by: tuple[float, float]) -> None:
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(start[0] + by[0], start[1] + by[1], steps=4)
    page.mouse.up()
