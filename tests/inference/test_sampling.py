"""`vlad sample` from options to files: skipping what exists, rejected prompts, repetition from recipes."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlad.cli.sample import SAMPLE
from vlad.inference.options import parse_size
from vlad.inference.recipes import read_recipe
from vlad.pipeline.vlad_pipeline import VLADPipeline
from vlad.utils.errors import UserError

BLUE, RED = 'a blue sign that says "HOUSE"', 'a red sign that says "BUS"'
BLUE_NAME, RED_NAME = "0000-a-blue-sign-that-says-house", "0001-a-red-sign-that-says-bus"


def call(*options: object) -> int:
    return SAMPLE([str(option) for option in options])


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def images(out: Path) -> list[str]:
    return sorted(path.name for path in out.glob("*.png"))


def test_every_seed_of_every_prompt_gets_its_files(pipeline_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert call(pipeline_folder, "--prompt", BLUE, "--prompt", RED, "--seeds", "0,5", "--out", out) == 0
    names = [f"{name}-s{seed}" for name in (BLUE_NAME, RED_NAME) for seed in (0, 5)]
    assert images(out) == [f"{name}.png" for name in names]
    for name in names:
        assert (out / "layouts" / f"{name}.json").is_file()
        assert (out / "layouts" / f"{name}.png").is_file()
        assert (out / "layouts" / f"{name}-plan.png").is_file()
    assert (out / "grids" / "grid.png").is_file()
    index = [json.loads(line) for line in (out / "index.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [entry["image"] for entry in index] == [f"{name}.png" for name in names]
    assert [(entry["prompt"], entry["seed"]) for entry in index] == [(BLUE, 0), (BLUE, 5), (RED, 0), (RED, 5)]
    assert not list(out.rglob("*.partial"))


def test_existing_images_are_kept_and_missing_ones_generated(
    pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    asked = (pipeline_folder, "--prompt", BLUE, "--prompt", RED, "--seed", "0-1", "--out", out)
    assert call(*asked) == 0
    gone = out / f"{RED_NAME}-s0.png"
    kept = out / f"{BLUE_NAME}-s1.png"
    first, stamp = pixels(gone), kept.stat().st_mtime_ns
    gone.unlink()
    # A kill can leave half a line at the end of the index.
    with (out / "index.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"image": "0000')
    assert call(*asked) == 0
    assert "3 of them existed before" in capsys.readouterr().out
    assert pixels(gone) == first
    assert kept.stat().st_mtime_ns == stamp
    assert len((out / "index.jsonl").read_text(encoding="utf-8").splitlines()) == 4
    with pytest.raises(UserError, match=r"steps was 2 and is now 3.*--overwrite"):
        call(*asked, "--steps", 3)
    assert call(*asked, "--steps", 3, "--overwrite") == 0
    assert read_recipe(kept).settings.steps == 3


def test_a_bad_line_is_reported_and_the_others_are_generated(
    pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    too_long = 'a sign that says "EXTRAORDINARY EXTRAORDINARY"'
    prompts.write_text(f'{BLUE}\na sign that says "HOUSE\n{RED}\n{too_long}\n', encoding="utf-8")
    assert call(pipeline_folder, "--prompts", prompts, "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "prompts.txt, line 2: The quotation mark" in said
    assert "prompts.txt, line 4:" in said
    assert "EXTRAORDINARY EXTRAORDINARY" in said
    assert "2 of 4 prompts" in said
    # The third line keeps its number: correcting the second moves nothing.
    assert images(tmp_path / "out") == [f"{BLUE_NAME}-s0.png", "0002-a-red-sign-that-says-bus-s0.png"]


def test_a_layout_of_other_words_than_the_prompts_is_reported_once(
    pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ("--line", "HOUSE@0.1,0.1,0.9,0.4")
    assert call(pipeline_folder, "--prompt", BLUE, *line, "--out", tmp_path / "same") == 0
    said = capsys.readouterr()
    assert "1 image in" in said.out and "the layout" not in said.err
    asked = ("--prompt", RED, "--prompt", BLUE, "--prompt", "a wall")
    assert call(pipeline_folder, *asked, *line, "--out", tmp_path / "other") == 0
    (note,) = [note for note in capsys.readouterr().err.splitlines() if "the layout" in note]
    assert note.startswith('--prompt: the layout holds "HOUSE" and the prompt quotes "BUS"; let both say the same')
    assert "1 more" in note


def test_a_prompt_without_quoted_strings_is_reported_and_generated(
    pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(pipeline_folder, "--prompt", BLUE, "--out", tmp_path / "quoted") == 0
    assert "quotes nothing" not in capsys.readouterr().err
    asked = ("--prompt", "a sign that says house", "--prompt", BLUE, "--prompt", "a wall")
    assert call(pipeline_folder, *asked, "--out", tmp_path / "mixed") == 0
    (note,) = [note for note in capsys.readouterr().err.splitlines() if "quotes nothing" in note]
    assert note.startswith("--prompt: ") and "quotation marks" in note and "1 more" in note
    assert len(images(tmp_path / "mixed")) == 3
    given = ("--line", "HOUSE@0.1,0.1,0.9,0.4", "--out", tmp_path / "given")
    assert call(pipeline_folder, "--prompt", "a wall", *given) == 0
    assert "put what" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--text-scale", "nan"), "--text-scale must be from 0 to 100, not nan"),
        (("--text-scale=-1e30",), r"--text-scale must be from 0 to 100, not -1e\+30"),
        (("--layout-scale", "1e9"), r"--layout-scale must be from 0 to 100, not 1e\+09"),
        (("--planning-scale", "-5"), "--planning-scale must be from 0 to 100"),
        (("--text-scale", "much"), "invalid float value: 'much'; .*--help"),
        (("--seed", "x"), "--seed: 'x' are no seeds"),
        (("--prompt", 'a sign that says ""'), "Nothing is between the quotation marks at character 18"),
    ],
)
def test_mistakes_are_reported_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], said: str
) -> None:
    monkeypatch.setattr("vlad.inference.sampling.load_pipeline", lambda *_, **__: pytest.fail("a model was loaded"))
    asked = () if "--prompt" in options else ("--prompt", BLUE)
    with pytest.raises(UserError, match=said):
        call(tmp_path, *asked, *options)


def test_an_image_is_repeated_from_its_recipe(
    pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    options = ("--steps", 3, "--text-scale", 2.5, "--layout-scale", 1.5, "--planning-scale", 1.2, "--solver", "dpm++")
    more = ("--guidance-rescale", 0.5, "--negative-prompt", "a dog", "--size", "48x32", "--no-refit", "--batch-size", 3)
    asked = ("--prompt", BLUE, "--prompt", RED, "--seed", "3-4", *options, *more)
    assert call(pipeline_folder, *asked, "--out", first) == 0
    image = first / f"{RED_NAME}-s4.png"
    with Image.open(image) as opened:
        assert opened.size == (48, 32)
    assert call("--from", image, "--out", again) == 0
    repeated = again / "0000-a-red-sign-that-says-bus-s4.png"
    assert pixels(repeated) == pixels(image)
    assert "pixel for pixel" in capsys.readouterr().out
    assert read_recipe(repeated) == read_recipe(image)
    # One option changed, the others as they were.
    assert call("--from", image, "--seed", 9, "--out", again) == 0
    other = read_recipe(again / "0000-a-red-sign-that-says-bus-s9.png")
    assert other.settings == read_recipe(image).settings
    assert other.solvers == ("DPMSolverMultistepScheduler",) * 2


def test_a_given_layout_is_repeated_to_its_last_digit(pipeline_folder: Path, tmp_path: Path) -> None:
    line = "HOUSE@0.1234567891,0.2000000003,0.9000000001,0.6"
    assert call(pipeline_folder, "--prompt", BLUE, "--line", line, "--out", tmp_path / "first") == 0
    image = tmp_path / "first" / f"{BLUE_NAME}-s0.png"
    recipe = read_recipe(image)
    assert recipe.layout_given
    assert recipe.layout.lines[0].polygon[0] == (0.1234567891, 0.2000000003)
    assert call("--from", image, "--out", tmp_path / "again") == 0
    assert pixels(tmp_path / "again" / image.name) == pixels(image)


@pytest.mark.parametrize(("named", "revision"), [("", None), ("@v1", "v1")])
def test_the_model_that_an_image_names_is_not_fetched(
    pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, revision: str | None
) -> None:
    asked: list[tuple[str, str | None, bool]] = []
    cached = False

    def download(name: str, revision: str | None, local_files_only: bool) -> str:
        asked.append((name, revision, local_files_only))
        if local_files_only and not cached:
            raise OSError("not in the cache")
        return str(pipeline_folder)

    monkeypatch.setattr(VLADPipeline, "download", download)
    run = f"hf://some/model{named}"
    assert call(run, "--prompt", BLUE, "--out", tmp_path / "first") == 0  # named by the user
    image = tmp_path / "first" / f"{BLUE_NAME}-s0.png"
    with pytest.raises(UserError, match=r"hf://some/model.*, which is not on this machine; .* name it yourself"):
        call("--from", image, "--out", tmp_path / "again")
    cached = True
    assert call("--from", image, "--out", tmp_path / "again") == 0
    assert call(run, "--from", image, "--out", tmp_path / "more") == 0
    assert asked == [("some/model", revision, only) for only in (False, True, True, False)]


def test_another_model_does_not_repeat_an_image(pipeline_folder: Path, tmp_path: Path) -> None:
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    assert call(pipeline_folder, "--prompt", BLUE, "--out", tmp_path / "out") == 0
    other = shutil.copytree(pipeline_folder, tmp_path / "other")
    weights = next((other / "refine_unet").glob("*.safetensors"))
    state = load_file(weights)
    save_file({name: value + 0.01 * torch.ones_like(value) for name, value in state.items()}, weights)
    image = tmp_path / "out" / f"{BLUE_NAME}-s0.png"
    with pytest.raises(UserError, match="generated by another model"):
        call(other, "--from", image, "--out", tmp_path / "again")
    with pytest.raises(UserError, match="another model"):
        call(other, "--prompt", BLUE, "--out", tmp_path / "out")


def test_planned_layouts_can_be_edited_and_sampled_from(pipeline_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert call(pipeline_folder, "--prompt", BLUE, "--layout-only", "--out", out) == 0
    assert images(out) == []
    file = out / "layouts" / f"{BLUE_NAME}-s0.json"
    layout = json.loads(file.read_text(encoding="utf-8"))
    layout["lines"][0]["polygon"] = [[0.1, 0.1], [0.9, 0.1], [0.9, 0.3], [0.1, 0.3]]
    file.write_text(json.dumps(layout), encoding="utf-8")
    assert call(pipeline_folder, "--prompt", BLUE, "--layout-only", "--out", out) == 0
    assert json.loads(file.read_text(encoding="utf-8")) == layout, "an edited layout was overwritten"
    with pytest.raises(UserError, match="is another layout; add --overwrite"):
        call(pipeline_folder, "--prompt", BLUE, "--layout-only", "--line", "HOUSE@0.1,0.5,0.9,0.8", "--out", out)
    assert call(pipeline_folder, "--prompt", BLUE, "--layout", file, "--out", tmp_path / "drawn") == 0
    recipe = read_recipe(tmp_path / "drawn" / f"{BLUE_NAME}-s0.png")
    assert recipe.layout.lines[0].polygon[2] == (0.9, 0.3)


def test_a_broken_layout_file_is_reported_only_where_it_is_used(pipeline_folder: Path, tmp_path: Path) -> None:
    asked = (pipeline_folder, "--prompt", BLUE, "--out", tmp_path)
    assert call(*asked) == 0
    file = tmp_path / "layouts" / f"{BLUE_NAME}-s0.json"
    file.write_text("{", encoding="utf-8")
    # The image holds its own layout.
    assert call(*asked) == 0
    assert file.read_text(encoding="utf-8") == "{"
    with pytest.raises(UserError, match="is not JSON: line 1"):
        call(*asked, "--layout-only")


def test_overwriting_an_image_removes_its_raw_plan(pipeline_folder: Path, tmp_path: Path) -> None:
    def sheet_width() -> int:
        with Image.open(tmp_path / "grids" / "grid.png") as sheet:
            return sheet.width

    asked = (pipeline_folder, "--prompt", BLUE, "--out", tmp_path)
    assert call(*asked) == 0
    plan = tmp_path / "layouts" / f"{BLUE_NAME}-s0-plan.png"
    assert plan.is_file()
    planned = sheet_width()
    assert call(*asked, "--line", "HOUSE@0.1,0.5,0.9,0.8", "--overwrite") == 0
    assert not plan.is_file(), "stage one did not run"
    assert sheet_width() < planned


def test_a_prompt_without_strings_has_an_empty_layout(pipeline_folder: Path, tmp_path: Path) -> None:
    assert call(pipeline_folder, "--prompt", "a wall", "--out", tmp_path) == 0
    assert call(pipeline_folder, "--prompt", "a wall", "--out", tmp_path) == 0
    assert read_recipe(tmp_path / "0000-a-wall-s0.png").layout.lines == ()


def test_channels_last_and_compile_only_affect_speed(
    pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    compiled: list[str] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: compiled.append(type(module).__name__))
    asked = (pipeline_folder, "--prompt", BLUE)
    assert call(*asked, "--out", tmp_path / "plain") == 0
    assert compiled == []
    assert call(*asked, "--channels-last", "--compile", "--out", tmp_path / "fast") == 0
    assert compiled == ["UNet2DConditionModel"] * 2
    both = []
    for way in ("plain", "fast"):
        with Image.open(tmp_path / way / f"{BLUE_NAME}-s0.png") as image:
            both.append(np.asarray(image, dtype=int))
    assert np.abs(both[0] - both[1]).max() <= 1
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"--compile needs a C\+\+ compiler"):
        call(*asked, "--compile", "--out", tmp_path / "none")


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_the_same_seed_gives_the_same_image_whatever_the_batch_size(
    pipeline_folder: Path, tmp_path: Path, batch_size: int
) -> None:
    wanted, found = tmp_path / "wanted", tmp_path / "found"
    asked = (pipeline_folder, "--prompt", BLUE, "--prompt", RED, "--seed", "0-2", "--steps", 4)
    assert call(*asked, "--out", wanted) == 0
    assert call(*asked, "--out", found, "--batch-size", batch_size) == 0
    assert images(found) == images(wanted)
    for name in images(wanted):
        with Image.open(wanted / name) as first, Image.open(found / name) as second:
            difference = np.abs(np.asarray(first, dtype=int) - np.asarray(second, dtype=int))
        # Kernels of another shape round otherwise: a level of 256, and never more.
        assert difference.max() <= (0 if batch_size == 2 else 1)


CPU_IS_FULL = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."


@pytest.mark.parametrize("of_gpu", [True, False])
def test_images_finished_before_running_out_of_memory_are_kept(
    pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_gpu: bool
) -> None:
    import torch

    from vlad.pipeline.vlad_pipeline import VLADPipeline

    generate, calls = VLADPipeline.generate, []

    def generate_once(self: VLADPipeline, *arguments: object, **options: object) -> object:
        calls.append(arguments)
        if len(calls) > 1:
            raise torch.OutOfMemoryError("no room") if of_gpu else RuntimeError(CPU_IS_FULL)
        return generate(self, *arguments, **options)  # type: ignore[arg-type]

    asked = (pipeline_folder, "--prompt", BLUE, "--seed", "0-3", "--out", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(VLADPipeline, "generate", generate_once)
        with pytest.raises(UserError, match=r"2 images at once: out of memory .*; 2 images kept; give --batch-size 1"):
            call(*asked)
    assert images(tmp_path) == [f"{BLUE_NAME}-s{seed}.png" for seed in (0, 1)]
    assert len((tmp_path / "index.jsonl").read_text(encoding="utf-8").splitlines()) == 2
    assert call(*asked) == 0
    assert len(images(tmp_path)) == 4


def test_a_wrong_size_is_reported_with_the_nearest_that_fits(pipeline_folder: Path, tmp_path: Path) -> None:
    asked = (pipeline_folder, "--prompt", BLUE, "--out", tmp_path)
    with pytest.raises(UserError, match=r"multiples of 16.*the nearest size is 48 x 32"):
        call(*asked, "--size", "50x39")
    with pytest.raises(UserError, match="no size"):
        call(*asked, "--size", "wide")
    with pytest.raises(UserError, match="one of the two"):
        call(*asked, "--size", "48x32", "--aspect", "3:2")
    assert call(*asked, "--aspect", "3:1") == 0
    with Image.open(tmp_path / f"{BLUE_NAME}-s0.png") as image:
        assert image.size == (48, 16)
    assert parse_size("96") == (96, 96)


def test_a_template_gives_texts_and_places(pipeline_folder: Path, tmp_path: Path) -> None:
    from vlad.layout.glyph_map import render_glyph_map
    from vlad.layout.polygons import box_polygon, polygon_iou
    from vlad.reports.image_grids import glyph_map_image
    from vlad.types import Layout, TextLine

    line = TextLine("HOUSE", box_polygon(0.2, 0.6, 0.8, 0.75))
    glyph_map_image(1 - render_glyph_map(Layout((line,)), 256, 256)).save(tmp_path / "template.png")
    assert (
        call(pipeline_folder, "--prompt", BLUE, "--template", tmp_path / "template.png", "--out", tmp_path / "out") == 0
    )
    (found,) = read_recipe(tmp_path / "out" / f"{BLUE_NAME}-s0.png").layout.lines
    assert found.text == "HOUSE"
    assert polygon_iou(found.polygon, line.polygon) > 0.6
    Image.new("RGB", (64, 64), "white").save(tmp_path / "empty.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + os.urandom(50))
    for name, said in (("empty.png", "no text"), ("broken.png", "no image that"), ("none.png", "no image")):
        with pytest.raises(UserError, match=said):
            call(pipeline_folder, "--prompt", BLUE, "--template", tmp_path / name, "--out", tmp_path / "out")
    with pytest.raises(UserError, match="--line and --template all say"):
        call(pipeline_folder, "--prompt", BLUE, "--line", "A@0,0,1,1", "--template", "x", "--out", tmp_path / "out")


def test_a_raw_glyph_map_that_reads_as_wanted_is_kept(
    pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = (pipeline_folder, "--prompt", BLUE)
    monkeypatch.setattr("vlad.inference.sampling._ocr_reader", lambda: lambda glyph_map: ["House"])
    assert call(*asked, "--keep-raw", "--out", tmp_path / "kept") == 0
    assert call(*asked, "--no-refit", "--out", tmp_path / "raw") == 0
    assert call(*asked, "--out", tmp_path / "refitted") == 0
    kept, raw, refitted = (pixels(tmp_path / way / f"{BLUE_NAME}-s0.png") for way in ("kept", "raw", "refitted"))
    assert kept == raw
    assert kept != refitted
    # The recipe records that raw maps were kept: such an image is not taken for one without.
    with pytest.raises(UserError, match="another keep_raw"):
        call(*asked, "--out", tmp_path / "kept")


def test_a_damaged_or_foreign_image_has_no_recipe(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "foreign.png")
    (tmp_path / "broken.png").write_bytes(os.urandom(100))
    for name, said in (("foreign.png", "no recipe"), ("broken.png", "no image"), ("none.png", "no image")):
        with pytest.raises(UserError, match=said):
            read_recipe(tmp_path / name)


@pytest.mark.parametrize(
    "name", [f"{BLUE_NAME}-s0.png", f"layouts/{BLUE_NAME}-s0.json", f"layouts/{BLUE_NAME}-s0-plan.png", "index.jsonl"]
)
@pytest.mark.parametrize("options", [(), ("--overwrite",), ("--layout-only",)])
@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_under_a_files_name_is_refused_before_anything_is_generated(
    pipeline_folder: Path, tmp_path: Path, name: str, options: tuple[str, ...], kind: str
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(UserError, match=rf"{name} is not a file; rename it"):
        call(pipeline_folder, "--prompt", BLUE, "--seed", 0, "--out", tmp_path, *options)
    assert not [found for found in tmp_path.rglob("*") if found.is_file()]
