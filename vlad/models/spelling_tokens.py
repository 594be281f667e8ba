"""Spelling tokens: one token per character of every quoted string, for UNets that have to spell.

An LVLM's subword tokens hide the letters (ByT5 and Glyph-ByT5 show what that costs). A spelling token encodes
which character is at which position of which string:

    e = E_bytes(character) + E_place(length of the string, index in it) + E_string(number of strings, index)
        + Fourier features of the nominal place

The nominal place is the x coordinate of the character's centre, from 0 at the left of the image to 1 at the right,
if its string were a centred line as wide as it fits. The features are the position features of a UNet's cells
(`unet.position_features`): keys and queries describe places in the same terms from the first step.

Letters: B batch, S characters of all strings, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlad.models.text_encoder.prompt import wrap_strings
from vlad.types import Prompt

MAX_TOKENS = 512  # of one prompt: a web caption may quote a page
MAX_LETTER_WIDTH = 0.2  # of a letter at its nominal place, as a share of the image's
UTF8_BYTES = 4  # a character is at most four bytes: the embedding is the sum of theirs, any script


class SpellingEncoder(nn.Module):
    """Prompts -> spelling tokens B S D with their mask B S; S is at least 1.

    A string is the lines that it is set in, of at most `max_characters`. The table of strings ends at `max_strings`:
    lines past the end share its last entry.
    """

    frequencies: Tensor

    def __init__(self, width: int, max_characters: int, max_strings: int, frequencies: int = 6) -> None:
        super().__init__()
        self.max_characters, self.max_strings = max_characters, max_strings
        self.bytes = nn.Embedding(UTF8_BYTES * 256, width)
        self.places = nn.Embedding(max_characters**2, width)
        self.strings = nn.Embedding(max_strings**2, width)
        self.fourier = nn.Linear(2 * frequencies, width, bias=False)
        self.register_buffer("frequencies", math.pi * torch.arange(1, frequencies + 1), persistent=False)
        for table in (self.bytes, self.places, self.strings):
            nn.init.normal_(table.weight, std=0.5)

    def forward(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        device = self.bytes.weight.device
        rows = [self._rows(wrap_strings(prompt, self.max_characters).strings) for prompt in prompts]
        length = max(1, *map(len, rows))
        # The last entry of a row: (byte ids x 4, place id, string id, nominal place); padding is row 0 of all.
        table = torch.zeros(len(prompts), length, UTF8_BYTES + 3, dtype=torch.float32)
        mask = torch.zeros(len(prompts), length, dtype=torch.bool)
        for index, row in enumerate(rows):
            if row:
                table[index, : len(row)] = torch.tensor(row, dtype=torch.float32)
                mask[index, : len(row)] = True
        table = table.to(device)
        byte_ids, place, string = table[..., :UTF8_BYTES].long(), table[..., -3].long(), table[..., -2].long()
        angles = table[..., -1:].float() * self.frequencies  # B S F
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1)
        tokens = self.bytes(byte_ids).sum(dim=2) + self.places(place) + self.strings(string)
        tokens = tokens + self.fourier(waves.to(tokens.dtype))
        return tokens, mask.to(device)

    def _rows(self, strings: Sequence[str]) -> list[tuple[float, ...]]:
        """A row of numbers per character, MAX_TOKENS at most."""
        last_string = self.max_strings - 1
        count = min(len(strings) - 1, last_string)
        rows: list[tuple[float, ...]] = []
        for number, text in enumerate(strings):
            for index, character in enumerate(text):
                # Half a surrogate pair, which JSON can hold, has no encoding.
                utf8 = character.encode(errors="replace")[:UTF8_BYTES]
                # Byte 0 of place k has id 256 k, which no character but NUL uses: it pads short characters.
                byte_ids = [256 * k + (utf8[k] if k < len(utf8) else 0) for k in range(UTF8_BYTES)]
                place = (len(text) - 1) * self.max_characters + index
                string = count * self.max_strings + min(number, last_string)
                nominal = 0.5 + (index + 0.5 - len(text) / 2) * min(MAX_LETTER_WIDTH, 0.92 / len(text))
                rows.append((*byte_ids, place, string, nominal))
        return rows[:MAX_TOKENS]
