"""Models describe images, and the descriptions are compared with the prompts."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from transformers import (
    BertConfig,
    BertModel,
)

from vlad.cli.studies import DESCRIBE
from vlad.eval.description_round_trip import stored_descriptions
from vlad.models.captioner import LVLMCaptioner
from vlad.models.text_encoder.tiny_qwen import build_byte_tokenizer
from vlad.utils.errors import UserError

IMAGES = [np.full((40, 60, 3), value, np.uint8) for value in (0, 90, 255)]


def test_descriptions_are_compared_with_the_prompts(tiny_llava, tmp_path, monkeypatch, capsys):
    """tools/describe.py on tiny models: one question per image, without its prompt."""
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
    given = [f"sys={tmp_path / 'made'}", "--prompts", tmp_path / "p.txt", "--describer", f"llava={tiny_llava}"]
    given += ["--sentences", sentences, "--out", tmp_path / "out"]

    def run():
        return DESCRIBE([*map(str, given)], "vlad describe")

    assert run() == 0 and len(asked) == 2
    printed = capsys.readouterr().out
    assert "| similarity | sys |" in printed and "| relations | sys |" in printed
    (trip,) = json.loads((tmp_path / "out" / "matrix.json").read_text(encoding="utf-8"))
    assert trip["images"] == 2 and -1 <= trip["similarity"] <= 1 and trip["shares"]["counts"] is not None
    assert run() == 0 and len(asked) == 2, "stored descriptions are used again"
    # Another model of the same name has no descriptions yet; the last model is checked before the first one begins.
    shutil.copytree(tiny_llava, tmp_path / "other")
    given[4:5] = [f"llava={tmp_path / 'other'}", f"nothing={tmp_path / 'made'}"]
    with pytest.raises(UserError, match=r"--describer .*made cannot be used as an image-text-to-text model"):
        run()
    assert len(asked) == 2
    del given[5]
    assert run() == 0 and len(asked) == 4
    given[4] = f"llava={tiny_llava}"
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


def test_damaged_lines_of_stored_descriptions_count_as_none(tmp_path):
    store = tmp_path / "a-of-b.jsonl"
    assert stored_descriptions(store, "m") == {}
    record = json.dumps({"model": "m", "image": "p", "said": "né\u2028t"}, ensure_ascii=False).encode()
    cut = record.replace(b'"p"', b'"q"').split(b"\xa9")[0]
    store.write_bytes(b"\n".join([b"{oops}", b"[]", b'{"model": "m", "image": "r"}', record, b"", cut]))
    assert stored_descriptions(store, "m") == {"p": "né\u2028t"} and stored_descriptions(store, "n") == {}


def test_every_describer_is_checked_before_the_first_describes(tiny_llava, tmp_path, monkeypatch):
    made, other = tmp_path / "made", tmp_path / "other"
    made.mkdir()
    Image.fromarray(IMAGES[0]).save(made / "0.png")
    (tmp_path / "p.txt").write_text("a red sign", encoding="utf-8")
    shutil.copytree(tiny_llava, other)
    given = [
        f"sys={made}",
        "--prompts",
        tmp_path / "p.txt",
        "--describer",
        tiny_llava,
        other,
        "--out",
        tmp_path / "out",
    ]
    monkeypatch.setattr(LVLMCaptioner, "describe", lambda *_: pytest.fail("the first one described an image"))

    def refused(reason, *more):
        with pytest.raises(UserError, match=reason):
            DESCRIBE([*map(str, [*given, *more])], "vlad describe")

    refused("--count must be a whole number of at least 1", "--first", 0)
    whole = (other / "model.safetensors").read_bytes()
    (other / "model.safetensors").write_bytes(whole[:-10])
    refused(r"--describer .*other cannot be used as an image-text-to-text model \(.*incomplete")
    with pytest.raises(UserError, match=r"cannot be read .*name a folder or hub id of an image-text-to-text"):
        LVLMCaptioner(str(other), device="cpu")
    (other / "model.safetensors").unlink()
    refused("other cannot be used .*there are no weights")
    (other / "model.safetensors").write_bytes(whole)
    (other / "chat_template.jinja").write_text("{{ raise_exception('no images') }}", encoding="utf-8")
    refused("other has a chat template that cannot be filled in .*no images")
