"""Tokenization: character offsets of fast and slow tokenizers, special tokens, chat templates, truncation."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from vlad.models.options import LVLMOptions
from vlad.models.text_encoder.lvlm import LVLMEncoder
from vlad.models.text_encoder.prompt import parse_prompt
from vlad.models.text_encoder.tiny_qwen import build_byte_tokenizer, build_tiny_qwen
from vlad.models.text_encoder.tokenization import (
    PromptTokens,
    encode_with_offsets,
    kept_tokens,
    offsets_by_decoding,
    span_weights,
    special_token_frame,
)
from vlad.types import Prompt, Span
from vlad.utils.errors import UserError

CHAT = (
    "{% for m in messages %}<|vision_start|>{{ m['role'] }}\n{{ m['content'] }}<|vision_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|vision_start|>assistant\n{% endif %}"
)
CORPUS = ["a blue sign that says HOUSE in white letters", "the dogs' bowl", "café", "日本 한글 สี", "0123456789"]


@cache
def bytes_tokenizer() -> Any:
    return build_byte_tokenizer()


@cache
def lower_casing_tokenizer() -> Any:
    """Like BERT's: lower-cases, strips accents, words and pieces; [CLS] and [SEP] around."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=names))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


@cache
def sentencepiece_tokenizer() -> Any:
    """Like Llama's: blanks are part of the pieces, a blank before the first, bytes for the rest, <s> in front."""
    names = ["<unk>", "<s>", "</s>"]
    alphabet = sorted(set("".join(CORPUS).replace(" ", "▁")))
    pieces = [*names, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *(c for c in alphabet if c != "▁"), "▁s", "▁si"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    merges = [("▁", "s"), ("▁s", "i")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@cache
def slow_tokenizer() -> Any:
    return ByT5Tokenizer()


TOKENIZERS = (bytes_tokenizer, lower_casing_tokenizer, sentencepiece_tokenizer, slow_tokenizer)
EXACT = (bytes_tokenizer, sentencepiece_tokenizer, slow_tokenizer)  # nothing is left out or changed
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(st.sampled_from(["a sign", " ", '"', "HOUSE", "日本", "สี", "é", "e\u0301", "한", "👍🏽", ","])).map(
        "".join
    ),
)


@pytest.mark.parametrize("tokenizer", EXACT)
@settings(max_examples=60)
@given(text=TEXTS)
def test_every_character_has_its_tokens_and_in_order(tokenizer: Callable[[], Any], text: str) -> None:
    ids, places = encode_with_offsets(tokenizer(), text)

    assert len(ids) == len(places)
    assert all(0 <= start <= end <= len(text) for start, end in places)
    assert [start for start, _ in places] == sorted(start for start, _ in places)
    assert {index for start, end in places for index in range(start, end)} == set(range(len(text)))


@settings(max_examples=60)
@given(text=TEXTS)
def test_a_slow_tokenizer_s_offsets_are_the_characters_of_its_bytes(text: str) -> None:
    _, places = encode_with_offsets(slow_tokenizer(), text)
    wanted = [(index, index + 1) for index, character in enumerate(text) for _ in character.encode()]
    assert places == wanted


@pytest.mark.parametrize("tokenizer", [bytes_tokenizer, lower_casing_tokenizer])
@settings(max_examples=60)
@given(words=st.lists(st.sampled_from(["a", "blue", "Sign", "house", "Café", "bowl", "日本", "7"]), min_size=1))
def test_offsets_by_decoding_are_those_of_a_fast_tokenizer(tokenizer: Callable[[], Any], words: list[str]) -> None:
    # The offsets that a slow tokenizer would get, compared with the true ones.
    text = " ".join(words)
    ids, said = encode_with_offsets(tokenizer(), text)
    found = offsets_by_decoding(tokenizer(), text, ids)
    if tokenizer is bytes_tokenizer:
        assert found == said
    else:  # a word's piece may begin at the blank before it
        assert [end for _, end in found] == [end for _, end in said]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize(
    "text",
    [
        'a blue sign that says "HOUSE", and the dogs\' bowl',
        "街上的招牌「日本」 and a café",
        "ป้าย สี «ABC» on a sign",
    ],
)
def test_spans_of_a_prompt_find_the_tokens_that_spell_them(tokenizer: Callable[[], Any], text: str) -> None:
    prompt = parse_prompt(text)
    batch = PromptTokens(tokenizer(), 200)([prompt])
    spans = (*prompt.phrases, *prompt.quotes)

    weights, mask = span_weights([spans], batch.offsets)

    assert mask.all()
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(1, len(spans)))
    for row, span in zip(weights[0], spans, strict=True):
        places = [tuple(place.tolist()) for place in batch.offsets[0][row > 0]]
        assert min(start for start, _ in places) <= span.start
        # (A tokenizer that strips accents has no token for one at the end.)
        assert all(unicodedata.combining(c) or c == "ี" for c in text[max(end for _, end in places) : span.end])
        # Nothing but the span, and blanks and marks that share a token with it.
        around = text[min(start for start, _ in places) : span.start] + text[span.end : max(end for _, end in places)]
        assert not re.search(r"\w", around), (span, around)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@torch.no_grad()
def test_names_of_special_tokens_are_plain_text(tokenizer: Callable[[], Any]) -> None:
    built = tokenizer()
    for name in built.all_special_tokens:
        ids, _ = encode_with_offsets(built, f"a {name} b")
        # ([UNK] may come of itself, for letters outside of a small vocabulary.)
        assert not {built.convert_tokens_to_ids(name)} & set(ids) - {built.unk_token_id}, name


# --- tokens around a prompt -------------------------------------------------------------------------------------------


def test_special_tokens_around_a_prompt_are_kept_or_cut() -> None:
    assert special_token_frame(lower_casing_tokenizer()) == ([2], [3])
    assert special_token_frame(sentencepiece_tokenizer()) == ([1], [])
    assert special_token_frame(slow_tokenizer()) == ([], [1])
    prompts = [parse_prompt("a"), parse_prompt("a sign")]

    kept = PromptTokens(lower_casing_tokenizer(), 20)(prompts)
    cut = PromptTokens(lower_casing_tokenizer(), 20, keep_special=False)(prompts)

    assert kept.ids.tolist() == cut.ids.tolist()
    assert (kept.first, cut.first) == (0, 1)
    assert kept.ids[0, :3].tolist()[::2] == [2, 3]
    assert kept.attention.sum(dim=1).tolist() == kept.mask.sum(dim=1).tolist()
    assert (kept.mask.sum(dim=1) - cut.mask.sum(dim=1)).tolist() == [1, 1]  # [CLS]; [SEP] has read the prompt
    assert kept.offsets[0, 0].tolist() == [0, 0]
    assert kept.offsets[0, 1].tolist() == cut.offsets[0, 0].tolist() == [0, 1]


def chat_tokenizer(template: str = CHAT) -> Any:
    tokenizer = build_byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    "template",
    [CHAT, CHAT.replace("m['content']", "m['content'][0]['text']")],
    ids=["text", "parts"],
)
def test_a_chat_template_is_put_around_the_prompt_and_its_states_are_cut(template: str) -> None:
    tokenizer = chat_tokenizer(template)
    options = LVLMOptions(hidden_size=32, heads=2, vision_hidden_size=16, vision_layers=1, template="chat")
    torch.manual_seed(0)
    encoder = LVLMEncoder(build_tiny_qwen(options), tokenizer, options).eval()
    text = "a <|vision_end|> sign"  # a prompt cannot end its own message
    prompts = [parse_prompt(text), parse_prompt("an old wall with a sign")]

    with torch.no_grad():
        states = encoder(prompts)
        before = tokenizer("<|vision_start|>user\n", add_special_tokens=False)["input_ids"]
        own = tokenizer(text, split_special_tokens=True)["input_ids"]
        after = tokenizer("<|vision_end|>\n<|vision_start|>assistant\n", add_special_tokens=False)["input_ids"]
        whole = encoder.model(input_ids=torch.tensor([before + own + after])).last_hidden_state[0]

    others = tokenizer(prompts[1].text)["input_ids"]
    assert states.mask.sum(dim=1).tolist() == [len(own), len(others)]
    assert states.tokens.shape[1] == max(len(own), len(others))
    torch.testing.assert_close(states.tokens[0, : len(own)], whole[len(before) : len(before) + len(own)])
    torch.testing.assert_close(states.global_state[0], states.tokens[0, : len(own)].mean(dim=0))
    assert states.local_mask[0].sum() == len(prompts[0].phrases)


@pytest.mark.parametrize(
    ("template", "message"),
    [(None, "this one has none; set plain"), ("{{ messages[0]['content'] | upper }}", "changes the user.s message")],
)
def test_a_tokenizer_without_a_usable_template_is_refused(template: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PromptTokens(chat_tokenizer(template) if template else build_byte_tokenizer(), 50, "chat")


def test_a_context_smaller_than_the_template_is_refused() -> None:
    with pytest.raises(UserError, match=r"lvlm.max_tokens \(8\) leaves no room"):
        PromptTokens(chat_tokenizer(), 8, "chat")


# --- truncation ------------------------------------------------------------------------------------------------------


def test_a_long_prompt_keeps_its_quoted_strings_and_warns_once(capsys: pytest.CaptureFixture[str]) -> None:
    text = 'an old sign on the wall of a small shop at the corner that says "HI" and under it "BYE" in red'
    prompt = parse_prompt(text)
    encode = PromptTokens(slow_tokenizer(), 41)  # bytes, and the end of text

    batch = encode([prompt])
    PromptTokens(slow_tokenizer(), 41)([prompt])

    kept = "".join(text[start:end] for start, end in batch.offsets[0, :-1].tolist())
    assert kept == 'an old sign on the wall of a sm"HI""BYE"'
    assert batch.ids.shape[1] == 41
    assert batch.ids[0, -1] == slow_tokenizer().eos_token_id
    weights, mask = span_weights([prompt.quotes], batch.offsets)
    assert mask.all()
    assert (weights > 0).sum(dim=2).tolist() == [[2, 3]]
    said = capsys.readouterr().err
    assert said.count("of more than 40 tokens are cut") == 1


def test_strings_that_do_not_fit_are_cut_from_the_right() -> None:
    places = [(index, index + 1) for index in range(12)]
    quotes = [Span("x" * 4, 2, 6), Span("y" * 3, 8, 11)]  # with their marks: 1 to 12
    assert kept_tokens(places, quotes, 11) == [*range(1, 12)]
    assert kept_tokens(places, quotes, 12) == [*range(12)]
    assert kept_tokens(places, quotes, 5) == [1, 2, 3, 4, 5]
    assert kept_tokens(places, [], 5) == [0, 1, 2, 3, 4]


@settings(max_examples=60)
@given(text=TEXTS, room=st.integers(1, 30))
def test_quoted_tokens_are_cut_last(text: str, room: int) -> None:
    if not text.strip():
        return
    prompt = parse_prompt(text, strict=False)
    _, places = encode_with_offsets(slow_tokenizer(), text)
    kept = set(kept_tokens(places, prompt.quotes, room))

    assert len(kept) == min(room, len(places))
    inside = {i for i, (start, end) in enumerate(places) if any(start < q.end and end > q.start for q in prompt.quotes)}
    outside = {
        i
        for i, (start, end) in enumerate(places)
        if all(end <= quote.start - 1 or start >= quote.end + 1 for quote in prompt.quotes)
    }
    assert not (inside - kept and outside & kept)


def test_a_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(UserError, match="tokenizer has no tokens for the prompt"):
        PromptTokens(bytes_tokenizer(), 20)([Prompt("", (), ())])


def test_the_context_of_the_model_bounds_the_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    options = LVLMOptions(hidden_size=32, heads=2, vision_hidden_size=16, vision_layers=1, max_tokens=2000)
    model = build_tiny_qwen(options)  # a context of 1024
    encoder = LVLMEncoder(model, build_byte_tokenizer(), options)
    with torch.no_grad():
        assert encoder([parse_prompt("日" * 500)]).tokens.shape[1] == 1024
    assert "raise lvlm.max_tokens if the model's context allows" in capsys.readouterr().err


def test_folding_finds_composed_and_decomposed_letters() -> None:
    # A tokenizer that composes what the prompt has apart: every place is still inside the prompt, in order.
    text = unicodedata.normalize("NFD", "café noir")
    ids = slow_tokenizer()(unicodedata.normalize("NFC", text), add_special_tokens=False)["input_ids"]
    places = offsets_by_decoding(slow_tokenizer(), text, ids)
    assert [text[start:end] for start, end in places[-4:]] == list("noir")
    assert text[places[3][0]] == "e"


@pytest.mark.parametrize("states", ["first", "layer:0", "layer:x", "average"])
def test_unknown_states_are_refused(states: str) -> None:
    with pytest.raises(UserError, match=r"lvlm\.states is last, layer:N"):
        replace(LVLMOptions(), states=states)
