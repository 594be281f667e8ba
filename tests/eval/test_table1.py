"""Table I on stand-ins: every row through the code of the real ones, and the table beside the published figures."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from vlad.cli.evaluate import TABLE1
from vlad.eval.benchmark.image_generation import image_seed
from vlad.eval.fidelity.distances import INCEPTION
from vlad.eval.generators.baselines import DeepFloydIF, TextDiffuser, load_character_unet
from vlad.eval.generators.entries import Entry, LayoutGenerator, generator_of, load_entry
from vlad.eval.image_files import paint_over
from vlad.eval.options import WATERMARK, BenchmarkOptions
from vlad.eval.protocols.protocol import BenchmarkPrompt
from vlad.eval.table1 import Row, remarks, table1_markdown
from vlad.layout.control_images import ALPHABET, centred_layout, character_mask, glyph_edges
from vlad.layout.polygons import box_polygon
from vlad.pipeline.vlad_pipeline import VLADPipeline
from vlad.types import Layout, TextLine
from vlad.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
ENTRIES = sorted((ROOT / "configs" / "eval").glob("*.yaml"))
HELLO, OTHER = centred_layout(["HELLO"]), centred_layout(["jolly fine"])


@pytest.fixture
def table1() -> Callable[..., int]:
    return lambda *arguments: TABLE1([*map(str, arguments), "--workers", "1"])


def test_there_is_an_entry_for_each_row_with_its_published_figures() -> None:
    entries = {path.stem: load_entry(path) for path in ENTRIES}
    assert {name: entry.kind for name, entry in entries.items()} == {
        "stable-diffusion": "pipeline",
        "fine-tuned": "fine_tuned",
        "controlnet": "controlnet",
        "deepfloyd": "deepfloyd",
        "textdiffuser": "textdiffuser",
        "artist": "images",
        "vlad": "vlad",
    }
    for entry in entries.values():
        told = entry.published
        assert told.precision is not None and told.recall is not None and told.f_measure is not None
        # A slip in a figure would show here: F is of the mean precision and recall.
        f_measure = 2 * told.precision * told.recall / (told.precision + told.recall)
        assert f_measure == pytest.approx(told.f_measure, abs=0.001)


def test_a_letter_box_holds_its_class() -> None:
    layout = Layout((TextLine("aB- 9", box_polygon(0.0, 0.25, 1.0, 0.75)),))
    mask = character_mask(layout, 100)
    classes = [ALPHABET.index(letter) + 1 for letter in "aB9"]
    assert classes == [11, 38, 10]
    assert sorted(set(mask.flatten().tolist())) == sorted([0, *classes])
    for place, own in ((0, 11), (1, 38), (4, 10)):
        rows, columns = np.nonzero(mask == own)
        assert 20 * place <= columns.min() and columns.max() < 20 * (place + 1)
        assert (mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] == own).all()
    # A small letter is lower than a capital, and no line that is illegible is told.
    assert np.ptp(np.nonzero(mask == 11)[0]) < np.ptp(np.nonzero(mask == 38)[0])
    hidden = Layout((TextLine("aB", box_polygon(0, 0, 1, 1), valid=False),))
    assert not character_mask(hidden, 50).any()
    edges = glyph_edges(layout, 100, 100)
    assert set(np.unique(edges)) == {0, 255} and not edges[:20].any() and edges.mean() < 40


def test_centred_rows_hold_all_words_inside_the_image() -> None:
    texts = ["The quick brown fox", "jumps", "supercalifragilisticexpialidocious"]
    layout = centred_layout(texts)
    assert " ".join(line.text for line in layout.lines) == " ".join(texts)
    corners = np.array([line.polygon for line in layout.lines])
    assert corners.min() >= 0 and corners.max() <= 1
    assert (np.diff(corners[:, 0, 1]) > 0).all()
    assert centred_layout(["", "  "]).lines == ()


def test_textdiffuser_takes_seventeen_channels_in_its_order(stable_diffusion: Path, character_unet: Path) -> None:
    """The loop against one step by hand."""
    model = TextDiffuser(stable_diffusion, character_unet, 16, 1, 3.0, "DDPMScheduler")
    image = model.generate(["a sign"], [7], [HELLO])[0]
    assert image.size == (16, 16)

    pipeline, unet = model.pipeline, load_character_unet(character_unet)
    generator = torch.Generator().manual_seed(7)
    grey = pipeline.vae.encode(torch.zeros(1, 3, 16, 16)).latent_dist.sample(generator) * 0.18215
    x_t = torch.randn(1, 4, 16, 16, generator=generator)
    classes = torch.from_numpy(character_mask(HELLO, 64)).long()[None]
    seen = unet.segmap_conv(unet.word_embedding(classes).permute(0, 3, 1, 2))
    assert seen.shape == (1, 8, 16, 16)
    channels = torch.cat([x_t, torch.ones(1, 1, 16, 16), grey, seen], dim=1)
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(1)
    (t,) = scheduler.timesteps
    tokens = pipeline.tokenizer(["", "a sign"], padding="max_length", max_length=77, return_tensors="pt").input_ids
    text = pipeline.text_encoder(tokens)[0]
    without, told = (unet.unet(channels, t, encoder_hidden_states=row[None]).sample for row in text)
    x_0 = scheduler.step(without + 3 * (told - without), t, x_t, generator=[generator]).prev_sample
    pixels = pipeline.vae.decode(x_0 / 0.18215).sample
    expected = ((pixels[0] / 2 + 0.5).clamp(0, 1) * 255).round().detach().permute(1, 2, 0).numpy()
    assert np.abs(np.asarray(image).astype(int) - expected).max() <= 1


def test_layouts_shape_the_generated_images(
    stable_diffusion: Path, controlnet: Path, character_unet: Path, ours: Path
) -> None:
    for options in (
        {"kind": "controlnet", "controlnet": str(controlnet)},
        {"kind": "controlnet", "controlnet": str(controlnet), "hint": "glyphs"},
        {"kind": "textdiffuser", "unet": str(character_unet)},
    ):
        entry = Entry(path=str(stable_diffusion), pixels=16, steps=2, **options)
        generator = generator_of(entry)
        prompt = BenchmarkPrompt("0", "a sign that says 'HELLO'", ("HELLO",))
        seed = [image_seed(0, "0", 0)]
        (own, layout), (again, _), (other, _) = (
            generator.generate([prompt], seed, layouts)[0] for layouts in (None, [HELLO], [OTHER])
        )
        assert layout == HELLO
        assert own.tobytes() == again.tobytes() != other.tobytes()
    planned = LayoutGenerator(
        Entry(path=str(stable_diffusion), kind="controlnet", controlnet=str(controlnet), planner=str(ours), pixels=16)
    )
    ((_, layout),) = planned.generate([prompt], seed, None)
    pipeline = VLADPipeline.from_pretrained(ours / "pipeline")
    assert layout == pipeline([prompt.text], seed).layouts[0]
    assert "lines of text" in str(planned.refusal(BenchmarkPrompt("1", f"'{'long ' * 20}'", ()), None))


def test_deepfloyd_watermark_lies_inside_the_masked_box(deepfloyd: Path) -> None:
    model = DeepFloydIF([deepfloyd / name for name in ("IF-I", "IF-II", "upscaler")], 2, None)
    images = [np.asarray(drawn) for drawn in model.generate(["a sign", "a cat"], [1, 2])]
    assert [image.shape for image in images] == [(64, 64, 3)] * 2
    assert (images[0] != images[1]).any()
    alone = np.asarray(model.generate(["a sign"], [1])[0])
    assert np.abs(alone.astype(int) - images[0]).max() <= 1, "an image does not depend on its neighbours"
    model.third.watermarker = None
    bare = np.asarray(model.generate(["a sign"], [1])[0])
    marked = (alone != bare).any(axis=-1)
    assert marked.any()
    assert (paint_over(alone, WATERMARK) == paint_over(bare, WATERMARK)).all()


def test_the_table_of_all_rows(
    table1: Callable[..., int],
    stable_diffusion: Path,
    controlnet: Path,
    character_unet: Path,
    deepfloyd: Path,
    ours: Path,
    without_layouts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "p.txt").write_text("a sign that says 'HELLO'\na wall that says 'A B'\n", encoding="utf-8")
    (tmp_path / "made").mkdir()
    for number in range(2):
        Image.new("RGB", (64, 64)).save(tmp_path / "made" / f"{number}_0.png")
    small = [f"{row}.{key}" for row in ("controlnet", "textdiffuser") for key in ("pixels=16", "steps=1")]
    given = [
        f"stable-diffusion.path={stable_diffusion}",
        "stable-diffusion.pixels=16",
        "stable-diffusion.steps=1",
        f"fine-tuned.path={without_layouts}",
        "fine-tuned.steps=1",
        f"controlnet.path={stable_diffusion}",
        f"controlnet.controlnet={controlnet}",
        f"controlnet.planner={ours}",
        f"textdiffuser.path={stable_diffusion}",
        f"textdiffuser.unet={character_unet}",
        f"deepfloyd.path={deepfloyd}",
        "deepfloyd.stages=[]",
        "deepfloyd.steps=1",
        f"artist.path={tmp_path / 'made'}",
        f"vlad.path={ours}",
        "vlad.steps=1",
        *small,
    ]
    # Settings may stand behind the prompt files, as in the docs.
    call = ("--prompts", tmp_path / "p.txt", *given, "--images-per-prompt", 1, "--out", tmp_path / "out")
    assert table1(*call) == 0
    printed = capsys.readouterr().out
    assert "| VLAD | published | 35.12 | 0.3520 | 0.7560 | 0.8770 | 0.8800 | 0.8790 | arXiv 2501.00917 |" in printed
    assert "watermark of DeepFloyd IF is painted over" in printed and "not measured" not in printed
    # Why a column is empty is told once for all rows, with what goes where.
    assert printed.count("CLIPScore (clip-vit-base-patch32, prefix 'A photo depicts', scale 1) needs its CLIP") == 1
    assert printed.count("FID and KID compare with real images, and the prompt file names none") == 1
    rows = json.loads((tmp_path / "out" / "table1.json").read_text(encoding="utf-8"))
    names = ["stable-diffusion", "fine-tuned", "controlnet", "deepfloyd", "textdiffuser", "artist", "vlad"]
    assert [(row["row"], row["images"], row["missing"]) for row in rows] == [(name, 2, 0) for name in names]
    assert rows[-1]["measured"]["strict"]["accuracy"] == 0 and rows[-1]["measured"]["strict"]["fid"] is None
    metrics = json.loads((tmp_path / "out" / "vlad" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["rests_on"]["target"].endswith(f"vlad.yaml, path {ours}")
    for name in names:
        metrics = json.loads((tmp_path / "out" / name / "metrics.json").read_text(encoding="utf-8"))
        assert list(metrics["protocols"]) == ["mario"]
    stored = json.loads(next((tmp_path / "out" / "deepfloyd" / "readings").glob("*.json")).read_text(encoding="utf-8"))
    assert stored["masked"] == list(WATERMARK)
    # Another time nothing is drawn; what differs is refused.
    drawn = [path for path in (tmp_path / "out").rglob("*.png") if path.name != "breakdown.png"]
    before = {path: path.stat().st_mtime_ns for path in drawn}
    shutil.rmtree(tmp_path / "made")
    assert table1(*call) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "not measured: no folder of images at" in capsys.readouterr().out
    with pytest.raises(UserError, match="steps 1, now 2"):
        table1(*(part for part in call if part != "vlad.steps=1"), "vlad.steps=2", "--rows", "vlad")


def test_remarks_name_each_basis_once_and_missing_images() -> None:
    shared, own = "FID needs weights.", "CLIPScore: clip, prefix 'A photo depicts', scale 1, 3 images."
    rows = [
        Row(
            "vlad",
            Entry(title="VLAD", kind="vlad", path="runs/tiny", steps=50),
            {},
            3,
            (shared, own),
            ("7_0: The string is too long.",),
        ),
        Row("artist", Entry(title="ARTIST", kind="images", path="made"), {}, 4, (shared,)),
        Row("deepfloyd", Entry(title="DeepFloyd IF", kind="deepfloyd"), {}, left_out="no model at x"),
    ]
    said = remarks(rows, BenchmarkOptions(prompts=(Path("p.txt"),), first=3), "some engine 1", 5)
    assert said[0] == "Measured by some engine 1 on the first 3 of 5 prompts of p.txt, 1 image a prompt, seed 0."
    assert said[2:] == [
        "VLAD: generated by runs/tiny, 50 steps.",
        "ARTIST: the images of made.",
        shared,
        f"VLAD: {own}",
        "PARTIAL, VLAD: 1 of 4 images are not scored, first 7_0: The string is too long.",
    ]
    assert "| 3, 1 missing |" in table1_markdown(rows)


def test_fid_covers_the_subsets_with_real_images(table1: Callable[..., int], tmp_path: Path) -> None:
    """As MARIO-Eval lies on a disk: a folder a set, with real images in some."""

    class Graph(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))

        def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
            return (x.float() * self.weight[:, None, None]).mean(dim=[2, 3]) if return_features else x.float()

    (tmp_path / "weights").mkdir()
    torch.jit.script(Graph()).save(str(tmp_path / "weights" / INCEPTION))
    rng = np.random.default_rng(0)
    for name in ("TMDBEval500", "DrawBenchText"):
        for part in (f"MARIOEval/{name}", f"made/{name}/images_0"):
            (tmp_path / part).mkdir(parents=True)
        (tmp_path / "MARIOEval" / name / f"{name}.txt").write_text("a 'B'\na 'C'\na 'D'\n", encoding="utf-8")
        for number in range(3):
            colours = rng.integers(0, 255, (2, 2, 3)).astype(np.uint8)
            Image.fromarray(colours).resize((16, 16)).save(tmp_path / f"made/{name}/images_0/{number}_0.jpg")
    (tmp_path / "MARIOEval" / "TMDBEval500" / "images").mkdir()
    for number in range(4):
        colours = rng.integers(0, 255, (2, 2, 3)).astype(np.uint8)
        Image.fromarray(colours).resize((16, 16)).save(tmp_path / f"MARIOEval/TMDBEval500/images/film-{number}.jpg")
    prompts = sorted((tmp_path / "MARIOEval").glob("*/*.txt"))
    given = ("--rows", "artist", f"artist.path={tmp_path / 'made'}", "--images-per-prompt", 1)
    where = ("--weights", tmp_path / "weights", "--references", tmp_path / "MARIOEval", "--out", tmp_path / "out")
    assert table1("--prompts", *prompts, *given, *where) == 0
    (row,) = json.loads((tmp_path / "out" / "table1.json").read_text(encoding="utf-8"))
    assert row["images"] == 6 and row["measured"]["strict"]["fid"] > 0
    assert row["notes"][0] == "FID: inception-2015-12-05, 3 images against 4 references, once."
    with pytest.raises(UserError, match="no folder of reference images"):
        table1("--prompts", *prompts, *given, "--references", tmp_path / "none", "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["vald.path=x"], "names no row.* Did you mean 'vlad'"),
        (["vlad.pth=x"], "there is no option 'pth'.* Did you mean 'path'"),
        (["vlad.kind=painter"], "kind"),
        (["vlad.steps=0"], "at least 1"),
        (["controlnet.controlnet=null"], "set controlnet=FOLDER"),
        (["textdiffuser.unet=null"], "set unet=FOLDER"),
        (["deepfloyd.stages=[a]"], "names 1 folders"),
        (["artist.path=''"], "path names no model"),
        (["vlad.pixels=500"], "multiple of 8"),
        (["vlad.text_scale=nan"], "Row vlad: .*text_scale must be from 0 to 100, not nan"),
        (["stable-diffusion.text_scale=101"], "text_scale must be from 0 to 100, not 101"),
        (["vlad.layout_scale=-1"], "layout_scale must be from 0 to 100, not -1"),
        (["controlnet.control_scale=inf"], "control_scale must be from 0 to 100, not inf"),
        ([f"vlad.path={'x' * 300}"], "Row vlad: path 'x+...' is not a usable path"),
        ([f"controlnet.planner={'x' * 300}"], "Row controlnet: planner 'x+...' is not a usable path"),
        (["controlnet.planner=''"], "planner names no run"),
        (["controlnet.controlnet=''"], "set controlnet=FOLDER"),
        (["--out", ""], "--out names no folder"),
        (["--out", "x" * 300], "--out 'x+...' is not a usable path"),
        (["--references", "none"], "^There is no folder of reference images at none"),
        (["--rows", "vald"], "There is no row 'vald'.* Did you mean 'vlad'"),
    ],
)
def test_wrong_entries_are_refused(table1: Callable[..., int], given: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a sign that says 'HELLO'\n", encoding="utf-8")
    with pytest.raises(UserError, match=said):
        table1("--prompts", tmp_path / "p.txt", "--out", tmp_path / "out", *given)


def test_prompt_files_are_checked_even_without_any_model(table1: Callable[..., int], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no prompt file at none\.txt"):
        table1("--prompts", "none.txt", "vlad.path=nowhere", "--out", tmp_path / "out")
    with pytest.raises(UserError, match="--prompts: expected at least one argument"):
        table1("--prompts", "vlad.path=nowhere", "--out", tmp_path / "out")


def test_a_mistake_in_a_late_row_is_refused_before_generation(
    table1: Callable[..., int], ours: Path, stable_diffusion: Path, tmp_path: Path
) -> None:
    (tmp_path / "p.txt").write_text("a sign that says 'HELLO'\n", encoding="utf-8")
    first = [f"stable-diffusion.{key}" for key in (f"path={stable_diffusion}", "pixels=16", "steps=1")]
    call = ("--prompts", tmp_path / "p.txt", *first, "--images-per-prompt", 1)
    with pytest.raises(UserError, match=r"Row vlad: .* was trained with a layout stage"):
        table1(*call, f"vlad.path={ours}", "vlad.kind=fine_tuned", "--out", tmp_path / "other")
    with pytest.raises(UserError, match=r"Row artist: No image in .* belongs to a prompt"):
        table1(*call, f"artist.path={stable_diffusion}", "--out", tmp_path / "other")
    assert (
        table1(*call[:2], f"vlad.path={ours}", "vlad.steps=1", "--images-per-prompt", 1, "--out", tmp_path / "out") == 0
    )
    with pytest.raises(UserError, match=r"Row vlad: .* generated with other settings .steps 1, now 2"):
        table1(*call, f"vlad.path={ours}", "vlad.steps=2", "--out", tmp_path / "out")
    with pytest.raises(UserError, match="Row vlad: 1001 steps cannot be taken"):
        table1(*call, f"vlad.path={ours}", "vlad.steps=1001", "--out", tmp_path / "other")
    for folder, file in (("file", "vlad"), ("deep", "vlad/images")):
        (tmp_path / folder / file).parent.mkdir(parents=True)
        (tmp_path / folder / file).write_text("", encoding="utf-8")
        with pytest.raises(UserError, match=f"Row vlad: .*{file} is a file where a folder has to be"):
            table1(*call, f"vlad.path={ours}", "--out", tmp_path / folder)
    drawn = [path.parent.parent.name for path in tmp_path.rglob("images/*.png")]
    assert drawn == ["vlad"]


def test_models_of_another_kind_are_refused(ours: Path, without_layouts: Path, stable_diffusion: Path) -> None:
    for entry, said in (
        (Entry(kind="fine_tuned", path=str(ours)), "was trained with a layout stage"),
        (Entry(kind="vlad", path=str(without_layouts)), "was trained without a layout stage"),
        (
            Entry(kind="textdiffuser", path=str(stable_diffusion), unet=str(stable_diffusion / "unet")),
            "TextDiffuser's UNet cannot be read",
        ),
        (
            Entry(kind="controlnet", path=str(stable_diffusion), controlnet=str(stable_diffusion / "vae")),
            "has weights that do not fit its config, .* give the folder of a ControlNet",
        ),
        (Entry(path=str(stable_diffusion), scheduler="Nonesuch"), "no scheduler 'Nonesuch'"),
    ):
        with pytest.raises(UserError, match=said):
            generator_of(entry)


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        ("FlowMatchEulerDiscreteScheduler", "cannot replace DDIMScheduler"),
        ("VQDiffusionScheduler", "cannot replace DDIMScheduler"),
        ("AutoencoderKL", "diffusers has no scheduler"),
        ("UNet2DConditionModel", "diffusers has no scheduler"),
        ("StableDiffusionPipeline", "diffusers has no scheduler"),
        ("SchedulerMixin", "diffusers has no scheduler"),
    ],
)
def test_a_scheduler_that_does_not_fit_is_refused(scheduler: str, said: str, stable_diffusion: Path) -> None:
    with pytest.raises(UserError, match=said):
        generator_of(Entry(path=str(stable_diffusion), scheduler=scheduler))


def test_truncated_weights_are_refused(stable_diffusion: Path, tmp_path: Path) -> None:
    shutil.copytree(stable_diffusion, tmp_path / "cut")
    weights = tmp_path / "cut" / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"The pipeline in .*: the text_encoder in .* cannot be read"):
        generator_of(Entry(path=str(tmp_path / "cut")))


def test_weights_that_are_not_all_there_are_refused(stable_diffusion: Path, tmp_path: Path) -> None:
    """diffusers would draw with random ones in their place."""
    shutil.copytree(stable_diffusion, tmp_path / "less")
    weights = tmp_path / "less" / "unet" / "diffusion_pytorch_model.safetensors"
    kept = load_file(weights)
    del kept["conv_in.weight"]
    save_file(kept, weights)
    with pytest.raises(UserError, match=r"the unet in .* 1 tensor differs: conv_in.weight missing; copy it again"):
        generator_of(Entry(path=str(tmp_path / "less")))


def test_a_pipeline_of_another_kind_is_refused(
    stable_diffusion: Path, deepfloyd: Path, character_unet: Path, controlnet: Path, tmp_path: Path
) -> None:
    joined = StableDiffusionControlNetPipeline.from_pretrained(
        stable_diffusion, controlnet=ControlNetModel.from_pretrained(controlnet)
    )
    joined.save_pretrained(tmp_path)
    first, second, third = (str(deepfloyd / name) for name in ("IF-I", "IF-II", "upscaler"))
    plain, unet, control = map(str, (stable_diffusion, character_unet, controlnet))
    needs = "needs more than a prompt .image."
    for entry, said in (
        (Entry(path=second), needs),
        (Entry(path=third), needs),
        (Entry(path=str(tmp_path)), needs),
        (
            Entry(kind="deepfloyd", stages=[plain, second, third]),
            "Stage 1 of DeepFloyd IF is of the class IFPipeline, and .* holds StableDiffusionPipeline",
        ),
        (Entry(kind="deepfloyd", stages=[first, third, second]), "Stage 2 of DeepFloyd IF"),
        (Entry(kind="deepfloyd", stages=[first, second, first]), "Stage 3 of DeepFloyd IF"),
        (Entry(kind="textdiffuser", path=third, unet=unet), "needs a StableDiffusionPipeline"),
        (Entry(kind="textdiffuser", path=first, unet=unet), "needs a StableDiffusionPipeline"),
        # More steps than the scheduler has levels of noise.
        (Entry(path=plain, steps=1001), "1001 steps cannot be taken"),
        (Entry(kind="textdiffuser", path=plain, unet=unet, steps=1001), "1001 steps cannot be taken"),
        (Entry(kind="controlnet", path=plain, controlnet=control, steps=1001), "1001 steps cannot be taken"),
        (Entry(kind="deepfloyd", path=str(deepfloyd), steps=1001), "1001 steps cannot be taken"),
    ):
        with pytest.raises(UserError, match=said):
            generator_of(entry)
    assert generator_of(Entry(path=first)).settings()["pipeline"] == "IFPipeline"
