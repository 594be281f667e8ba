"""Captions by a tiny model of a real class, saved and loaded as a user's model is."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoProcessor,
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vlad.data.importers.folder import FolderSource
from vlad.data.importers.shard_builder import ShardSpec, make_shards_locally
from vlad.data.options import AnnotateOptions
from vlad.data.shards.reader import read_members
from vlad.eval.description_round_trip import stored_descriptions
from vlad.layout.polygons import box_polygon
from vlad.models.captioner import LVLMCaptioner, first_paragraph, instruction
from vlad.models.metric_encoders import CLIPEncoder, SentenceEncoder, VisionEncoder
from vlad.models.text_encoder.prompt import parse_prompt
from vlad.models.text_encoder.tiny_qwen import build_byte_tokenizer
from vlad.types import TextLine
from vlad.utils.errors import UserError

IMAGES = [np.full((40, 60, 3), value, np.uint8) for value in (0, 90, 255)]
STRINGS = [("OPEN",), (), ("A", "B")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A LLaVA of a few thousand weights with its processor."""
    path = tmp_path_factory.mktemp("llava")
    tokenizer = build_byte_tokenizer()
    image_token = "<|image|>"
    size = {"height": 32, "width": 32}
    images = CLIPImageProcessorPil(size=size, crop_size=size, do_resize=True)
    LlavaProcessor(
        images,
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        image_token=image_token,
        num_additional_image_tokens=1,
    ).save_pretrained(path)
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16
    )
    text = LlamaConfig(
        vocab_size=1024,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(image_token),
        vision_feature_layer=-1,
    )
    LlavaForConditionalGeneration(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def captioner(folder):
    return LVLMCaptioner(str(folder), device="cpu", max_new_tokens=8)


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed")
def test_a_model_that_takes_videos_too_reads_images_without_torchvision(tmp_path):
    tokenizer = build_byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|image_pad|>", "<|video_pad|>"]})
    image, video = tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|video_pad|>"])
    tokenizer.save_pretrained(tmp_path)
    side = {"shortest_edge": 32 * 32, "longest_edge": 32 * 32}
    processor = Qwen2VLImageProcessorPil(patch_size=8, merge_size=2, temporal_patch_size=2, size=side)
    processor.save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    # As on the hub: the class's plain name, and the processor that wants videos too.
    names = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"}
    path.write_text(json.dumps(json.loads(path.read_text()) | names))
    with pytest.raises(ImportError, match="Torchvision"):
        AutoProcessor.from_pretrained(tmp_path)
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = Qwen2_5_VLConfig(
        text_config={**sizes, "vocab_size": 1100, "num_hidden_layers": 1, "rope_parameters": rope},
        vision_config={
            **{"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 32},
            **{"patch_size": 8, "window_size": 32, "fullatt_block_indexes": [0]},
        },
        image_token_id=image,
        video_token_id=video,
    )
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(tmp_path)

    captioner = LVLMCaptioner(str(tmp_path), device="cpu", max_new_tokens=4)

    prompts = [captioner._prompt("look") for _ in IMAGES]
    inputs = captioner._processor(images=[Image.fromarray(p) for p in IMAGES], text=prompts, return_tensors="pt")
    assert (inputs["input_ids"] == image).sum() == inputs["image_grid_thw"].prod(dim=1).sum() // 4 > 0
    assert len(captioner.describe(IMAGES)) == len(IMAGES)


def test_every_image_gets_a_sentence_and_always_the_same(captioner):
    captions = captioner.describe(IMAGES, STRINGS)
    assert len(captions) == len(IMAGES)
    assert captions == captioner.describe(IMAGES, STRINGS)
    assert all(caption == " ".join(caption.split()) for caption in captions)


def test_a_caption_is_the_model_s_own_greedy_answer(captioner, folder):
    """Written by transformers itself, one token at a time, for one image alone."""
    processor = AutoProcessor.from_pretrained(folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    text = f"<|image|>\n{instruction(STRINGS[0])}\n"
    inputs = processor(images=[Image.fromarray(IMAGES[0])], text=[text], return_tensors="pt")
    tokens, start = inputs["input_ids"], inputs["input_ids"].shape[1]
    with torch.no_grad():
        for _ in range(8):
            logits = model(input_ids=tokens, pixel_values=inputs["pixel_values"]).logits
            tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
    wanted = first_paragraph(processor.decode(tokens[0, start:], skip_special_tokens=True))
    assert captioner.describe(IMAGES[:1], STRINGS[:1]) == [wanted]


def test_a_model_s_own_way_to_be_asked_is_kept(folder, tmp_path):
    captioner = LVLMCaptioner(str(folder), device="cpu")
    captioner._processor.chat_template = (
        "{% for message in messages %}{% for part in message.content %}"
        "{{ '<|image|>' if part.type == 'image' else part.text }}{% endfor %}{% endfor %} ASSISTANT:"
    )
    assert captioner._prompt("What?") == "<|image|>What? ASSISTANT:"


def test_a_image_that_says_a_special_token_is_one_image_still(captioner):
    assert len(captioner.describe(IMAGES[:2], [("<|image|>",), ("OPEN",)])) == 2


def test_the_instruction_quotes_what_was_read():
    assert '"OPEN", "9 TO 5"' in instruction(("OPEN", "9 TO 5"))
    assert '"' not in instruction(())
    assert first_paragraph("  A wall\n of bricks.\n\nNote: more") == "A wall of bricks."


def test_what_is_no_such_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be used as an image-text-to-text model"):
        LVLMCaptioner(str(tmp_path))


# What the importers make of a captioner


class Parrot:
    """A captioner that says how it was asked; batches show in what it writes."""

    name = "parrot"

    def describe(self, images, strings):
        return [
            f'a "nice" image {number} of {len(images)}, {image.shape[1]} wide' for number, image in enumerate(images)
        ]


class EngineThatReadsOpen:
    name = "open 1"

    def read(self, image):
        return (TextLine("OPEN", box_polygon(0.1, 0.1, 0.9, 0.3), confidence=0.9),)


def captions_of(folder, out, build_captioner, samples_per_shard=4, batch=2):
    source = FolderSource(folder)
    spec = ShardSpec(source, AnnotateOptions(), EngineThatReadsOpen, build_captioner, samples_per_shard, batch)
    out.mkdir()
    list(make_shards_locally(spec, out, out, {}, 1, lambda place: None))
    shards = sorted(out.glob("*.tar"))

    return [json.loads(members["json"])["caption"] for path in shards for _, members in read_members(str(path))]


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (40 + number, 40)).save(folder / f"{number}.png")
    (folder / "1.txt").write_text("written by hand")
    (folder / "2.png").write_bytes(b"damaged")
    return folder


def test_missing_captions_are_written_in_batches_that_end_with_the_shard(images, tmp_path):
    said = ', with text that says "OPEN"'
    assert captions_of(images, tmp_path / "out", Parrot) == [
        f"a nice image 0 of 2, 40 wide{said}",
        "written by hand",
        f"a nice image 1 of 2, 43 wide{said}",
        f"a nice image 0 of 2, 44 wide{said}",
        f"a nice image 1 of 2, 45 wide{said}",
    ]
    assert captions_of(images, tmp_path / "more", Parrot, samples_per_shard=5)[-2:] == [
        f"a nice image 0 of 1, 44 wide{said}",
        f"a nice image 0 of 1, 45 wide{said}",
    ]


def test_the_command_line_takes_a_model_s_folder(tmp_path, folder, monkeypatch, capsys):
    path = Path(__file__).parents[2] / "tools" / "make_shards.py"
    spec = importlib.util.spec_from_file_location("make_shards", path)
    tool = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "make_shards", tool)
    spec.loader.exec_module(tool)
    Image.new("RGB", (64, 48), "white").save(tmp_path / "1.png")
    entry = {"img_path": "1.png", "instances": [{"bbox": [0, 0, 32, 8], "text": "OPEN"}]}
    (tmp_path / "a.json").write_text(json.dumps({"data_list": [entry]}))
    out = tmp_path / "out"
    arguments = ["--captioner", str(folder), "--device", "cpu", "--workers", "1"]
    monkeypatch.setattr(sys, "argv", ["make_shards.py", str(tmp_path / "a.json"), "--out", str(out), *arguments])
    tool.main()
    ((_, members),) = read_members(str(out / "000000.tar"))
    assert parse_prompt(json.loads(members["json"])["caption"]).strings == ("OPEN",)
    assert json.loads((out / "manifest.json").read_text())["about"]["captioner"] == str(folder)


def test_a_model_s_captions_quote_the_text(images, tmp_path, folder):
    captions = captions_of(images, tmp_path / "out", lambda: LVLMCaptioner(str(folder), None, "cpu", 8))
    assert captions[1] == "written by hand"
    del captions[1]
    assert [parse_prompt(caption).strings for caption in captions] == [("OPEN",)] * 4


@pytest.fixture(scope="module")
def describe():
    """tools/describe.py as a module."""
    tool_path = Path(__file__).resolve().parents[2] / "tools" / "describe.py"
    spec = importlib.util.spec_from_file_location("describe_tool", tool_path)
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def test_images_are_described_and_held_against_their_prompts(describe, folder, tmp_path, monkeypatch, capsys):
    """tools/describe.py on tiny models: asked once for each image, told nothing of it."""
    (tmp_path / "made").mkdir()
    for number, image in enumerate(IMAGES[:2]):
        Image.fromarray(image).save(tmp_path / "made" / f"{number}.png")
    (tmp_path / "p.txt").write_text("a red sign that says 'OPEN'\ntwo blue cups on a plate\n", encoding="utf-8")
    sentences = tmp_path / "sentences"
    build_byte_tokenizer().save_pretrained(sentences)
    BertModel(
        BertConfig(vocab_size=1024, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    ).save_pretrained(sentences)
    asked = []
    describe_images = LVLMCaptioner.describe

    def counted(self, images):
        asked.extend(images)
        return describe_images(self, images)

    monkeypatch.setattr(LVLMCaptioner, "describe", counted)
    given = [f"sys={tmp_path / 'made'}", "--prompts", tmp_path / "p.txt", "--describer", f"llava={folder}"]
    given += ["--sentences", sentences, "--out", tmp_path / "out"]

    def run():
        monkeypatch.setattr(sys, "argv", ["describe.py", *map(str, given)])
        return describe.main()

    assert run() == 0 and len(asked) == 2
    printed = capsys.readouterr().out
    assert "| similarity | sys |" in printed and "| relations | sys |" in printed
    (trip,) = json.loads((tmp_path / "out" / "matrix.json").read_text(encoding="utf-8"))
    assert trip["images"] == 2 and -1 <= trip["similarity"] <= 1 and trip["shares"]["counts"] is not None
    assert run() == 0 and len(asked) == 2, "what was said is kept"
    # Another model of the same name has said nothing yet, and the last one's fault is told before the first begins.
    shutil.copytree(folder, tmp_path / "other")
    given[4:5] = [f"llava={tmp_path / 'other'}", f"nothing={tmp_path / 'made'}"]
    with pytest.raises(UserError, match=r"--describer .*made cannot be used as an image-text-to-text model"):
        run()
    assert len(asked) == 2
    del given[5]
    assert run() == 0 and len(asked) == 4
    given[4] = f"llava={folder}"
    asked[2:] = []
    (tmp_path / "made" / "0.png").write_bytes(b"no image")
    assert run() == 1 and len(asked) == 2
    assert f"PARTIAL: 1 images cannot be read: {tmp_path / 'made' / '0.png'}" in capsys.readouterr().out
    Image.fromarray(IMAGES[0]).save(tmp_path / "made" / "0.png")
    (tmp_path / "made" / "1.png").unlink()
    assert run() == 1
    assert "PARTIAL: 1 images are missing: sys 1_0." in capsys.readouterr().out
    given[0] = "sys"
    with pytest.raises(UserError, match="no folder of images at sys"):
        run()


def test_damaged_lines_of_what_was_said_are_asked_again(describe, tmp_path):
    store = tmp_path / "a-of-b.jsonl"
    assert stored_descriptions(store, "m") == {}
    record = json.dumps({"model": "m", "image": "p", "said": "né\u2028t"}, ensure_ascii=False).encode()
    cut = record.replace(b'"p"', b'"q"').split(b"\xa9")[0]
    store.write_bytes(b"\n".join([b"{oops}", b"[]", b'{"model": "m", "image": "r"}', record, b"", cut]))
    assert stored_descriptions(store, "m") == {"p": "né\u2028t"} and stored_descriptions(store, "n") == {}


def test_what_is_wrong_with_the_last_describer_shows_before_the_first_is_asked(describe, folder, tmp_path, monkeypatch):
    made, other = tmp_path / "made", tmp_path / "other"
    made.mkdir()
    Image.fromarray(IMAGES[0]).save(made / "0.png")
    (tmp_path / "p.txt").write_text("a red sign", encoding="utf-8")
    shutil.copytree(folder, other)
    given = [f"sys={made}", "--prompts", tmp_path / "p.txt", "--describer", folder, other, "--out", tmp_path / "out"]
    monkeypatch.setattr(LVLMCaptioner, "describe", lambda *_: pytest.fail("the first one was asked"))

    def refused(reason, *more):
        monkeypatch.setattr(sys, "argv", ["describe.py", *map(str, [*given, *more])])
        with pytest.raises(UserError, match=reason):
            describe.main()

    refused("--first is 0, and must be at least 1", "--first", 0)
    whole = (other / "model.safetensors").read_bytes()
    (other / "model.safetensors").write_bytes(whole[:-10])
    refused(r"--describer .*other cannot be used as an image-text-to-text model \(.*incomplete")
    with pytest.raises(UserError, match="cannot be used as an image-text-to-text model"):
        LVLMCaptioner(str(other), device="cpu")
    (other / "model.safetensors").unlink()
    refused("other cannot be used .*there are no weights")
    (other / "model.safetensors").write_bytes(whole)
    (other / "chat_template.jinja").write_text("{{ raise_exception('no images') }}", encoding="utf-8")
    refused("other has a chat template that cannot be filled in .*no images")


def test_damaged_or_other_encoders_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match="holds a llava model, which takes no images alone"):
        VisionEncoder(folder)
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    (damaged / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-10])
    for encoder in (CLIPEncoder, VisionEncoder, SentenceEncoder):
        with pytest.raises(UserError, match="damaged holds no model that transformers can load"):
            encoder(damaged)
    shutil.copytree(folder, tmp_path / "images")
    CLIPVisionModel(LlavaConfig.from_pretrained(folder).vision_config).save_pretrained(tmp_path / "images")
    with pytest.raises(UserError, match="holds a clip_vision_model model that encodes no texts alone"):
        SentenceEncoder(tmp_path / "images")
