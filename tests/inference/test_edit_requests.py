"""`vlad sample --edit`: an image, a region and words become one edit; mistakes raise one sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vlad.cli.sample import SAMPLE
from vlad.config.load import load_config
from vlad.inference.edit_requests import read_edit
from vlad.inference.input_images import read_image
from vlad.inference.options import SampleCall
from vlad.inference.recipes import read_recipe, recipe_from_json, recipe_to_json
from vlad.inference.sampling import read_inputs
from vlad.training.build import build_pipeline, new_parts
from vlad.utils.errors import UserError

REGION = "0.25,0.25,0.75,0.5"


def call(*options: object) -> int:
    return SAMPLE([str(option) for option in options])


@pytest.fixture(scope="module")
def editor(pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained pipeline that edits."""
    folder = tmp_path_factory.mktemp("editor")
    config = load_config(pipeline_folder.parent / "config.yaml", ["refine.editing_share=0.5"])
    torch.manual_seed(0)
    parts = new_parts(config)
    parts.autoencoder.fit(torch.rand(64, 3, 32, 32) * 2 - 1)
    build_pipeline(config, parts).save_pretrained(folder)
    return folder


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "shop.png")
    return tmp_path / "shop.png"


def changed(before: Path, after: Path) -> np.ndarray:
    with Image.open(before) as first, Image.open(after) as second:
        assert first.size == second.size
        return (np.asarray(first) != np.asarray(second)).any(axis=-1)


def test_the_region_changes_and_the_rest_is_kept(editor: Path, shop: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert call(editor, "--edit", shop, "--mask", REGION, "--line", "SALE", "--seed", "0-2", "--out", out) == 0
    edited = sorted(out.glob("*.png"))
    assert [path.name for path in edited] == [f"0000-a-picture-that-says-sale-s{seed}.png" for seed in (0, 1, 2)]
    for path in edited:
        different = changed(shop, path)
        rows, columns = np.flatnonzero(different.any(axis=1)), np.flatnonzero(different.any(axis=0))
        assert rows.min() >= 7 and rows.max() <= 16 and columns.min() >= 11 and columns.max() <= 36
        assert different[9:14, 14:34].mean() > 0.9
    recipe = read_recipe(edited[0])
    assert [line.text for line in recipe.layout.lines] == ["SALE"]
    assert recipe.edit is not None and recipe.edit.image == str(shop)
    # Another mask under the same names is another image.
    with pytest.raises(UserError, match="another edit"):
        call(editor, "--edit", shop, "--mask", "0,0,0.5,0.5", "--line", "SALE", "--out", out)


def test_a_placed_line_is_its_own_mask_and_no_line_removes_text(editor: Path, shop: Path, tmp_path: Path) -> None:
    assert call(editor, "--edit", shop, "--line", f"SALE@{REGION}", "--out", tmp_path / "line") == 0
    (line,) = (tmp_path / "line").glob("*.png")
    different = changed(shop, line)
    assert different[10, 20] and not different[:5].any() and not different[20:].any()
    mask = Image.new("L", (48, 32))
    mask.paste(255, (0, 0, 10, 10))
    mask.save(tmp_path / "mask.png")
    asked = ("--edit", shop, "--mask", tmp_path / "mask.png", "--mask", "0.5,0.5,1,1")
    assert call(editor, *asked, "--out", tmp_path / "removed") == 0
    (removed,) = (tmp_path / "removed").glob("*.png")
    assert removed.name == "0000-a-picture-without-text-s0.png"
    different = changed(shop, removed)
    assert different[:9, :9].mean() > 0.9 and different[18:, 26:].mean() > 0.9
    assert not different[:14, 14:].any()
    assert read_recipe(removed).layout.lines == ()


def test_a_region_may_be_longer_than_a_file_name(shop: Path) -> None:
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    circle = np.stack([0.5 + np.cos(angles) / 3, 0.5 + np.sin(angles) / 3], axis=1)
    mask = read_edit(str(shop), [",".join(map(str, circle.ravel().tolist()))], ["A"]).edit.mask
    assert mask[16, 24] and mask[16, 10:38].all() and not mask[:5].any() and not mask[8, 10]


def test_words_come_from_lines_a_layout_or_the_prompt(shop: Path, tmp_path: Path) -> None:
    file = tmp_path / "layout.json"
    file.write_text(json.dumps({"lines": [{"text": "HI", "box": [0.3, 0.3, 0.6, 0.5]}]}), encoding="utf-8")

    def edit_of(*options: object) -> tuple[list[str] | None, str]:
        arguments = SAMPLE.parser().parse([str(option) for option in ("--edit", shop, *options)])
        edit = read_inputs(SampleCall.from_arguments(arguments), None).edit
        assert edit is not None
        return (None if edit.layout is None else [line.text for line in edit.layout.lines]), edit.prompt

    assert edit_of("--mask", REGION, "--line", "ONE", "--line", "TWO")[0] == ["ONE", "TWO"]
    assert edit_of("--layout", file) == (["HI"], 'a picture that says "HI"')
    # The prompt's strings fill the mask, once the model has checked them.
    assert edit_of("--mask", REGION, "--prompt", 'a sign that says "YES"')[0] is None
    assert edit_of("--mask", REGION, "--prompt", "a wall")[0] == []


def test_an_edited_image_is_repeated_from_its_recipe(
    editor: Path, shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = tmp_path / "first"
    assert call(editor, "--edit", shop, "--mask", REGION, "--line", "SALE", "--seed", 3, "--out", first) == 0
    (image,) = first.glob("*.png")
    assert call("--from", image, "--out", tmp_path / "again") == 0
    assert "pixel for pixel" in capsys.readouterr().out
    recipe = read_recipe(image)
    assert recipe_from_json(recipe_to_json(recipe)) == recipe
    # One option changed, the others as they were.
    assert call("--from", image, "--line", "AB@0.3,0.3,0.6,0.45", "--out", tmp_path / "other") == 0
    (other,) = (tmp_path / "other").glob("*.png")
    assert changed(image, other)[9:14, 14:34].any() and not changed(shop, other)[:7].any()
    Image.new("RGB", (48, 32), "red").save(shop)
    with pytest.raises(UserError, match="is not what it was when the image was edited"):
        call("--from", image, "--out", tmp_path / "again")


def test_a_recipe_from_before_edits_is_read() -> None:
    from vlad.inference.recipes import Recipe
    from vlad.pipeline.options import SampleSettings
    from vlad.types import Layout

    recipe = Recipe("a wall", 0, Layout(()), False, SampleSettings(2, 1.0, 1.0, 1.0, True, 32, 32, 2), "m", "r")
    older = recipe_to_json(recipe)
    del older["edit"]
    assert recipe_from_json(older) == recipe


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--edit needs a region"),
        (["--mask", "2,2,3,3"], "reaches outside the image"),
        (["--mask", "0.5,0.5,0.5,0.9"], "neither an image nor a region"),
        (["--mask", "0.1,0.2,0.3"], "neither an image nor a region"),
        (["--mask", "nan,0,1,1"], "There is no image at nan,0,1,1"),
        (["--mask", "{folder}/nothing.png"], "There is no image at"),
        (["--mask", "x" * 5000], "There is no image at xxx"),
        (["--mask", "{folder}/small.png"], "has 8 x 8 pixels and the image 48 x 32"),
        (["--mask", "{folder}/black.png"], r"is empty \(nothing is white\)"),
        (["--mask", "{folder}/broken.png"], "no image that can be read"),
        (["--mask", REGION, "--line", " "], "--line holds no text"),
        (["--line", "A@0,0,1,1", "--line", "B"], "some do not; give one to all"),
        (["--line", "A@0.5,0.5,2,2"], "is outside the image"),
        (["--mask", REGION, "--line", "A", "--prompt", 'a "B"'], "both say what to write"),
        (["--mask", REGION, "--size", "64"], "--size says nothing"),
        (["--mask", REGION, "--template", "x.png"], "--template says nothing"),
        (["--line", "A@0,0,1,1", "--layout", "x.json"], "--layout and --line all say"),
    ],
)
def test_a_wrong_edit_raises_one_sentence(shop: Path, tmp_path: Path, options: list[str], message: str) -> None:
    Image.new("L", (8, 8), 255).save(tmp_path / "small.png")
    Image.new("L", (48, 32)).save(tmp_path / "black.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    with pytest.raises(UserError, match=message):
        call("nowhere", "--edit", shop, *(option.format(folder=tmp_path) for option in options))


def test_images_that_cannot_be_edited_are_refused(
    editor: Path, pipeline_folder: Path, shop: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="not trained to edit"):
        call(pipeline_folder, "--edit", shop, "--mask", REGION, "--line", "A", "--out", tmp_path / "out")
    Image.new("RGB", (50, 33)).save(tmp_path / "odd.png")
    with pytest.raises(UserError, match=r"50 x 33 pixels.*nearest size is 48 x 32"):
        call(editor, "--edit", tmp_path / "odd.png", "--mask", REGION, "--line", "A", "--out", tmp_path / "out")
    with pytest.raises(UserError, match="name the image with --edit"):
        call(editor, "--mask", REGION, "--prompt", "a wall")
    (tmp_path / "text.png").write_text("no image", encoding="utf-8")
    with pytest.raises(UserError, match="no image that can be read"):
        read_edit(str(tmp_path / "text.png"), [REGION], ["A"])
    with pytest.raises(UserError, match="48 x 32 pixels; more than 100"):
        read_image(shop, 100)
