"""The pipeline of a run with another average of its weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vlad.cli.train import AVERAGE
from vlad.config.load import load_config
from vlad.pipeline.vlad_pipeline import VLADPipeline
from vlad.training.build import build_pipeline, new_parts
from vlad.training.posthoc_ema import snapshot_path
from vlad.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
data: {image_pixels: 32}
lvlm: {hidden_size: 32, layers: 1, heads: 2, vision_hidden_size: 32, vision_layers: 1, vision_pixels: 32}
composition: {width: 32, layers: 1, heads: 2, output_width: 32}
autoencoder: {latent_channels: 8, decoder_width: 16, decoder_layers: 1}
layout: {unet: {block_channels: [32], heads: 2}}
refine: {unet: {block_channels: [32], heads: 2}}
"""


def call(*arguments: object) -> None:
    AVERAGE([*map(str, arguments)])


def test_another_average_is_published(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG)
    config, run = load_config(tmp_path / "c.yaml"), tmp_path / "run"
    torch.manual_seed(0)
    parts = new_parts(config)
    build_pipeline(config, parts).save_pretrained(run / "pipeline")
    names = {f"unet.{name}": value.contiguous() for name, value in parts.refine_unet.state_dict().items()}
    names["alignment.temperature"] = torch.ones(())
    doubled = {name: 2 * value for name, value in names.items()}
    (run / "refine" / "averages").mkdir(parents=True)
    (run / "refine" / "snapshots").mkdir()
    save_file(doubled, run / "refine" / "averages" / "half-life-5.safetensors")
    save_file(names, snapshot_path(run / "refine", 10, 0.1))

    call(str(run), "refine", "--average", "half-life-5", "--out", str(tmp_path / "doubled"))
    call(str(run), "refine", "--width", "0.1", "--out", str(tmp_path / "same"))
    for out, factor in (("doubled", 2), ("same", 1)):
        written = VLADPipeline.from_pretrained(tmp_path / out)
        for name, value in parts.refine_unet.state_dict().items():
            torch.testing.assert_close(written.refine_unet.state_dict()[name], factor * value)
        for name, value in parts.text_side.composition.state_dict().items():
            assert torch.equal(written.composition.state_dict()[name], value)

    with pytest.raises(UserError, match=r"no average 'half-life-7' .* there are: half-life-5"):
        call(str(run), "refine", "--average", "half-life-7", "--out", str(tmp_path / "x"))
    with pytest.raises(UserError, match="no snapshots"):
        call(str(run), "layout", "--width", "0.1", "--out", str(tmp_path / "x"))
    call(str(run), "refine", "--width", "0.1", "--out", str(tmp_path / "doubled"))  # its own may be written again
    (tmp_path / "of-the-user").mkdir()
    (tmp_path / "of-the-user" / "notes.txt").write_text("kept")
    for other in (run / "pipeline", tmp_path / "of-the-user"):
        before = sorted(other.iterdir())
        with pytest.raises(UserError, match="holds files that vlad average has not written"):
            call(str(run), "refine", "--width", "0.1", "--out", str(other))
        assert sorted(other.iterdir()) == before
    save_file({"unet.nowhere": torch.ones(2)}, snapshot_path(run / "refine", 10, 0.1))
    with pytest.raises(UserError, match=r"does not fit.*unet\.nowhere"):
        call(str(run), "refine", "--width", "0.1", "--out", str(tmp_path / "x"))
