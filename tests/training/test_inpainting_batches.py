"""Inpainting samples: masks, words and glyph maps belong together; a run learns from them and edits images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vlad.config.load import load_config
from vlad.data.collate import collate
from vlad.data.options import SyntheticOptions
from vlad.data.shards.writer import write_manifest, write_shards
from vlad.data.signs import render_sign
from vlad.eval.held_out_words.editing_evaluation import replacements, score_editing
from vlad.inference.load_pipeline import load_pipeline
from vlad.layout.glyph_map import render_glyph_map
from vlad.layout.masks import lines_touching
from vlad.models.text_encoder.prompt import parse_prompt, plain_prompt
from vlad.training.inpainting_batches import make_edits
from vlad.training.run import train
from vlad.types import Batch, Layout
from vlad.utils.errors import UserError

CONFIG = """
name: base
runs: {folder}/runs
data: {{shards: {folder}/shards, image_pixels: 32, batch_size: 4, workers: 0, shuffle_window: 8}}
lvlm: {{hidden_size: 32, layers: 1, heads: 2, vision_hidden_size: 32, vision_layers: 1, vision_pixels: 32}}
composition: {{width: 32, layers: 1, heads: 2, output_width: 32}}
autoencoder: {{latent_channels: 8, decoder_width: 16, decoder_layers: 1}}
layout: {{unet: {{block_channels: [32], heads: 2}}, noise: {{prediction: sample}}}}
refine: {{unet: {{block_channels: [32], heads: 2}}, noise: {{prediction: sample}}}}
train:
  autoencoder: {{steps: 2, warmup_steps: 1}}
  layout: {{steps: 2, warmup_steps: 1}}
  refine: {{steps: 2, warmup_steps: 1}}
trainer: {{checkpoint_every_steps: 10, sample_every_steps: 0, accelerator: cpu, log_every_steps: 1}}
sample: {{steps: 2, batch_size: 2}}
"""


def batch_of(count: int, options: SyntheticOptions) -> Batch:
    return collate([render_sign(options, index) for index in range(count)])


def test_mask_words_and_glyph_map_of_an_edit_belong_together() -> None:
    batch = batch_of(64, SyntheticOptions(size_pixels=32, line_shares=(0.0, 1.0, 0.0)))
    torch.manual_seed(0)
    made = make_edits(batch, 0.5)
    chosen = made.chosen.tolist()
    assert 16 < sum(chosen) < 48
    plain = 0
    for i in range(64):
        before, after = batch.captions[i], made.batch.captions[i]
        mask = made.masks[i, 0].numpy().astype(bool)
        if not chosen[i]:
            assert not mask.any()
            assert after == before
            assert torch.equal(made.batch.ink_bytes[i], batch.ink_bytes[i])
            continue
        lines = lines_touching(mask, batch.layouts[i])
        drawn = render_glyph_map(Layout(lines), 32, 32)
        assert np.array_equal(made.batch.ink_bytes[i, 0].numpy(), np.rint(drawn * 255).astype(np.uint8))
        if after != before:
            plain += 1
            assert parse_prompt(after).strings == tuple(line.text for line in lines)
            assert made.batch.objects[i] == ()
    assert 0 < plain < sum(chosen)
    assert torch.equal(made.batch.image_bytes, batch.image_bytes)
    torch.manual_seed(0)
    assert torch.equal(make_edits(batch, 0.5).masks, made.masks)
    assert not make_edits(batch, 0.0).chosen.any()
    assert make_edits(batch, 1.0).chosen.all()


def test_a_plain_prompt_holds_words_with_any_quotation_marks() -> None:
    for strings in (["SALE"], ["A", "B"], ['SAY "HI"'], ["don't"], ["“x”", '"y"'], []):
        assert parse_prompt(plain_prompt(strings)).strings == tuple(strings)
    assert parse_prompt(plain_prompt(['"“«「all'])).strings == ("'“«「all",)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that knows no edits, and a run on it that learns them."""
    folder = tmp_path_factory.mktemp("edits")
    options = SyntheticOptions(size_pixels=32, count=32)
    (folder / "shards").mkdir()
    entries = write_shards((render_sign(options, i) for i in range(options.count)), folder / "shards", 16)
    write_manifest(folder / "shards", entries, {})
    (folder / "base.yaml").write_text(CONFIG.format(folder=folder), encoding="utf-8")
    assert train(load_config(folder / "base.yaml")).finished
    base = f"base={folder / 'runs' / 'base'}"
    overrides = ["name=edit", base, "refine.editing_share=0.5", "train.layout.steps=0"]
    assert train(load_config(folder / "base.yaml", overrides)).finished
    return folder


def test_a_base_learns_to_edit_and_keeps_its_other_stages(world: Path) -> None:
    base, edit = (load_pipeline(world / "runs" / name) for name in ("base", "edit"))
    assert edit.config.edits and not base.config.edits
    assert edit.refine_unet.config.in_channels == base.refine_unet.config.in_channels + 1 + 8
    assert not (world / "runs" / "edit" / "layout").exists()
    for part in ("layout_unet", "composition", "lvlm", "autoencoder"):
        before, after = getattr(base, part).state_dict(), getattr(edit, part).state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items()), part
    weights = load_file(world / "runs" / "edit" / "refine" / "trained.safetensors")["unet.conv_in.weight"]
    assert weights[:, -9:].abs().max() > 0, "the new channels were not trained"


def test_an_edit_changes_what_the_mask_covers_and_nothing_else(world: Path) -> None:
    pipeline = load_pipeline(world / "runs" / "edit")
    signs = [render_sign(SyntheticOptions(size_pixels=32, line_shares=(1.0, 0.0, 0.0)), index) for index in range(3)]
    score, images, rows = score_editing(pipeline, signs)
    assert score.pixels_changed_outside == 0
    assert 0 < score.mean_mask_share < 1
    assert len(images) == len(rows) == score.words == 3
    for made, sign, image in zip(replacements(signs), signs, images, strict=True):
        different = (np.asarray(image) != sign.image).any(axis=-1)
        assert different[made.edit.mask].mean() > 0.5
        assert not different[~made.edit.mask].any()
        assert made.layout.lines[0].text != sign.layout.lines[0].text
    # It still draws whole images, from prompts and with layouts, and the same ones beside an edit as alone.
    made = replacements(signs)[0]
    prompt = 'a blue sign that says "HOUSE"'
    assert pipeline(prompt).images[0].size == (32, 32)
    alone = pipeline(prompt, 5, [made.layout], image=made.edit.image, mask_image=made.edit.mask).images[0]
    both = pipeline(
        [prompt, prompt], [5, 6], [made.layout, None], image=made.edit.image, mask_image=made.edit.mask
    ).images
    assert alone.tobytes() == both[0].tobytes()


def test_wrong_edits_are_refused(world: Path) -> None:
    base, edit = (load_pipeline(world / "runs" / name) for name in ("base", "edit"))
    image, mask = np.zeros((32, 32, 3), np.uint8), np.ones((32, 32), bool)
    with pytest.raises(UserError, match="not trained to edit"):
        base("a wall", image=image, mask_image=mask)
    with pytest.raises(UserError, match="32 x 32 pixels and keeps them"):
        edit("a wall", image=image, mask_image=mask, width=64)
    with pytest.raises(UserError, match="nearest size is 40 x 32"):
        edit("a wall", image=np.zeros((32, 37, 3), np.uint8), mask_image=np.ones((32, 37), bool))
    with pytest.raises(UserError, match="outside the mask"):
        lone = np.zeros((32, 32), bool)
        lone[:2, :2] = True
        layout = replacements([render_sign(SyntheticOptions(size_pixels=32), i) for i in range(2)])[0].layout
        edit("a wall", layouts=[layout], image=image, mask_image=lone)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["refine.editing_share=1.5"], "editing_share must be a share"),
        (["train.layout.steps=0"], r"train\.layout\.steps must be at least 1"),
        (["train.refine.steps=0"], r"train\.refine\.steps must be at least 1"),
        (["train.layout.steps=0", "base={base}", "lora={{rank: 2}}"], r"train\.layout\.steps must be at least 1"),
        (["refine.editing_share=0.5", "base={base}", "lora={{rank: 2}}"], "an adapter has no input channels"),
    ],
)
def test_options_that_cannot_train_edits_are_refused(world: Path, overrides: list[str], said: str) -> None:
    filled = [override.format(base=world / "runs" / "base") for override in overrides]
    with pytest.raises(UserError, match=said):
        train(load_config(world / "base.yaml", ["name=refused", *filled]))


def test_a_new_run_has_the_channels_from_the_start(world: Path) -> None:
    from vlad.training.build import new_parts

    parts = new_parts(load_config(world / "base.yaml", ["refine.editing_share=0.2"]))
    plain = new_parts(load_config(world / "base.yaml"))
    assert parts.edits and not plain.edits
    assert parts.refine_unet.config.in_channels == plain.refine_unet.config.in_channels + 9
    assert parts.layout_unet is not None and plain.layout_unet is not None
    assert parts.layout_unet.config.in_channels == plain.layout_unet.config.in_channels
