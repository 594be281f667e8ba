"""Image captioning with a tiny model of a real class, saved and loaded as a user's model is."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoProcessor,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vlad.models.captioner import LVLMCaptioner, first_paragraph, instruction
from vlad.models.text_encoder.tiny_qwen import build_byte_tokenizer
from vlad.utils.errors import UserError

IMAGES = [np.full((40, 60, 3), value, np.uint8) for value in (0, 90, 255)]
STRINGS = [("OPEN",), (), ("A", "B")]


@pytest.fixture(scope="module")
def captioner(tiny_llava):
    return LVLMCaptioner(str(tiny_llava), device="cpu", max_new_tokens=8)


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed")
def test_a_video_model_captions_images_without_torchvision(tmp_path):
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


def test_captions_are_deterministic(captioner):
    captions = captioner.describe(IMAGES, STRINGS)
    assert len(captions) == len(IMAGES)
    assert captions == captioner.describe(IMAGES, STRINGS)
    assert all(caption == " ".join(caption.split()) for caption in captions)


def test_a_caption_is_the_model_s_greedy_answer(captioner, tiny_llava):
    """Written by transformers itself, one token at a time, for one image alone."""
    processor = AutoProcessor.from_pretrained(tiny_llava)
    model = LlavaForConditionalGeneration.from_pretrained(tiny_llava).eval()
    text = f"<|image|>\n{instruction(STRINGS[0])}\n"
    inputs = processor(images=[Image.fromarray(IMAGES[0])], text=[text], return_tensors="pt")
    tokens, start = inputs["input_ids"], inputs["input_ids"].shape[1]
    with torch.no_grad():
        for _ in range(8):
            logits = model(input_ids=tokens, pixel_values=inputs["pixel_values"]).logits
            tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
    wanted = first_paragraph(processor.decode(tokens[0, start:], skip_special_tokens=True))
    assert captioner.describe(IMAGES[:1], STRINGS[:1]) == [wanted]


def test_the_model_s_chat_template_is_used(tiny_llava, tmp_path):
    captioner = LVLMCaptioner(str(tiny_llava), device="cpu")
    captioner._processor.chat_template = (
        "{% for message in messages %}{% for part in message.content %}"
        "{{ '<|image|>' if part.type == 'image' else part.text }}{% endfor %}{% endfor %} ASSISTANT:"
    )
    assert captioner._prompt("What?") == "<|image|>What? ASSISTANT:"


def test_text_that_spells_an_image_token_adds_no_image(captioner):
    assert len(captioner.describe(IMAGES[:2], [("<|image|>",), ("OPEN",)])) == 2


def test_the_instruction_quotes_the_recognised_text():
    assert '"OPEN", "9 TO 5"' in instruction(("OPEN", "9 TO 5"))
    assert '"' not in instruction(())
    assert first_paragraph("  A wall\n of bricks.\n\nNote: more") == "A wall of bricks."


def test_another_kind_of_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be used as an image-text-to-text model"):
        LVLMCaptioner(str(tmp_path))
