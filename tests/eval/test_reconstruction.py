"""Round trips of autoencoders: every kind of target, what a faithful one keeps, and what noise takes from it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file

from tests.support.pipeline_fixtures import CONFIG
from tests.support.tool_fixtures import Call
from vlad.cli.evaluate import RECONSTRUCT
from vlad.config.load import load_config
from vlad.data.options import PosterOptions
from vlad.data.posters.render import held_out_posters, render_poster
from vlad.data.shards.writer import write_shards
from vlad.eval.reconstruction import reconstruct
from vlad.models.autoencoder import PatchAutoencoder, build_autoencoder


def kl(folder: Path) -> None:
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=2, **kinds).save_pretrained(folder)


def tiny(folder: Path) -> None:
    sizes = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    AutoencoderTiny(**sizes, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)).save_pretrained(folder)


def dc(folder: Path) -> None:
    half = {"block_out_channels": (8, 8), "layers_per_block": (1, 1), "block_types": "ResBlock"}
    both = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in half.items()}
    multiscales = {"encoder_qkv_multiscales": ((), ()), "decoder_qkv_multiscales": ((), ())}
    AutoencoderDC(latent_channels=4, attention_head_dim=4, **both, **multiscales).save_pretrained(folder)


def ours(folder: Path) -> None:
    build_autoencoder(load_options(folder)).save_pretrained(folder)


def unfinished_run(folder: Path) -> None:
    """A run whose autoencoder is trained and whose UNets are not."""
    autoencoder = build_autoencoder(load_options(folder))
    (folder / "autoencoder").mkdir()
    weights = {f"autoencoder.{name}": value.contiguous() for name, value in autoencoder.state_dict().items()}
    save_file(weights, folder / "autoencoder" / "trained.safetensors")


def load_options(folder: Path):  # type: ignore[no-untyped-def]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
    return load_config(folder / "config.yaml").autoencoder


@pytest.mark.parametrize("build", [kl, tiny, dc, ours, unfinished_run])
def test_any_autoencoder_is_measured(build: Callable[[Path], None], tmp_path: Path, call_verb: Call) -> None:
    build(tmp_path / "target")
    out = tmp_path / "out"

    code, printed, said = call_verb(
        RECONSTRUCT, tmp_path / "target", "--count", 1, "--out", out, "--size", 64, "--engine", "rapidocr"
    )

    assert code == 0, said
    figures = json.loads((out / "reconstruction.json").read_text(encoding="utf-8"))
    assert [level["noise"] for level in figures["levels"]] == [0, 0.1, 0.2]
    assert (figures["images"], figures["size_pixels"]) == (1, 64)
    assert all(level["still_read"] <= figures["read_on_truth"] for level in figures["levels"])
    assert f"{figures['autoencoder']} of {tmp_path / 'target'}: 1 images of 64 x 64" in printed
    with Image.open(out / "reconstruction.png") as grid:
        assert grid.width > 4 * 128  # the truth and three round trips, twice as large


def test_what_a_faithful_autoencoder_keeps_and_noise_takes() -> None:
    samples = held_out_posters(PosterOptions(min_letter_height=0.1, max_lines=2, density=0.0), 3)
    autoencoder = PatchAutoencoder(patch_pixels=4, latent_channels=48, decoder_width=8, decoder_layers=1)
    images = np.stack([sample.image for sample in samples])
    autoencoder.fit(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1)

    result, restored = reconstruct(autoencoder, samples, "rapidocr")

    clean, slight, strong = result.levels
    assert clean.psnr > 40 > slight.psnr > strong.psnr
    assert clean.still_read == result.read_on_truth > 0  # all 48 components of a patch are kept
    assert result.lines == sum(len(sample.layout.lines) for sample in samples)
    assert sum(band.lines for band in result.heights.values()) == result.lines
    assert sum(clean.still_read_by_height.values()) == clean.still_read
    assert np.abs(restored[0][0].astype(int) - samples[0].image).mean() < 1
    assert result.latent_shape == (48, 32, 32) and 0.4 < result.latent_deviation < 0.6


def test_own_images_are_read_from_shards(tmp_path: Path, call_verb: Call) -> None:
    ours(tmp_path / "ours")
    (tmp_path / "shards").mkdir()
    write_shards((render_poster(PosterOptions(size_pixels=64), index) for index in range(2)), tmp_path / "shards")
    arguments = (tmp_path / "ours", "--shards", tmp_path / "shards", "--size", 64, "--out", tmp_path / "out")

    assert call_verb(RECONSTRUCT, *arguments)[0] == 0

    assert json.loads((tmp_path / "out" / "reconstruction.json").read_text(encoding="utf-8"))["images"] == 2


def test_targets_that_cannot_be_are_refused(tmp_path: Path, call_verb: Call) -> None:
    kl(tmp_path / "damaged")
    (tmp_path / "damaged" / "diffusion_pytorch_model.safetensors").write_bytes(b"nothing")
    UNet2DConditionModel(
        block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), norm_num_groups=2
    ).save_pretrained(tmp_path / "unet")
    load_options(tmp_path / "begun")
    ours(tmp_path / "ours")
    for arguments, message in (
        (["none"], "There is nothing at"),
        (["damaged"], "cannot be read"),
        (["unet"], "no autoencoder that diffusers knows (UNet2DConditionModel)"),
        (["begun"], "is not finished"),
        (["ours", "--size", "70"], "divides evenly"),
        (["ours", "--engine", "rapidorc"], "Did you mean"),
        (["ours", "--shards", "none"], "--shards"),
    ):
        target, *options = arguments
        code, _, said = call_verb(RECONSTRUCT, tmp_path / target, "--out", tmp_path / "out", *options)
        assert (code, message in said) == (2, True), said
