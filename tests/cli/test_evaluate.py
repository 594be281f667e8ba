"""The evaluator's command line, on pipelines of random weights: ours, Stable Diffusion's, and folders."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from vlad.cli.evaluate import EVALUATE
from vlad.config.load import load_config, save_config
from vlad.eval.held_out_words.editing_evaluation import evaluate_editing
from vlad.eval.held_out_words.evaluation_rows import HeldOutSet, stored_metrics
from vlad.eval.held_out_words.spelling_evaluation import PROTOCOL, evaluate_spelling, spelling_summary
from vlad.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., int]


@pytest.fixture
def evaluate() -> Run:
    """Runs the command line in this process; gives the exit code."""
    return lambda *arguments: EVALUATE([*map(str, arguments), "--workers", "1"])


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a sign that says 'HELLO'\na wall that says 'A B'\n", encoding="utf-8")
    return path


def test_a_pipeline_of_ours_is_drawn_read_and_scored(
    evaluate: Run, ours: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert evaluate(ours, "--prompts", prompts, "--out", out, "--images-per-prompt", 2) == 0
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["images"], metrics["prompts"], metrics["partial"]) == (4, 2, False)
    assert set(metrics["protocols"]) == {"mario", "cvtg", "longtext", "glyphcontrol", "textatlas"}
    assert metrics["made"]["steps"] == 1 and metrics["made"]["seed"] == 0
    assert metrics["rests_on"]["OCR engine"].startswith("rapidocr ")
    assert metrics["rests_on"]["prompts"] == f"2 scored of 2 of {prompts}"
    assert "MaskTextSpotter v3" in metrics["rests_on"]["the authors' engines"]
    assert sorted(path.name for path in (out / "images").glob("*.png")) == [
        "0_0.png",
        "0_1.png",
        "1_0.png",
        "1_1.png",
    ]
    assert (out / "report.html").is_file() and (out / "per_image.parquet").is_file()
    assert "Left out: AnyText benchmark reads each line in its polygon" in capsys.readouterr().out
    # Drawn alone after the others, an image is the same.
    before = (out / "images" / "1_0.png").read_bytes()
    (out / "images" / "1_0.png").unlink()
    assert evaluate(ours, "--prompts", prompts, "--out", out, "--images-per-prompt", 2) == 0
    assert (out / "images" / "1_0.png").read_bytes() == before
    with pytest.raises(UserError, match="steps 1, now 2"):
        evaluate(ours, "--prompts", prompts, "--out", out, "--steps", 2)


def test_a_prompt_that_the_model_refuses_makes_the_score_partial(
    evaluate: Run, ours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.txt").write_text(f"a 'B' sign\na sign '{'long ' * 20}'\n", encoding="utf-8")
    assert evaluate(ours, "--protocol", "mario", "--prompts", tmp_path / "p.txt", "--out", tmp_path / "out") == 1
    printed = capsys.readouterr().out
    assert "PARTIAL, 1 of 2 images missing: 1_0: The prompt" in printed


def test_layouts_of_the_prompt_file_are_followed(evaluate: Run, ours: Path, tmp_path: Path) -> None:
    lines = [{"text": "HELLO", "box": [0.1, 0.4, 0.9, 0.6]}]
    record = {"id": "x", "prompt": 'a sign that says "HELLO"', "lines": lines}
    (tmp_path / "p.jsonl").write_text(json.dumps(record), encoding="utf-8")
    assert evaluate(ours, "--protocol", "anytext", "--prompts", tmp_path / "p.jsonl", "--out", tmp_path / "out") == 0
    layout = json.loads((tmp_path / "out" / "images" / "x_0.json").read_text(encoding="utf-8"))
    assert layout["lines"][0]["polygon"][0] == [0.1, 0.4]
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["made"]["layouts"] == "given" and list(metrics["protocols"]) == ["anytext"]


def test_a_pipeline_of_others_is_drawn_from_its_folder(
    evaluate: Run, stable_diffusion: Path, prompts: Path, tmp_path: Path
) -> None:
    def draw(out: str, *more: object) -> list[bytes]:
        size = ("--pixels", 16, "--steps", 2)
        assert evaluate(stable_diffusion, "--prompts", prompts, "--out", tmp_path / out, *size, *more) == 0
        return [Image.open(tmp_path / out / "images" / f"{n}_0.png").tobytes() for n in range(2)]

    first = draw("a")
    assert draw("b") == first
    assert draw("c", "--seed", 1) != first
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["made"]["pipeline"] == "StableDiffusionPipeline"
    assert metrics["sizes"] == ["16 x 16"]
    with pytest.raises(UserError, match="--layout-scale and --no-refit are for a VLADPipeline"):
        evaluate(stable_diffusion, "--prompts", prompts, "--no-refit", "--out", tmp_path / "e")
    with pytest.raises(UserError, match="takes no layouts"):
        evaluate(stable_diffusion, "--prompts", prompts, "--use-layouts", "--out", tmp_path / "d")


def test_options_that_would_change_nothing_are_refused(
    evaluate: Run, ours: Path, stable_diffusion: Path, prompts: Path, tmp_path: Path
) -> None:
    entry = tmp_path / "row.yaml"
    entry.write_text(f"kind: images\npath: {tmp_path}\n", encoding="utf-8")
    for call, said in (
        ((ours, "--steps", 5), "--steps does nothing on held-out words; it goes with --prompts FILE"),
        ((ours, "--out", tmp_path), "--out does nothing on held-out words"),
        ((tmp_path,), r"is no run, whose held-out words are known; name prompts: --prompts FILE"),
        ((entry,), r"row\.yaml is no run"),
        ((ours, "--prompts", prompts, "--ways", "raw"), "--modes does nothing with --prompts"),
        ((ours, "--prompts", prompts, "--editing"), "--editing does nothing with --prompts"),
        ((ours, "--prompts", prompts, "--alignment", "--seed", 3), "--seed does nothing with --alignment"),
        ((tmp_path, "--prompts", prompts, "--steps", 5), "made already, which --steps cannot change"),
        ((entry, "--prompts", prompts, "--text-scale", 5), r"--text-scale is not for .*; write text_scale=5\.0"),
        ((entry, "--prompts", prompts, "--no-refit"), r"--no-refit is not for .*; leave it out"),
    ):
        with pytest.raises(UserError, match=said):
            evaluate(*call)
    # Nobody has asked for layouts here: the protocol needs them.
    lines = [{"text": "HELLO", "box": [0.1, 0.4, 0.9, 0.6]}]
    record = {"id": "x", "prompt": 'a sign that says "HELLO"', "lines": lines}
    (tmp_path / "p.jsonl").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(UserError, match=r"takes no layouts.* and the protocol anytext reads lines in their polygons"):
        evaluate(stable_diffusion, "--prompts", tmp_path / "p.jsonl", "--protocol", "anytext", "--out", tmp_path / "o")


def test_a_folder_with_a_hole_is_scored_with_exit_code_1(evaluate: Run, prompts: Path, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "made" / "0.png")
    assert evaluate(tmp_path / "made", "--prompts", prompts, "--out", tmp_path / "out") == 1
    assert json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))["missing"] == ["1_0"]


def test_wrong_calls_are_told(
    evaluate: Run, ours: Path, stable_diffusion: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="--protocol mario needs the benchmark's prompts: --prompts FILE"):
        evaluate(ours, "--protocol", "mario")
    with pytest.raises(UserError, match="There is nothing at"):
        evaluate(tmp_path / "none", "--prompts", prompts, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="--steps must be a whole number of at least 1"):
        evaluate(ours, "--prompts", prompts, "--steps", 0)
    with pytest.raises(UserError, match="There is no OCR engine 'rapidorc'"):
        evaluate(ours, "--prompts", prompts, "--engine", "rapidorc")
    with pytest.raises(UserError, match="the prompt file has none"):
        evaluate(ours, "--prompts", prompts, "--protocol", "anytext")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model_index.json").write_text('{"_class_name": "NoSuchPipeline"}', encoding="utf-8")
    with pytest.raises(UserError, match="cannot be read"):
        evaluate(tmp_path / "broken", "--prompts", prompts, "--out", tmp_path / "out")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"pip install 'vlad-diffusion\[eval\]'"):
        evaluate(ours, "--prompts", prompts)


def test_settings_behind_the_prompt_files_are_an_entry_s_and_no_other_target_has_any(
    evaluate: Run, prompts: Path, tmp_path: Path
) -> None:
    entry = tmp_path / "row.yaml"
    entry.write_text(f"kind: images\npath: {tmp_path / 'none'}\n", encoding="utf-8")
    with pytest.raises(UserError, match=f"there is no folder of images at {tmp_path / 'other'}"):
        evaluate(entry, "--prompts", prompts, f"path={tmp_path / 'other'}", "--out", tmp_path / "out")
    for behind in (("--prompts", prompts, "steps=3"), ("steps=3", "--prompts", prompts), ("steps=3",)):
        with pytest.raises(UserError, match=r"steps=3 changes an entry of configs/eval, and .* is none"):
            evaluate(tmp_path, *behind)


def test_a_run_s_words_are_scored_once_and_anew_for_another_count(
    ours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(ours / "pipeline", run / "pipeline")
    save_config(load_config(ROOT / "configs" / "tiny.yaml"), run / "config.yaml")
    # A model that does not edit is refused before anything is begun.
    with pytest.raises(UserError, match=r"not trained to edit images; train one with refine\.editing_share"):
        evaluate_editing(run, 3, "rapidocr")
    assert "scoring" not in capsys.readouterr().err
    assert not (run / "evaluation").exists()
    first = json.loads(json.dumps(evaluate_spelling(run, 3)))
    assert set(first["modes"]) == {"refit", "true layout", "raw"}
    images = run / "evaluation" / "refit"
    drawn = (images / "0001.png").stat().st_mtime_ns
    assert evaluate_spelling(run, 3) == first  # what is stored, nothing drawn again
    assert (images / "0001.png").stat().st_mtime_ns == drawn
    capsys.readouterr()
    assert evaluate_spelling(run, 2)["words"] == 2
    assert "The figures of 3 words by rapidocr" in capsys.readouterr().out
    assert [path.name for path in sorted(images.iterdir())] == ["0000.png", "0001.png"]
    # One way alone: the images of the others, of an evaluation that gave way, go with its figures.
    alone = evaluate_spelling(run, 1, modes=["refit"])
    assert set(alone["modes"]) == {"refit"} and not (run / "evaluation" / "raw").exists()
    drawn = (images / "0000.png").stat().st_mtime_ns
    assert set(evaluate_spelling(run, 1, modes=["refit"])["modes"]) == {"refit"}
    # The others join it, and it is not drawn again; nor is anything by a call for less.
    assert list(evaluate_spelling(run, 1)["modes"]) == ["refit", "true layout", "raw"]
    assert set(evaluate_spelling(run, 1, modes=["raw"])["modes"]) == {"refit", "true layout", "raw"}
    assert (images / "0000.png").stat().st_mtime_ns == drawn
    assert (run / "evaluation" / "raw" / "0000.png").is_file() and (run / "evaluation" / "raw.png").is_file()
    # A run that was trained on: what is stored is of other weights.
    weights = next((run / "pipeline" / "refine_unet").glob("*.safetensors"))
    stored = load_file(weights)
    save_file({name: value + 0.01 for name, value in stored.items()}, weights)
    evaluate_spelling(run, 1, modes=["refit"])
    assert "of other weights" in capsys.readouterr().out
    assert "words   0.0% (0.0% to 56.1%)" in spelling_summary(first, run)  # Wilson's interval of 0 of 3
    for damaged in ('{"wor', "[]", '{"modes": []}'):
        (tmp_path / "metrics.json").write_text(damaged, encoding="utf-8")
        assert stored_metrics(tmp_path / "metrics.json", HeldOutSet("words", 3, PROTOCOL), "rapidocr", "") == {}
    assert capsys.readouterr().out.count("is damaged; all modes are scored again") == 3
