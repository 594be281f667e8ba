"""Tokenization of prompts, with each token's character offsets: fast and slow tokenizers, chat templates.

A row is `prefix | the prompt's tokens | suffix`: what the tokenizer or its chat template puts around a prompt is found
once, and the prompt is encoded by itself, so that no prompt can spell a special token and every prompt token has a
span of characters.
Letters: B batch, L tokens, N spans.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from vlad.types import Prompt, Span
from vlad.utils import distributed
from vlad.utils.errors import UserError

REPLACEMENT = "\ufffd"  # what half a character decodes to
SENTINEL = "zebra"  # the prompt for which prefix and suffix are found
LOOK_AHEAD = 8  # characters of the prompt that a slow tokenizer's piece may skip


@dataclass(frozen=True)
class TokenBatch:
    """Tokenized prompts.

    ids and attention mask (1 = attend): B R, with prefix and suffix. `first` is the first column whose states are kept;
    of the columns from there, mask (B L) marks the kept ones and offsets (B L 2) has their character spans, (0, 0) for
    a special token.
    """

    ids: Tensor
    attention: Tensor
    first: int
    mask: Tensor
    offsets: Tensor


class PromptTokens:
    """Encodes prompts for one tokenizer.

    `template`: the tokenizer's special tokens around the prompt, or its chat template. `keep_special`: whether the
    states of special tokens are kept; a chat template's never are. `fixed_length`: pad to `max_tokens`.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_tokens: int,
        template: Literal["plain", "chat"] = "plain",
        keep_special: bool = True,
        fixed_length: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.fixed_length = fixed_length
        self.max_tokens = max_tokens
        chat = template == "chat"
        self.prefix, self.suffix = chat_template_frame(tokenizer) if chat else special_token_frame(tokenizer)
        self.keep_prefix = self.keep_suffix = keep_special and not chat
        if not chat:
            self.keep_suffix = True  # an end-of-text token attends to the prompt
        self.room = max_tokens - len(self.prefix) - len(self.suffix)
        if self.room < 1:
            raise UserError(
                f"lvlm.max_tokens ({max_tokens}) leaves no room beside the {len(self.prefix) + len(self.suffix)}"
                " tokens around every prompt; raise it, or set lvlm.template: plain."
            )

    def __call__(self, prompts: Sequence[Prompt]) -> TokenBatch:
        """Encodes the prompts, padded on the right. Warns once if prompts are cut."""
        rows = [self._encode(prompt) for prompt in prompts]
        longest = max(len(ids) for ids, _ in rows)
        around = len(self.prefix) + len(self.suffix)
        width = self.max_tokens if self.fixed_length else longest + around
        pad = next(
            (token for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id) if token is not None), 0
        )
        ids = torch.full((len(rows), width), pad)
        attention = torch.zeros(len(rows), width, dtype=torch.long)
        first = 0 if self.keep_prefix else len(self.prefix)
        mask = torch.zeros(len(rows), width - first, dtype=torch.bool)
        offsets = torch.zeros(len(rows), width - first, 2, dtype=torch.long)
        start = len(self.prefix)
        for row, (prompt_ids, prompt_offsets) in enumerate(rows):
            end = start + len(prompt_ids)
            row_ids = [*self.prefix, *prompt_ids, *self.suffix]
            ids[row, : len(row_ids)] = torch.tensor(row_ids, dtype=torch.long)
            attention[row, : len(row_ids)] = 1
            mask[row, : (len(row_ids) if self.keep_suffix else end) - first] = True
            offsets[row, start - first : end - first] = torch.tensor(prompt_offsets, dtype=torch.long).view(-1, 2)
        if not self.keep_suffix and not self.fixed_length:
            mask, offsets = mask[:, :longest], offsets[:, :longest]
        return TokenBatch(ids, attention, first, mask, offsets)

    def _encode(self, prompt: Prompt) -> tuple[list[int], list[tuple[int, int]]]:
        ids, offsets = encode_with_offsets(self.tokenizer, prompt.text)
        if not ids:
            raise UserError(f"The LVLM's tokenizer has no tokens for the prompt {prompt.text!r}; change its words.")
        if len(ids) <= self.room:
            return ids, offsets
        kept = kept_tokens(offsets, prompt.quotes, self.room)
        _warn_of_cut(self.room)
        return [ids[i] for i in kept], [offsets[i] for i in kept]


@cache  # once per process: a pipeline builds an encoder for every batch
def _warn_of_cut(room: int) -> None:
    if distributed.is_main_process():
        print(
            f"Prompts of more than {room} tokens are cut: words outside of quotation marks are dropped from the right;"
            " raise lvlm.max_tokens if the model's context allows.",
            file=sys.stderr,
        )


def kept_tokens(offsets: Sequence[tuple[int, int]], quotes: Sequence[Span], room: int) -> list[int]:
    """Indices of the `room` tokens to keep: quoted strings with their marks first, then from the left."""
    quoted = [any(start < quote.end + 1 and end > quote.start - 1 for quote in quotes) for start, end in offsets]
    order = sorted(range(len(offsets)), key=lambda index: (not quoted[index], index))
    return sorted(order[:room])


def span_weights(spans: Sequence[Sequence[Span]], offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Averaging weights B N L from tokens to spans of each prompt, and the mask B N of spans that have tokens.

    A token belongs to a span when their characters overlap. `offsets` is B L 2. N is at least 1.
    """
    count = max(1, *(len(row) for row in spans))
    rows = [[(span.start, span.end) for span in row] + [(0, 0)] * (count - len(row)) for row in spans]
    starts, ends = torch.tensor(rows)[..., None].unbind(dim=2)  # B N 1 each; no token overlaps (0, 0)
    inside = (offsets[:, None, :, 0] < ends) & (offsets[:, None, :, 1] > starts)  # B N L
    tokens = inside.sum(dim=2)
    mask = tokens > 0  # a phrase that was cut off has no tokens
    weights = inside / tokens.clamp_min(1)[..., None]
    return weights, mask


# --- tokens around a prompt ----------------------------------------------------------------------------------------


def special_token_frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after a text."""
    without_special = tokenizer(SENTINEL, add_special_tokens=False)["input_ids"]
    with_special = tokenizer(SENTINEL, add_special_tokens=True)["input_ids"]
    for start in range(len(with_special) - len(without_special) + 1):
        if with_special[start : start + len(without_special)] == without_special:
            return with_special[:start], with_special[start + len(without_special) :]
    raise AssertionError(f"{type(tokenizer).__name__} changes a text when it adds special tokens")


def chat_template_frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens of the chat template before and after a user's message, up to the start of the answer.

    Raises UserError when the tokenizer has no template, or one that changes the message.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UserError("lvlm.template: chat needs a tokenizer with a chat template, and this one has none; set plain.")
    # Some templates take a message as text, some as a list of parts.
    contents: tuple[Any, ...] = (SENTINEL, [{"type": "text", "text": SENTINEL}])
    for content in contents:
        try:
            rendered = tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
        except Exception:  # a template can raise anything: jinja's errors, TypeErrors of its filters
            continue
        if rendered.count(SENTINEL) == 1 and "'text'" not in rendered:
            before, after = rendered.split(SENTINEL)
            return tuple(  # type: ignore[return-value]
                tokenizer(part, add_special_tokens=False)["input_ids"] if part else [] for part in (before, after)
            )
    raise UserError("lvlm.template: the tokenizer's chat template changes the user's message; set plain.")


# --- character offsets ---------------------------------------------------------------------------------------------


def encode_with_offsets(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """The tokens of a text, without special tokens, and the character span of each.

    A text that spells a special token (<|image|>) is encoded as plain text.
    """
    if tokenizer.is_fast:
        encoded = tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        return list(encoded["input_ids"]), [tuple(span) for span in encoded["offset_mapping"]]
    ids = list(tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"])
    return ids, offsets_by_decoding(tokenizer, text, ids)


def offsets_by_decoding(tokenizer: Any, text: str, ids: Sequence[int]) -> list[tuple[int, int]]:
    """The character span of each token, for a tokenizer without offsets: by decoding longer and longer prefixes.

    The characters that a token adds to the decoded text are searched in the prompt from the end of the span before;
    blanks, case and composition may differ. Tokens that share a character (bytes) all have its span.
    """
    offsets: list[tuple[int, int]] = []
    decoded, position, pending = "", 0, 0
    for count in range(1, len(ids) + 1):
        prefix = tokenizer.decode(ids[:count], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        prefix = prefix.rstrip(REPLACEMENT)
        pending += 1
        added = prefix[len(decoded) :]
        if not added and count < len(ids):
            continue  # half a character: its span is known once it is complete
        start, position = _find(text, position, added)
        offsets += [(start, position)] * pending
        decoded, pending = prefix, 0
    return offsets


def _find(text: str, position: int, piece: str) -> tuple[int, int]:
    """The span of `piece` in `text` from `position` on."""
    start: int | None = None
    for character in piece:
        reach = 1 if character.isspace() else LOOK_AHEAD  # a blank that the tokenizer added must not skip words
        for index in range(position, min(position + reach, len(text))):
            if _folded(text[index]) == _folded(character):
                start = index if start is None else start
                position = index + 1
                break
    return (position if start is None else start), position


def _folded(character: str) -> str:
    return unicodedata.normalize("NFKD", character).casefold()[:1]
