"""The page's backend: canvases to prompts and images, edits, and error messages."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlad.inference.edit_requests import repeated_edit
from vlad.inference.recipes import read_recipe
from vlad.layout.polygons import box_polygon
from vlad.types import Layout, TextLine
from vlad.utils.errors import UserError
from vlad.webui import backend as backend_module
from vlad.webui.backend import Backend, Controls
from vlad.webui.canvas import CanvasState, canvas_state, canvas_value
from vlad.webui.canvas_prompt import prompt_of_canvas

PROMPT = 'a blue sign that says "HOUSE" in white letters at the top'
EMPTY = CanvasState(Layout(()), 32, 32)
LINE = TextLine("HOUSE", box_polygon(0.1, 0.1, 0.9, 0.4))


def layout_of(*texts: str, colour: str | None = None) -> Layout:
    return Layout(tuple(TextLine(text, LINE.polygon, colour=colour) for text in texts))


@pytest.mark.parametrize(
    ("prompt", "texts", "colour", "expected"),
    [
        (PROMPT, ["HOUSE"], None, PROMPT),
        (PROMPT, ["HOTEL"], None, 'a blue sign that says "HOTEL" in white letters at the top'),
        (PROMPT, ["HOUSE"], "red", 'a blue sign that says "HOUSE" in red letters at the top'),
        ('a sign "A" at the top', ["A"], "red", 'a sign "A" in red letters at the top'),
        ("a red wall", ["A", "B"], None, 'a red wall that says "A" and "B"'),
        ("", ["A"], None, 'a picture that says "A"'),
        ('says "A" and "B" here', ["B"], None, 'says "B" here'),
        ('says "A" and "B" here', ["B", "A"], None, 'says "A" and "B" here'),
        ('says "A" and "B" here', ["C", "B", "D"], None, 'says "C" and "B" and "D" here'),
        ('a card that says "A"', [], None, "a card"),
        ("a card that says « A » now", ["A"], None, "a card that says « A » now"),
        ("a card that says « A » now", ["B"], None, 'a card that says "B" now'),
        ('a card that says "A"', ['B "C"'], None, 'a card that says “B "C"”'),
    ],
)
def test_the_prompt_follows_the_canvas(prompt: str, texts: list[str], colour: str | None, expected: str) -> None:
    assert prompt_of_canvas(prompt, layout_of(*texts, colour=colour), 8) == expected


def test_canvas_values_round_trip() -> None:
    line = TextLine("HI", ((0.1, 0.2), (0.8, 0.1), (0.9, 0.4), (0.2, 0.5)), colour="red", font="serif")
    canvas = CanvasState(Layout((line,)), 64, 48, ("HI",))
    assert canvas_state(canvas_value(canvas)) == canvas
    value = canvas_value(canvas, Image.new("RGB", (2000, 1500), "red"))
    assert value["image"].startswith("data:image/png;base64,") and len(value["image"]) < 100_000


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "no lines that can be read"),
        ({"lines": 3}, "no lines that can be read"),
        ({"lines": [7], "width": 1, "height": 1}, "cannot be read"),
        ({"lines": [], "width": "x", "height": 1}, "cannot be read"),
        ({"lines": [{"text": "A"}], "width": 1, "height": 1}, "cannot be read"),
        ({"lines": [{"text": "A", "polygon": [[0, 0]] * 4}], "width": 1, "height": 1}, "covers no area"),
        ({"lines": [{"text": " ", "box": 1, "polygon": LINE.polygon}], "width": 1, "height": 1}, "Line 1 has no text"),
        ({"lines": [{"text": "A" * 501, "polygon": LINE.polygon}], "width": 1, "height": 1}, "501 letters"),
        ({"lines": [{"text": "A", "polygon": LINE.polygon}] * 65, "width": 1, "height": 1}, "65 lines"),
        ({"lines": [{"text": "A", "polygon": [[2, 2], [3, 2], [3, 3], [2, 3]]}], "width": 1, "height": 1}, "outside"),
        ({"lines": [{"text": "A", "polygon": LINE.polygon, "font": "x"}], "width": 1, "height": 1}, "font 'x'"),
    ],
)
def test_an_unreadable_canvas_raises_one_sentence(value: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        canvas_state(value)


def test_a_prompt_without_quoted_strings_has_no_plan(backend: Backend) -> None:
    with pytest.raises(UserError, match="quotes nothing; put what"):
        backend.plan("a blue sign that says house", "3")


def test_generating_from_a_plan_before_and_after_it_is_moved(backend: Backend) -> None:
    plan = backend.plan(PROMPT, "3")
    assert [line.text for line in plan.layout.lines] == ["HOUSE"] and plan.strings == ("HOUSE",)
    first, canvas = backend.generate(PROMPT, plan, "3,4", Controls())
    assert canvas == plan and [result.recipe["seed"] for result in first] == [3, 4]
    moved = CanvasState(Layout((LINE,)), 32, 32, plan.strings)
    (second,), _ = backend.generate(PROMPT, moved, "3", Controls())
    (again,), _ = backend.generate(PROMPT, moved, "3", Controls())
    assert second.path.read_bytes() != first[0].path.read_bytes()
    assert second.path.read_bytes() == again.path.read_bytes()
    recipe = read_recipe(second.path)
    assert recipe.layout == Layout((LINE,)) and recipe.layout_given and recipe.prompt == PROMPT
    # Words rewritten on the canvas go into the prompt; lines that nobody planned belong to any prompt.
    hotel = layout_of("HOTEL")
    (rewritten,), canvas = backend.generate(PROMPT, CanvasState(hotel, 32, 32, plan.strings), "3", Controls())
    assert rewritten.recipe["prompt"] == PROMPT.replace("HOUSE", "HOTEL")
    assert canvas == CanvasState(hotel, 32, 32, ("HOTEL",))
    assert backend.generate(PROMPT, CanvasState(hotel, 32, 32), "3", Controls())[1].strings is None
    # A prompt with other strings than the planned ones is planned anew.
    _, canvas = backend.generate('a sign that says "BUS"', moved, "3", Controls())
    assert [line.text for line in canvas.layout.lines] == ["BUS"]


def test_boxes_of_an_image_are_edited(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "shop.png")
    boxes = (TextLine("SALE", box_polygon(0.1, 0.1, 0.6, 0.4)), TextLine("", box_polygon(0.7, 0.6, 0.95, 0.9)))
    (result,) = backend.edit(str(tmp_path / "shop.png"), CanvasState(Layout(boxes), 48, 32), "", "0", Controls())
    with Image.open(result.path) as image:
        changed = (np.asarray(image) != pixels).any(axis=-1)
    assert changed[5:11, 6:27].mean() > 0.9 and changed[21:27, 35:44].mean() > 0.9
    assert not changed[:, 31:33].any() and not changed[:2].any() and not changed[30:].any()
    assert result.recipe["prompt"] == 'a picture that says "SALE"'
    recipe = read_recipe(result.path)
    assert recipe.edit is not None
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        again = repeated_edit(recipe.edit, recipe.layout)  # raises where it differs
    assert again.mask[6:10, 7:26].all() and again.mask[22:26, 36:43].all() and not again.mask[:, 31:33].any()
    for canvas, path, said in (
        (CanvasState(Layout(()), 48, 32), str(tmp_path / "shop.png"), "Add a box"),
        (CanvasState(Layout(boxes), 48, 32), None, "Upload an image first"),
    ):
        with pytest.raises(UserError, match=said):
            backend.edit(path, canvas, "", "0", Controls())


def test_requests_have_limits(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for prompt, seeds, controls, said in (
        ("", "0", Controls(), "The prompt is empty"),
        ('a "sign', "0", Controls(), "never closed"),
        ("x" * 2001, "0", Controls(), "2001 letters"),
        ("a wall", "0-16", Controls(), "17 seeds"),
        ("a wall", "x", Controls(), "are no seeds"),
        ("a wall", "0", Controls(steps=201), "201 steps"),
        ("a wall", "0", Controls(text_scale=float("nan")), "from 0 to 100"),
        ('"' + "A" * 200 + '"', "0", Controls(), "25 lines of text"),
    ):
        with pytest.raises(UserError, match=said):
            backend.generate(prompt, EMPTY, seeds, controls)
    Image.new("RGB", (64, 64)).save(tmp_path / "large.png")
    (tmp_path / "text.png").write_text("no image", encoding="utf-8")
    with pytest.raises(UserError, match="no image that can be read"):
        backend.open_upload(str(tmp_path / "text.png"))
    with monkeypatch.context() as patch:
        patch.setattr(backend_module, "MOST_UPLOAD_PIXELS", 4000)
        with pytest.raises(UserError, match="64 x 64 pixels; more than 4,000"):
            backend.open_upload(str(tmp_path / "large.png"))
        patch.setattr(backend_module, "MOST_UPLOAD_BYTES", 10)
        with pytest.raises(UserError, match="more than 0 MB"):
            backend.open_upload(str(tmp_path / "large.png"))
    monkeypatch.setattr(backend_module, "KEPT_IMAGES", 2)
    of_the_user = backend.folder / "0.png"
    of_the_user.write_bytes(b"older than all of the page's")
    os.utime(of_the_user, (0, 0))
    results, _ = backend.generate("a wall", EMPTY, "0-3", Controls())
    assert of_the_user.is_file()
    assert [result.path.is_file() for result in results] == [False, False, True, True]
    assert backend.served == [str(result.path.resolve()) for result in results[2:]]


def test_a_request_that_runs_out_of_memory_raises_user_error(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from vlad.pipeline.vlad_pipeline import VLADPipeline

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(VLADPipeline, "generate", full)
        with pytest.raises(UserError, match="ask for fewer seeds"):
            backend.generate("a wall", EMPTY, "0", Controls())
    assert backend.generate("a wall", EMPTY, "0", Controls())[0]
