"""VLADPipeline: diffusers' arguments, schedulers, offload; reuse of conditionings; limits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DConditionModel,
)

from vlad.inference.load_pipeline import load_pipeline
from vlad.layout.polygons import box_polygon
from vlad.models.text_encoder.lvlm import LVLMEncoder
from vlad.models.text_encoder.prompt import parse_prompt
from vlad.pipeline.vlad_pipeline import VLADPipeline
from vlad.types import Layout, Prompt, TextLine
from vlad.utils.errors import UserError

PROMPT = 'a blue sign that says "HOUSE"'


@pytest.fixture(scope="module")
def pipeline(pipeline_folder: Path) -> VLADPipeline:
    return load_pipeline(pipeline_folder)


def test_images_of_one_prompt_have_the_seeds_that_follow(pipeline: VLADPipeline) -> None:
    found = pipeline([PROMPT, "a wall"], [4, 9], num_images_per_prompt=2).images
    wanted = pipeline([PROMPT, PROMPT, "a wall", "a wall"], [4, 5, 9, 10]).images
    assert [image.tobytes() for image in found] == [image.tobytes() for image in wanted]


def test_a_generator_replaces_the_seed(pipeline: VLADPipeline) -> None:
    def generator(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    first = pipeline(PROMPT, generator=generator(5)).images[0].tobytes()
    assert first == pipeline(PROMPT, generator=generator(5)).images[0].tobytes()
    assert first != pipeline(PROMPT, generator=generator(6)).images[0].tobytes()
    each = pipeline([PROMPT, PROMPT], generator=[generator(6), generator(5)]).images
    assert each[1].tobytes() == first
    with pytest.raises(UserError, match="3 generators for 1 images"):
        pipeline(PROMPT, generator=[generator(0)] * 3)


def test_output_types_hold_the_same_images(pipeline: VLADPipeline) -> None:
    pil, np_, pt, latent = (
        pipeline([PROMPT] * 3, [0, 1, 2], output_type=kind).images for kind in ("pil", "np", "pt", "latent")
    )
    assert np_.shape == (3, 32, 32, 3)
    assert pt.shape == (3, 3, 32, 32)
    assert latent.shape == (3, 8, 4, 4)
    assert torch.equal(torch.from_numpy(np_).permute(0, 3, 1, 2), pt)
    assert np.array_equal(np.stack([np.asarray(image) for image in pil]), np.rint(np_ * 255).astype(np.uint8))
    with pytest.raises(UserError, match="output_type 'jpg'"):
        pipeline(PROMPT, output_type="jpg")


def test_the_callback_sees_and_changes_every_step_of_both_stages(pipeline: VLADPipeline) -> None:
    seen = []

    def watch(called: VLADPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]) -> dict:
        assert called is pipeline
        seen.append((step, tuple(tensors["latents"].shape)))
        return {}

    plain = pipeline(PROMPT, 0, steps=3).images[0].tobytes()
    assert pipeline(PROMPT, 0, num_inference_steps=3, callback_on_step_end=watch).images[0].tobytes() == plain
    assert seen == [(step, (2, 8, 4, 4)) for step in (0, 1, 2)] * 2

    def clear(_: VLADPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]) -> dict:
        return {"latents": torch.zeros_like(tensors["latents"])}

    emptied = [pipeline(PROMPT, seed, callback_on_step_end=clear, output_type="latent").images for seed in (0, 1)]
    assert all(latents.abs().max() == 0 for latents in emptied)


def test_a_negative_prompt_and_the_rescale_change_the_image(pipeline: VLADPipeline) -> None:
    plain = pipeline(PROMPT, text_scale=5.0).images[0].tobytes()
    assert pipeline(PROMPT, text_scale=5.0, negative_prompt="").images[0].tobytes() == plain
    assert pipeline(PROMPT, text_scale=5.0, negative_prompt="a dog").images[0].tobytes() != plain
    assert pipeline(PROMPT, text_scale=5.0, guidance_rescale=0.7).images[0].tobytes() != plain
    # Without guidance a negative prompt has no effect.
    free = {"text_scale": 1.0, "layout_scale": 1.0, "planning_scale": 1.0}
    assert (
        pipeline(PROMPT, **free, negative_prompt="a dog").images[0].tobytes()
        == pipeline(PROMPT, **free).images[0].tobytes()
    )


def test_a_prompt_is_encoded_once_for_both_stages_and_all_its_seeds(
    pipeline: VLADPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = pipeline([PROMPT, "a wall"], [3, 4], negative_prompt="a dog").images
    encoded, forward = [], LVLMEncoder.forward

    def counted(self: LVLMEncoder, prompts: list[Prompt], *others: object) -> object:
        encoded.extend(prompt.text for prompt in prompts)
        return forward(self, prompts, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(LVLMEncoder, "forward", counted)
    seeds = {"num_images_per_prompt": 5, "negative_prompt": "a dog"}  # in three batches, the middle one of both prompts
    found = pipeline([PROMPT, "a wall"], [3, 4], **seeds).images
    assert sorted(encoded) == sorted([PROMPT, "a wall", "a dog"])
    assert [found[0].tobytes(), found[5].tobytes()] == [image.tobytes() for image in plain]
    # Across calls only within `reuse_conditioning`: the text side might have been trained meanwhile.
    pipeline(PROMPT)
    assert len(encoded) == 4
    monkeypatch.setattr("vlad.pipeline.vlad_pipeline.KEPT_CONDITIONINGS", 2)
    with pipeline.reuse_conditioning():
        for prompt, count in ((PROMPT, 5), (PROMPT, 5), ("a wall", 6), ("a dog", 7), ("a wall", 7), (PROMPT, 8)):
            assert pipeline(prompt, 3).images[0].size == (32, 32)
            assert len(encoded) == count, prompt


def test_the_latents_of_a_layout_are_the_same_in_every_call(pipeline_folder: Path) -> None:
    pipeline = load_pipeline(pipeline_folder)
    layout = Layout((TextLine("HI", box_polygon(0.1, 0.1, 0.6, 0.4)),))
    torch.manual_seed(0)
    pipeline.autoencoder = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32,) * 4,
        latent_channels=8,
    ).eval()
    first, second = (pipeline(PROMPT, 0, [layout], output_type="latent").images for _ in range(2))
    assert torch.equal(first, second)


def test_other_shapes_keep_the_layout_in_place(pipeline: VLADPipeline) -> None:
    layout = Layout((TextLine("HI", box_polygon(0.1, 0.1, 0.6, 0.4)),))
    output = pipeline([PROMPT, PROMPT], [0, 0], [layout, None], width=64, height=16)
    assert [image.size for image in output.images] == [(64, 16)] * 2
    assert output.layouts[0] == layout
    assert output.glyph_maps[0] is None
    assert output.glyph_maps[1].shape == (16, 64)


def test_a_raw_glyph_map_is_kept_where_the_reader_agrees(pipeline: VLADPipeline) -> None:
    prompt = 'a sign that says "HOUSE" and "BUS"'
    refitted, raw = (pipeline(prompt, refit=refit).images[0].tobytes() for refit in (True, False))
    assert refitted != raw

    def image_with(reading: list[str]) -> bytes:
        return pipeline(prompt, reader=lambda glyph_map: reading).images[0].tobytes()

    assert image_with(["bus", "HO USE"]) == raw
    assert image_with(["HOUSE BUS"]) == raw
    assert image_with(["HOUSE"]) == refitted
    assert image_with([]) == refitted


def test_another_scheduler_works_and_one_that_does_not_fit_is_refused(pipeline_folder: Path) -> None:
    pipeline = load_pipeline(pipeline_folder)
    own = pipeline(PROMPT).images[0].tobytes()
    pipeline.refine_scheduler = EulerDiscreteScheduler.from_config(pipeline.refine_scheduler.config)
    assert pipeline(PROMPT).images[0].tobytes() != own
    # The layout UNet predicts x_0, the refine UNet v.
    pipeline.refine_scheduler = EulerDiscreteScheduler.from_config(pipeline.layout_scheduler.config)
    with pytest.raises(
        UserError, match="refine scheduler EulerDiscreteScheduler does not fit: its prediction is 'sample'"
    ):
        pipeline(PROMPT)
    pipeline.refine_scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(UserError, match="does not fit"):
        pipeline(PROMPT)
    for name in ("ddim", "dpm++", "unipc", "euler"):
        pipeline.use_solver(name)
        assert pipeline(PROMPT).images[0].size == (32, 32)
    with pytest.raises(UserError, match="solver flow-euler does not fit"):
        pipeline.use_solver("flow-euler")


def test_a_swapped_scheduler_is_saved_and_the_training_noise_with_it(pipeline_folder: Path, tmp_path: Path) -> None:
    pipeline = load_pipeline(pipeline_folder)
    pipeline.use_solver("unipc")
    pipeline.save_pretrained(tmp_path)
    again = VLADPipeline.from_pretrained(tmp_path)
    assert type(again.refine_scheduler).__name__ == "UniPCMultistepScheduler"
    assert again.config.process == pipeline.config.process
    assert again(PROMPT, 3).images[0].tobytes() == pipeline(PROMPT, 3).images[0].tobytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_changes_images_little(pipeline_folder: Path, pipeline: VLADPipeline, dtype: str) -> None:
    half = load_pipeline(pipeline_folder, dtype=dtype)
    assert half.refine_unet.dtype == getattr(torch, dtype)
    layout = Layout((TextLine("HI", box_polygon(0.1, 0.1, 0.6, 0.4)),))
    both = [np.asarray(one(PROMPT, 0, [layout]).images[0], dtype=float) for one in (pipeline, half)]
    assert 0 < np.abs(both[0] - both[1]).mean() < 4
    assert half(PROMPT).images[0].size == (32, 32)


@pytest.mark.parametrize("part", ["layout_unet", "refine_unet", "autoencoder"])
def test_weights_that_are_no_numbers_are_reported_not_painted_black(pipeline_folder: Path, part: str) -> None:
    broken = load_pipeline(pipeline_folder)
    with torch.no_grad():
        next(p for name, p in getattr(broken, part).named_parameters() if "conv_out" in name or "linear_out" in name)[
            0
        ] = torch.nan
    with pytest.raises(UserError, match="output is not a number; the weights are damaged"):
        broken(PROMPT)
    with pytest.raises(UserError, match="output is not a number"):
        broken.plan([parse_prompt(PROMPT)], [0]) if part == "layout_unet" else broken(PROMPT, output_type="pt")


def test_what_overflows_in_float16_is_sampled_again_in_float32(
    pipeline_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = load_pipeline(pipeline_folder, dtype="float16")
    with torch.no_grad():  # activations past 65,504, which the weights after them scale down again
        half.refine_unet.conv_norm_out.weight.mul_(4e4)
        half.refine_unet.conv_out.weight.mul_(1e-3)
    layout = Layout((TextLine("HI", box_polygon(0.1, 0.1, 0.6, 0.4)),))
    with half.reuse_conditioning():
        images = half([PROMPT, PROMPT, PROMPT], [1, 2, 3], [layout] * 3).images
    assert "refine UNet's output is not a number in float16; sampled again in float32" in capsys.readouterr().err
    assert half.refine_unet.dtype == torch.float32
    # All of them, also those whose batch was sampled after it.
    again = [half(PROMPT, seed, [layout]).images[0] for seed in (1, 2, 3)]
    assert [image.tobytes() for image in images] == [image.tobytes() for image in again]
    assert capsys.readouterr().err.count("warning") == 0


def test_offloaded_models_generate_the_same(pipeline_folder: Path, pipeline: VLADPipeline) -> None:
    offloaded = VLADPipeline.from_pretrained(pipeline_folder)
    offloaded.set_progress_bar_config(disable=True)
    moves = []
    offloaded.enable_model_cpu_offload(device="cpu")
    for name in ("lvlm", "composition", "layout_unet", "autoencoder", "refine_unet"):
        hook = getattr(offloaded, name)._hf_hook
        original = hook.pre_forward

        def moved(
            module: torch.nn.Module, *rest: object, name: str = name, call: object = original, **more: object
        ) -> object:
            if not moves or moves[-1] != name:
                moves.append(name)
            return call(module, *rest, **more)  # type: ignore[operator]

        hook.pre_forward = moved
    assert offloaded(PROMPT, 3).images[0].tobytes() == pipeline(PROMPT, 3).images[0].tobytes()
    # Each model moves once, but for the autoencoder: it decodes the plan, encodes the map, decodes the image.
    assert moves == ["lvlm", "composition", "layout_unet", "autoencoder", "refine_unet", "autoencoder"]


def test_the_parts_load_in_plain_diffusers_classes(pipeline_folder: Path, pipeline: VLADPipeline) -> None:
    unet = UNet2DConditionModel.from_pretrained(pipeline_folder, subfolder="refine_unet")
    state = pipeline.refine_unet.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in unet.state_dict().items())
    assert isinstance(pipeline, DiffusionPipeline)
    assert set(pipeline.components) >= {"lvlm", "composition", "autoencoder", "layout_unet", "refine_unet"}


def test_a_prompt_in_another_encoding_raises_one_sentence(pipeline: VLADPipeline) -> None:
    with pytest.raises(UserError, match="is not UTF-8 text"):
        pipeline(b"caf\xe9".decode(errors="surrogateescape"))


def test_wrong_settings_raise_one_sentence(pipeline: VLADPipeline) -> None:
    for options, said in (
        ({"steps": 0}, "0 steps"),
        ({"steps": 5000}, "5000 steps"),
        ({"text_scale": float("nan")}, "text_scale must be from 0 to 100, not nan"),
        ({"guidance_rescale": 2.0}, "guidance_rescale must be from 0 to 1"),
        ({"batch_size": -1}, "batch_size must be from 1 to 4096, not -1"),
        ({"width": 40}, "nearest size is 48 x 32"),
        ({"height": 100_000}, "nearest size is 32 x 4096"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt"),
        ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "prompt_embeds"),
    ):
        with pytest.raises(UserError, match=said):
            pipeline(PROMPT, **options)


def test_planned_lines_take_the_typeface_that_the_prompt_names(pipeline_folder: Path) -> None:
    pipeline = load_pipeline(pipeline_folder)
    pipeline.register_to_config(glyph_font="typeface")
    (layout,) = pipeline('a poster, "SALE" in red serif letters, below it "NOW" in stencil letters', 0).layouts
    assert [line.font for line in layout.lines] == ["eb-garamond", "saira-stencil-one"]
    images = [pipeline('a poster that says "SALE"', 0, [with_font(face)]).images[0] for face in ("caveat", "bungee")]
    assert images[0].tobytes() != images[1].tobytes()


def with_font(name: str) -> Layout:
    return Layout((TextLine("SALE", box_polygon(0.1, 0.3, 0.9, 0.7), font=name),))
