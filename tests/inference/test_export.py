"""Export: a pipeline folder with variants, a model card and examples; upload to the hub."""

import json
import shutil
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from vlad.inference.export import export_run, push
from vlad.inference.load_pipeline import load_pipeline
from vlad.pipeline.vlad_pipeline import VLADPipeline
from vlad.reports.starts import record_start
from vlad.utils.errors import UserError

PROMPT = 'a blue sign that says "HOUSE"'


def test_an_export_holds_variants_a_card_and_examples(pipeline_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(pipeline_folder, run / "pipeline")
    shutil.copy(pipeline_folder.parent / "config.yaml", run)
    (run / "evaluation").mkdir()
    score = {"word_accuracy": 0.925, "letter_accuracy": 0.98}
    metrics = {"words": 200, "engine": "an engine 1.0", "protocol": "exact match", "modes": {"refit": score}}
    (run / "evaluation" / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    out = tmp_path / "out"
    card = export_run(run, out, ["fp16", "bf16"], "apache-2.0").read_text(encoding="utf-8")
    for text in (
        "license: apache-2.0",
        "# base",
        "refine_unet | UNet2DConditionModel",
        "from scratch",
        "data/",
        "92.5%",
    ):
        assert text in card
    assert "200 held-out words, an engine 1.0" in card
    assert "![](examples/0.png)" in card
    assert (out / "examples" / "0.png").is_file()
    assert not list(out.rglob("*.bin"))
    plain = VLADPipeline.from_pretrained(out)
    assert plain(PROMPT, 3).images[0].tobytes() == load_pipeline(run)(PROMPT, 3).images[0].tobytes()
    for variant, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        half = VLADPipeline.from_pretrained(out, variant=variant, dtype=dtype)
        for part in ("lvlm", "composition", "refine_unet"):
            assert getattr(half, part).dtype == dtype
        UNet2DConditionModel.from_pretrained(out, subfolder="refine_unet", variant=variant)
        (file,) = (out / "refine_unet").glob(f"*.{variant}.safetensors")
        assert {value.dtype for value in load_file(file).values()} == {dtype}
    # Another export into the same folder replaces this one; other folders, and files of others, are left alone.
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    export_run(run, out, ["fp16"], examples=[])
    assert not list(out.rglob("*.bf16.*")) and not (out / "examples").exists()
    assert list(out.rglob("*.fp16.*")) and (out / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert not list(out.glob(".export-*"))
    kept = {path: path.read_bytes() for path in (pipeline_folder / "refine_unet").iterdir()}
    with pytest.raises(UserError, match="holds files that no export has made"):
        export_run(run, pipeline_folder)
    assert all(path.read_bytes() == content for path, content in kept.items())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear", encoding="utf-8")
    with pytest.raises(UserError, match="holds files that no export has made; name an empty"):
        export_run(run, tmp_path / "mine")
    with pytest.raises(UserError, match="Did you mean 'fp16'"):
        export_run(run, out, ["bp16"])
    for itself in (run, run / "pipeline"):
        with pytest.raises(UserError, match="is the folder to export; name"):
            export_run(run, itself)


def test_an_export_in_half_precision_is_half_as_large_and_loads_as_any_other(
    pipeline_folder: Path, tmp_path: Path
) -> None:
    sizes = []
    for precision in ("float32", "float16"):
        export_run(pipeline_folder, tmp_path / precision, examples=[], precision=precision)
        sizes.append(sum(path.stat().st_size for path in (tmp_path / precision).rglob("*.safetensors")))
    assert sizes[1] < 0.6 * sizes[0]
    assert {v.dtype for v in load_file(tmp_path / "float16" / "lvlm" / "model.safetensors").values()} == {torch.float16}
    whole, half = (load_pipeline(tmp_path / precision) for precision in ("float32", "float16"))
    for pipeline in (half, VLADPipeline.from_pretrained(tmp_path / "float16")):
        for part in ("lvlm", "composition", "autoencoder", "layout_unet", "refine_unet"):
            assert {p.dtype for p in getattr(pipeline, part).parameters()} == {torch.float32}
    one, two = (np.asarray(pipeline(PROMPT, 3).images[0], dtype=float) for pipeline in (whole, half))
    assert np.abs(one - two).mean() < 3
    with pytest.raises(UserError, match="There is no dtype 'half'"):
        export_run(pipeline_folder, tmp_path / "other", precision="half")


def test_the_card_says_how_to_train_the_model_again(pipeline_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(pipeline_folder, run / "pipeline")
    shutil.copy(pipeline_folder.parent / "config.yaml", run)
    record_start(run, {"revision": "abc", "command": "python train.py configs/x.yaml", "device": "CPU, 2 threads"})
    (run / "layout").mkdir()
    (run / "layout" / "metrics.json").write_text('{"seconds": 180}', encoding="utf-8")
    card = export_run(run, tmp_path / "out", examples=[]).read_text(encoding="utf-8")
    assert "3 minutes on: CPU, 2 threads; unknown; commit `abc`:\n\n    python train.py configs/x.yaml" in card


def test_the_card_of_a_folder_without_its_run(pipeline_folder: Path, tmp_path: Path) -> None:
    card = export_run(pipeline_folder, tmp_path, examples=['a sign that says "EXTRAORDINARY EXTRAORDINARY"']).read_text(
        encoding="utf-8"
    )
    for text in ("license: unknown", "Not recorded", "Not evaluated", "No licence has been given"):
        assert text in card
    assert "Examples" not in card


@pytest.mark.parametrize(
    "error",
    [
        OSError("no way there"),
        httpx.ConnectError("no way there"),
        RuntimeError("no way there"),
        KeyError("no way there"),
    ],
)
def test_a_refused_upload_raises_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refuse)
    with pytest.raises(UserError, match=r"The upload of .* to me/mine failed \(.*no way there"):
        push(tmp_path, "me/mine")


def test_push_uploads_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda self, name, **options: done.append((name, options)))
    monkeypatch.setattr(
        "huggingface_hub.HfApi.upload_folder", lambda self, **options: done.append(options["folder_path"])
    )
    assert push(tmp_path, "me/mine") == "https://huggingface.co/me/mine"
    assert done == [("me/mine", {"private": True, "exist_ok": True}), tmp_path]
