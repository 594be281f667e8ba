"""Loading Stable Diffusion: its configs are used; other models, and parts that do not fit, are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from vlad.diffusion.noise_schedule import build_scheduler, noise_options_from
from vlad.diffusion.options import NoiseOptions
from vlad.models.options import StableDiffusionOptions
from vlad.models.stable_diffusion import load_stable_diffusion
from vlad.models.text_encoder.base_encoders import BaseTextEncoders
from vlad.models.text_encoder.prompt import parse_prompt
from vlad.profiling.stand_in import StandInOptions, save_stand_in
from vlad.utils.errors import UserError

WEIGHTS = "diffusion_pytorch_model.safetensors"


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


@pytest.fixture
def folder(stand_ins: Path, tmp_path: Path) -> Path:
    """A stand-in for SD 1.5 that a test may damage."""
    return Path(shutil.copytree(stand_ins / "sd15", tmp_path / "model"))


def refusal(path: Path | str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_stable_diffusion(StableDiffusionOptions(str(path), **options))
    said = str(caught.value)
    assert said.startswith("stable_diffusion") and said.endswith(".") and "\n" not in said
    return said


def test_prediction_and_schedule_are_the_models_own(stand_ins: Path) -> None:
    mine = NoiseOptions(prediction="sample", timestep_bias="high", min_snr_gamma=5.0)
    for kind, prediction in (("sd15", "epsilon"), ("sd21", "v_prediction"), ("sdxl", "epsilon")):
        found = load_stable_diffusion(StableDiffusionOptions(str(stand_ins / kind)))
        noise = noise_options_from(found.scheduler, mine)
        assert (noise.prediction, noise.beta_schedule, noise.train_timesteps) == (prediction, "scaled_linear", 1000)
        assert (noise.timestep_bias, noise.min_snr_gamma) == ("high", 5.0)
        # alpha_bar of Stable Diffusion's last step (Rombach et al. 2022, its 0.00085 .. 0.012 on the square root)
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        wanted = (1 - betas).cumprod(0).float()
        torch.testing.assert_close(build_scheduler(noise).alphas_cumprod, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"trained_betas": [0.1, 0.2]}, "trained_betas"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule sigmoid"),
        ({"prediction_type": "flow_prediction"}, "prediction_type flow_prediction"),
    ],
)
def test_an_unknown_noise_schedule_is_refused(stand_ins: Path, changes: dict[str, Any], named: str) -> None:
    found = load_stable_diffusion(StableDiffusionOptions(str(stand_ins / "sd15")))
    with pytest.raises(UserError, match=named):
        noise_options_from({**found.scheduler, **changes}, NoiseOptions())


def test_the_path_is_required() -> None:
    with pytest.raises(UserError, match="name a Stable Diffusion model"):
        StableDiffusionOptions()


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin"])
def test_a_pickle_is_refused_before_it_is_loaded(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04 not to be read")
    assert "is a pickle, which can run code" in refusal(tmp_path / name)


def test_a_folder_of_pickles_is_refused(folder: Path) -> None:
    weights = load_file(folder / "unet" / WEIGHTS)
    (folder / "unet" / WEIGHTS).unlink()
    torch.save(weights, folder / "unet" / "diffusion_pytorch_model.bin")
    assert "the unet of" in refusal(folder)


def test_an_incomplete_pipeline_is_refused_with_what_is_missing(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "model_index.json, unet/, vae/, scheduler/ missing" in refusal(tmp_path / "empty")
    shutil.rmtree(folder / "vae")
    assert "is a StableDiffusionPipeline without vae;" in refusal(folder)
    (folder / "model_index.json").write_text("{", encoding="utf-8")
    assert "model_index.json is damaged" in refusal(folder)
    (folder / "model_index.json").unlink()
    assert "model_index.json, vae/ missing" in refusal(folder)
    assert "neither a folder in diffusers' format nor" in refusal(folder / "unet" / "config.json")


@pytest.mark.parametrize("transformer", ["SD3Transformer2DModel", "FluxTransformer2DModel"])
def test_a_transformer_denoiser_is_refused(tmp_path: Path, transformer: str) -> None:
    index = {
        "_class_name": "APipeline",
        "transformer": ["diffusers", transformer],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    assert f"whose denoiser is a transformer ({transformer}), no UNet" in refusal(tmp_path)


def test_another_class_of_unet_autoencoder_or_text_encoder_is_refused(folder: Path) -> None:
    original = (folder / "model_index.json").read_text(encoding="utf-8")
    for part, named in (
        ("unet", "the unet of .* is a UNet3DConditionModel"),
        ("vae", "the vae of .* is a UNet3DConditionModel"),
        ("text_encoder", "set stable_diffusion.own_text=false"),
    ):
        edit_json(folder / "model_index.json", **{part: ["diffusers", "UNet3DConditionModel"]})
        with pytest.raises(UserError, match=named):
            load_stable_diffusion(StableDiffusionOptions(str(folder)))
        (folder / "model_index.json").write_text(original, encoding="utf-8")
    edit_json(folder / "model_index.json", text_encoder=["transformers", "T5EncoderModel"])
    without = load_stable_diffusion(StableDiffusionOptions(str(folder), own_text=False))
    assert without.encoders == () and without.base_text is None


def test_weights_that_do_not_fit_their_config_are_listed_with_their_shapes(folder: Path) -> None:
    weights = load_file(folder / "unet" / WEIGHTS)
    spoilt = {name: value for name, value in weights.items() if name != "conv_out.bias"}
    spoilt["conv_in.weight"] = torch.zeros(32, 9, 3, 3)
    spoilt["of_another"] = torch.zeros(1)
    save_file(spoilt, folder / "unet" / WEIGHTS)
    said = refusal(folder)
    assert "3 tensors differ: conv_in.weight 32x9x3x3 where the config says 32x4x3x3, conv_out.bias missing," in said
    assert "of_another not in the model" in said


def test_parts_that_do_not_fit_each_other_are_refused_with_their_sizes(folder: Path, tmp_path: Path) -> None:
    save_stand_in("sd15", tmp_path / "other", StandInOptions(latent_channels=6))
    shutil.rmtree(folder / "vae")
    shutil.copytree(tmp_path / "other" / "vae", folder / "vae")
    assert "unet conv_in takes 4 channels, the vae makes 6; unet conv_out makes 4" in refusal(folder)
    shutil.rmtree(folder / "unet")
    save_stand_in("sdxl", tmp_path / "xl", StandInOptions(latent_channels=6))
    shutil.copytree(tmp_path / "xl" / "unet", folder / "unet")
    assert "unet cross_attention_dim is 64, the text encoders give 32" in refusal(folder)


def test_a_tokenizer_of_another_text_encoder_is_refused(folder: Path) -> None:
    encoder = load_file(folder / "text_encoder" / "model.safetensors")
    name = next(name for name in encoder if name.endswith("token_embedding.weight"))
    tokens = encoder[name].shape[0]
    encoder[name] = encoder[name][:-10].contiguous()
    save_file(encoder, folder / "text_encoder" / "model.safetensors", {"format": "pt"})
    edit_json(folder / "text_encoder" / "config.json", vocab_size=tokens - 10)
    assert f"the tokenizer knows {tokens} tokens, its text encoder {tokens - 10}" in refusal(folder)


def test_the_context_length_is_the_encoder_s(folder: Path) -> None:
    # A tokenizer whose folder leaves its length out says 10^30.
    told = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text(encoding="utf-8"))
    told.pop("model_max_length")
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(told), encoding="utf-8")
    found = load_stable_diffusion(StableDiffusionOptions(str(folder)))
    assert found.base_text is not None and found.tokenizers[0].model_max_length > 10**6
    own = BaseTextEncoders(found.encoders, found.tokenizers, found.base_text)
    assert own([parse_prompt("a sign")]).tokens.shape == (1, 77, 32)


def test_a_run_of_vlad_is_refused_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: mine", encoding="utf-8")
    assert "is a run of vlad; train on it with configs/lora.yaml base=" in refusal(tmp_path)
    index = {"_class_name": "VLADPipeline", "refine_unet": ["diffusers", "UNet2DConditionModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    assert "is a pipeline of vlad; train on it" in refusal(tmp_path)


def test_a_missing_path_is_refused(tmp_path: Path) -> None:
    assert "is neither a local folder nor reachable on the hub" in refusal(tmp_path / "nowhere")


# --- one file --------------------------------------------------------------------------------------------------------


def test_a_single_file_needs_a_folder_for_its_options(tmp_path: Path, stand_ins: Path) -> None:
    assert "there is no file" in refusal(tmp_path / "model.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert "name a folder or hub id in diffusers' format of the same kind" in refusal(tmp_path / "model.safetensors")
    said = refusal(tmp_path / "model.safetensors", config=str(stand_ins / "sd15"))
    assert "the file of" in said and "cannot be read" in said


def as_one_file(pipeline: Any) -> dict[str, torch.Tensor]:
    """The weights of a stand-in for SD 1.5 under the names of the original code base, as one file holds them.

    Every block of its UNet is numbered in the order in which it runs; a downsampler is a block of its own, an upsampler
    the last part of one.
    """
    resnet = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0"}
    resnet |= {"conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
    heads = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_out": "out.2"}
    heads |= {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0"}
    attention = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "group_norm": "norm"}
    named = {}
    for name, value in pipeline.unet.state_dict().items():
        words = name.split(".")
        layer, end = ".".join(words[:-1]), words[-1]
        if layer in heads:
            new = heads[layer]
        elif words[0] == "mid_block":
            place = 1 if words[1] == "attentions" else 2 * int(words[2])
            new = f"middle_block.{place}." + (resnet[words[3]] if words[1] == "resnets" else ".".join(words[3:-1]))
        else:
            block, kind, number, rest = int(words[1]), words[2], int(words[3]), ".".join(words[4:-1])
            down = words[0] == "down_blocks"
            if kind == "downsamplers":
                new = f"input_blocks.{2 * block + 2}.0.op"
            elif kind == "upsamplers":
                has_attention = hasattr(pipeline.unet.up_blocks[block], "attentions")
                new = f"output_blocks.{2 * block + 1}.{2 if has_attention else 1}.conv"
            else:
                place = f"input_blocks.{2 * block + 1 + number}" if down else f"output_blocks.{2 * block + number}"
                new = f"{place}.0.{resnet[rest]}" if kind == "resnets" else f"{place}.1.{rest}"
        named[f"model.diffusion_model.{new}.{end}"] = value
    levels = len(pipeline.vae.config.block_out_channels)
    for name, value in pipeline.vae.state_dict().items():
        words = name.split(".")
        new = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        if words[1] == "mid_block":
            rest = ".".join(words[4:-1])
            new = f"{words[0]}.mid." + (
                f"block_{int(words[3]) + 1}.{rest}" if words[2] == "resnets" else f"attn_1.{attention[rest]}"
            )
            new += f".{words[-1]}"
            if words[2] == "attentions" and value.ndim == 2:
                value = value[:, :, None, None]  # noqa: PLW2901  # its attention was made of convolutions
        elif words[1] in ("down_blocks", "up_blocks"):
            level = int(words[2]) if words[1] == "down_blocks" else levels - 1 - int(words[2])
            rest = ".".join(words[4:]).replace("conv_shortcut", "nin_shortcut")
            sampler = {"downsamplers": "downsample", "upsamplers": "upsample"}.get(words[3])
            side = words[1].removesuffix("_blocks")
            new = f"{words[0]}.{side}.{level}." + (f"{sampler}.{'.'.join(words[5:])}" if sampler else f"block.{rest}")
        named[f"first_stage_model.{new}"] = value
    for name, value in pipeline.text_encoder.state_dict().items():
        named[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = value
    return {name: value.contiguous() for name, value in named.items()}


def test_a_single_file_gives_the_folders_model(stand_ins: Path, tmp_path: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(stand_ins / "sd15")
    weights = as_one_file(pipeline)
    save_file(weights, tmp_path / "model.safetensors")
    # Of the folder nothing is needed but options and tokenizer.
    shutil.copytree(stand_ins / "sd15", tmp_path / "options", ignore=shutil.ignore_patterns("*.safetensors"))
    options = StableDiffusionOptions(str(tmp_path / "model.safetensors"), config=str(tmp_path / "options"))

    found, wanted = (
        load_stable_diffusion(options),
        load_stable_diffusion(StableDiffusionOptions(str(stand_ins / "sd15"))),
    )
    for part in ("unet", "autoencoder"):
        ours, theirs = getattr(found, part).state_dict(), getattr(wanted, part).state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    ours, theirs = found.encoders[0].state_dict(), wanted.encoders[0].state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert found.scheduler["beta_end"] == wanted.scheduler["beta_end"] and found.base_text == wanted.base_text

    save_file({k: v for k, v in weights.items() if "output_blocks.0" not in k}, tmp_path / "cut.safetensors")
    assert "holds another kind of model" in refusal(tmp_path / "cut.safetensors", config=str(tmp_path / "options"))
