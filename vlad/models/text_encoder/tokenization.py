"""Prompts into token ids with their places in the text: any tokenizer, fast or slow, plain or in a chat template.

A row is `opening | the prompt's own tokens | closing`: what the tokenizer or its chat template puts around the prompt
is found once, and the prompt is encoded by itself, so that no prompt can spell a special token and every own token
has a span of characters.
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

REPLACEMENT = "\ufffd"  # what decoding half a character gives
SENTINEL = "zebra"  # stands for the prompt while the chat template around it is looked at
LOOK_AHEAD = 8  # characters that a slow tokenizer's piece may skip


@dataclass(frozen=True)
class TokenBatch:
    """Prompts as a model takes them.

    ids and attention (1 = read): B R, with everything around the prompts. `first` is the column where the states that
    are kept begin, mask (B L) says which of them are, offsets (B L 2) what characters they stand for: (0, 0) for a
    special token.
    """

    ids: Tensor
    attention: Tensor
    first: int
    mask: Tensor
    offsets: Tensor


class PromptTokens:
    """Encodes prompts for one tokenizer.

    `template`: the tokenizer's own special tokens around the prompt, or its chat template. `keep_special`: whether
    the states of plain special tokens are kept; a template's never are. `fixed_length`: fill up to `max_tokens`.
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
        self.opening, self.closing = chat_frame(tokenizer) if chat else special_frame(tokenizer)
        self.keep_opening = self.keep_closing = keep_special and not chat
        if not chat:
            self.keep_closing = True  # an end-of-text token has read the prompt
        self.room = max_tokens - len(self.opening) - len(self.closing)
        if self.room < 1:
            raise UserError(
                f"lvlm.max_tokens ({max_tokens}) leaves no room beside the {len(self.opening) + len(self.closing)}"
                " tokens around every prompt; raise it, or set lvlm.template: plain."
            )

    def __call__(self, prompts: Sequence[Prompt]) -> TokenBatch:
        """Encodes the prompts, filled up on the right to the longest. Says once that prompts are cut."""
        rows = [self._own_tokens(prompt) for prompt in prompts]
        longest = max(len(ids) for ids, _ in rows)
        around = len(self.opening) + len(self.closing)
        width = self.max_tokens if self.fixed_length else longest + around
        pad = next(
            (token for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id) if token is not None), 0
        )
        ids = torch.full((len(rows), width), pad)
        attention = torch.zeros(len(rows), width, dtype=torch.long)
        first = 0 if self.keep_opening else len(self.opening)
        mask = torch.zeros(len(rows), width - first, dtype=torch.bool)
        offsets = torch.zeros(len(rows), width - first, 2, dtype=torch.long)
        start = len(self.opening)
        for row, (own, places) in enumerate(rows):
            end = start + len(own)
            whole = [*self.opening, *own, *self.closing]
            ids[row, : len(whole)] = torch.tensor(whole, dtype=torch.long)
            attention[row, : len(whole)] = 1
            mask[row, : (len(whole) if self.keep_closing else end) - first] = True
            offsets[row, start - first : end - first] = torch.tensor(places, dtype=torch.long).view(-1, 2)
        if not self.keep_closing and not self.fixed_length:
            kept = longest  # the closing tokens of the longest prompt are nobody's states
            mask, offsets = mask[:, :kept], offsets[:, :kept]
        return TokenBatch(ids, attention, first, mask, offsets)

    def _own_tokens(self, prompt: Prompt) -> tuple[list[int], list[tuple[int, int]]]:
        ids, places = encode_with_places(self.tokenizer, prompt.text)
        if not ids:
            raise UserError("The prompt is empty; say what to draw, with the words to spell in quotation marks.")
        if len(ids) <= self.room:
            return ids, places
        kept = kept_tokens(places, prompt.quotes, self.room)
        _say_cut(self.room)
        return [ids[i] for i in kept], [places[i] for i in kept]


@cache  # once a process: an encoder is built anew for every batch of a pipeline
def _say_cut(room: int) -> None:
    if distributed.is_main_process():
        print(
            f"Prompts of more than {room} tokens are cut to that: words outside of quotation marks go, from the right;"
            " raise lvlm.max_tokens where the model's context allows.",
            file=sys.stderr,
        )


def kept_tokens(places: Sequence[tuple[int, int]], quotes: Sequence[Span], room: int) -> list[int]:
    """Which `room` tokens stay: those of quoted strings with their marks first, then the others from the left."""
    quoted = [any(start < quote.end + 1 and end > quote.start - 1 for quote in quotes) for start, end in places]
    order = sorted(range(len(places)), key=lambda index: (not quoted[index], index))
    return sorted(order[:room])


def span_weights(spans: Sequence[Sequence[Span]], offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Averaging weights B N L from tokens to spans of each prompt, and the mask B N of spans that have tokens.

    A token belongs to a span when their characters meet. `offsets` is B L 2. N is at least 1.
    """
    count = max(1, *(len(row) for row in spans))
    rows = [[(span.start, span.end) for span in row] + [(0, 0)] * (count - len(row)) for row in spans]
    starts, ends = torch.tensor(rows)[..., None].unbind(dim=2)  # B N 1 each; no token meets (0, 0)
    inside = (offsets[:, None, :, 0] < ends) & (offsets[:, None, :, 1] > starts)  # B N L
    tokens = inside.sum(dim=2)
    mask = tokens > 0  # a phrase behind the truncation has no tokens
    weights = inside / tokens.clamp_min(1)[..., None]
    return weights, mask


# --- what stands around a prompt -----------------------------------------------------------------------------------


def special_frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and behind a text."""
    bare = tokenizer(SENTINEL, add_special_tokens=False)["input_ids"]
    whole = tokenizer(SENTINEL, add_special_tokens=True)["input_ids"]
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    raise AssertionError(f"{type(tokenizer).__name__} changes a text when it adds special tokens")


def chat_frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens of the chat template before and behind a user's message, up to where the answer would begin.

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
        except Exception:  # jinja's errors, TypeErrors of its filters: whatever a template of the wild raises
            continue
        if rendered.count(SENTINEL) == 1 and "'text'" not in rendered:
            before, after = rendered.split(SENTINEL)
            return tuple(  # type: ignore[return-value]
                tokenizer(part, add_special_tokens=False)["input_ids"] if part else [] for part in (before, after)
            )
    raise UserError("lvlm.template: the tokenizer's chat template does not repeat a message as it is; set plain.")


# --- places --------------------------------------------------------------------------------------------------------


def encode_with_places(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """The tokens of a text without special ones, and the characters that each stands for.

    A text that spells a special token (<|image|>) is text like any other.
    """
    if tokenizer.is_fast:
        encoded = tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        return list(encoded["input_ids"]), [tuple(place) for place in encoded["offset_mapping"]]
    ids = list(tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"])
    return ids, places_by_decoding(tokenizer, text, ids)


def places_by_decoding(tokenizer: Any, text: str, ids: Sequence[int]) -> list[tuple[int, int]]:
    """What characters each token stands for, of a tokenizer that does not say: by decoding longer and longer heads.

    What a token adds to the decoded text is looked for in the prompt from where the one before it ended; blanks,
    case and composition may differ. Tokens that share one character (bytes) all have its place.
    """
    places: list[tuple[int, int]] = []
    decoded, position, pending = "", 0, 0
    for count in range(1, len(ids) + 1):
        head = tokenizer.decode(ids[:count], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        head = head.rstrip(REPLACEMENT)
        pending += 1
        added = head[len(decoded) :]
        if not added and count < len(ids):
            continue  # half a character: its place is known when the rest has come
        start, position = _find(text, position, added)
        places += [(start, position)] * pending
        decoded, pending = head, 0
    return places


def _find(text: str, position: int, piece: str) -> tuple[int, int]:
    """Where `piece` stands in `text` from `position` on: its first character and the one behind its last."""
    start: int | None = None
    for character in piece:
        reach = 1 if character.isspace() else LOOK_AHEAD  # a blank of the tokenizer's own must not skip words
        for index in range(position, min(position + reach, len(text))):
            if _folded(text[index]) == _folded(character):
                start = index if start is None else start
                position = index + 1
                break
    return (position if start is None else start), position


def _folded(character: str) -> str:
    return unicodedata.normalize("NFKD", character).casefold()[:1]
