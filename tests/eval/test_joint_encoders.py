"""Joint encoders: a run's own towers, and the alignment command on them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vlad.cli.evaluate import EVALUATE
from vlad.config.load import load_config, save_config
from vlad.config.schema import Config
from vlad.eval.alignment.joint_encoders import RunEncoder, joint_encoder
from vlad.eval.open_benchmark.write_benchmark import write_benchmark
from vlad.eval.options import OpenBenchmarkOptions
from vlad.models.text_encoder.prompt import parse_prompt
from vlad.pipeline.folders import ALIGNMENT_FILE
from vlad.training.build import build_pipeline, new_parts
from vlad.training.parts import Parts
from vlad.training.publish import publish_text_side
from vlad.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "data.image_pixels=32 lvlm.hidden_size=32 lvlm.layers=1 lvlm.heads=2 lvlm.vision_pixels=32 composition.width=32"
    " composition.layers=1 composition.heads=2 composition.output_width=32 autoencoder.latent_channels=8"
    " autoencoder.decoder_width=16 layout.kind=none refine.unet.block_channels=[32]"
).split()
TEXTS = ['a red sign that says "OAK"', "two blue rings"]


def make_run(folder: Path, *overrides: str) -> tuple[Config, Parts]:
    """A run directory of random weights, whole or of a text side alone."""
    torch.manual_seed(0)
    config = load_config(ROOT / "configs" / "tiny.yaml", [*TINY, f"runs={folder}", "name=run", *overrides])
    parts = new_parts(config)
    config.directory.mkdir(parents=True)
    save_config(config, config.directory / "config.yaml")
    if config.align_stage == "only":
        publish_text_side(parts, config.directory / "text")
    else:
        build_pipeline(config, parts).save_pretrained(config.directory / "pipeline")
        save_file(parts.alignment.state_dict(), config.directory / "pipeline" / ALIGNMENT_FILE)
    return config, parts


@pytest.mark.parametrize("overrides", [[], ["align_stage=only", "losses.image_pooling=attention"]])
def test_texts_and_images_are_embedded_as_in_the_loss(overrides: list[str], tmp_path: Path) -> None:
    config, parts = make_run(tmp_path, *overrides)
    parts.text_side.eval()
    encoder = joint_encoder(config.directory)
    assert encoder.name == "run"
    images = np.random.default_rng(0).integers(256, size=(2, 32, 32, 3)).astype(np.uint8)
    with torch.no_grad():
        t = parts.alignment.t(parts.text_side([parse_prompt(text) for text in TEXTS]))
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
        v = parts.alignment.v(parts.text_side.lvlm.image_features(pixels))
        texts, embedded = parts.alignment.contrast.embed_texts(t), parts.alignment.contrast.embed_images(v)
    torch.testing.assert_close(encoder.embed_texts(TEXTS), texts)
    torch.testing.assert_close(encoder.embed_images(list(images)), embedded)
    # A larger image, and a wide one, are scaled.
    larger = images[0].repeat(2, axis=0).repeat(2, axis=1)
    assert encoder.embed_images([larger, larger[:, :80]]).shape == embedded.shape


def test_alignment_of_a_run_reports_missing_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, _ = make_run(tmp_path)
    write_benchmark(OpenBenchmarkOptions(count=2, size_pixels=64), tmp_path / "benchmark")

    def run(*arguments: object) -> int:
        return EVALUATE([*map(str, arguments)])

    prompts = ("--alignment", "--prompts", tmp_path / "benchmark" / "alignment.jsonl")
    assert run(config.directory, *prompts) == 0
    out = config.directory / "evaluation" / "alignment"
    found = json.loads((out / "alignment.json").read_text(encoding="utf-8"))
    scores = {score["name"]: score for score in found["scores"]}
    assert scores["relations, order"]["bag_of_words"] == scores["relations, order"]["chance"] == 0.5
    assert scores["counting, all"]["prompts"] == 2 and scores["counting, all"]["chance"] == 1 / 5
    assert (out / "alignment.md").read_text(encoding="utf-8") in capsys.readouterr().out
    # Images of a system in the references' place; one of them is missing.
    images = tmp_path / "drawn"
    (tmp_path / "benchmark" / "pictures").rename(images)
    (images / "relations-0001.png").unlink()
    (images / "counting-0000.png").write_bytes(b"no image")
    assert run(config.directory, *prompts, "--images", images, "--out", tmp_path / "out") == 1
    told = capsys.readouterr().out
    assert "PARTIAL, 1 of 8 prompts missing: relations-0001\n" in told and "run on 6 images of" in told
    assert f"PARTIAL, 1 of 8 prompts unreadable: {images / 'counting-0000.png'}\n" in told
    for path in images.glob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match="None of the images can be read"):
        run(config.directory, *prompts, "--images", images)
    with pytest.raises(UserError, match=r"reference images are not there; name a folder with --images"):
        run(config.directory, *prompts)
    with pytest.raises(UserError, match=r"There is no folder of images at nowhere"):
        run(config.directory, *prompts, "--images", "nowhere")
    with pytest.raises(UserError, match=r"takes one file of --prompts"):
        run(config.directory, "--alignment")
    with pytest.raises(UserError, match=r"holds no texts to compare images with"):
        run(config.directory, "--alignment", "--prompts", tmp_path / "benchmark" / "prompts.jsonl")
    with pytest.raises(UserError, match=r"--images goes with --alignment"):
        run(config.directory, "--images", images)


def test_runs_without_towers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no encoder of texts and images at"):
        joint_encoder(tmp_path)
    for content in ("{", "3", "\x00"):
        (tmp_path / "config.json").write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=r"config\.json is no config of a model .*copy the folder here again\.$"):
            joint_encoder(tmp_path)
    (tmp_path / "config.json").unlink()
    config, _ = make_run(tmp_path)
    (config.directory / "pipeline" / ALIGNMENT_FILE).unlink()
    with pytest.raises(UserError, match=r"comes without its alignment heads"):
        RunEncoder(config.directory)
    (tmp_path / "off").mkdir()
    save_config(
        load_config(ROOT / "configs" / "tiny.yaml", ["losses.align_weight=0"]), tmp_path / "off" / "config.yaml"
    )
    with pytest.raises(UserError, match=r"losses.align_weight: 0"):
        RunEncoder(tmp_path / "off")
    adapter = load_config(ROOT / "configs" / "lora.yaml", ["base=runs/tiny"])
    (tmp_path / "adapter").mkdir()
    save_config(adapter, tmp_path / "adapter" / "config.yaml")
    with pytest.raises(UserError, match=r"is an adapter without towers of its own; name its base, runs/tiny"):
        RunEncoder(tmp_path / "adapter")
