"""Loading pipelines: damaged and foreign folders raise one sentence."""

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import transformers

from vlad.inference.load_pipeline import load_pipeline
from vlad.pipeline.vlad_pipeline import VLADPipeline
from vlad.utils.errors import UserError
from vlad.utils.hub import hide_progress_bars


@pytest.mark.parametrize(
    ("damaged", "content"),
    [
        ("refine_unet/diffusion_pytorch_model.safetensors", b"cut"),
        ("autoencoder/diffusion_pytorch_model.safetensors", None),
        ("lvlm/model.safetensors", b"garbage" * 9),
        ("tokenizer/tokenizer.json", b"{"),
        ("refine_scheduler/scheduler_config.json", None),
    ],
)
def test_a_damaged_pipeline_raises_one_sentence(
    pipeline_folder: Path, tmp_path: Path, damaged: str, content: bytes | None
) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(pipeline_folder, folder)
    assert (folder / damaged).is_file()
    if content is None:
        (folder / damaged).unlink()
    else:
        (folder / damaged).write_bytes(content)
    with pytest.raises(UserError, match=str(folder)):
        load_pipeline(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{}", "names no class"),
        ("[]", "is damaged"),
        ("null", "is damaged"),
        ("{", "is damaged"),
        (
            '{"_class_name": "VLADPipeline", "tokenizer": []}',
            "does not name lvlm, composition, autoencoder, refine_unet",
        ),
        ('{"_class_name": "StableDiffusionPipeline"}', "holds a StableDiffusionPipeline"),
    ],
)
def test_an_index_of_another_pipeline_raises_one_sentence(tmp_path: Path, index: str, message: str) -> None:
    (tmp_path / "model_index.json").write_text(index, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        load_pipeline(tmp_path)
    assert "None" not in str(caught.value)


def test_what_takes_a_moment_draws_no_bars(
    pipeline_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bars = [library.is_progress_bar_enabled() for library in (diffusers.utils.logging, transformers.utils.logging)]
    assert bars == [True, True]
    pipeline = load_pipeline(pipeline_folder)
    with hide_progress_bars():
        pipeline.save_pretrained(tmp_path / "copy")
    said = capfd.readouterr()
    assert said.out + said.err == ""
    bars = [library.is_progress_bar_enabled() for library in (diffusers.utils.logging, transformers.utils.logging)]
    assert bars == [True, True]  # whoever uses the libraries beside us keeps theirs


def test_a_lora_run_says_how_it_is_drawn_with(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "config.yaml").write_text("name: mine\nbase: runs/tiny\nlora: {rank: 4}\n", encoding="utf-8")
    with pytest.raises(UserError, match=f"runs/tiny --adapter {tmp_path}"):
        load_pipeline(tmp_path)


def test_a_pipeline_of_the_hub_whose_lvlm_is_code_is_not_run(
    pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a download has put into the cache.
    shutil.copytree(pipeline_folder, tmp_path / "some" / "model")
    index = tmp_path / "some" / "model" / "model_index.json"
    named = json.loads(index.read_text())
    index.write_text(json.dumps(named | {"lvlm": ["transformers_modules.own.0123.own", "OwnModel"]}))
    monkeypatch.setattr(VLADPipeline, "download", lambda name, **_: str(tmp_path / name))
    with pytest.raises(UserError, match=r"^The LVLM in .* needs remote code"):
        load_pipeline("hf://some/model")


def test_a_run_that_is_not_there_is_told_with_the_config_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run or pipeline at .*train\.py configs/tiny_edit\.yaml\.$"):
        load_pipeline(tmp_path / "tiny_edit")
    with pytest.raises(UserError, match=r"train\.py configs/tiny\.yaml\.$"):
        load_pipeline(tmp_path / "mine")
