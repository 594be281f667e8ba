"""The cached latents' format, in companion shards: KEY.json, KEY.latents.npy, [KEY.text.npy, KEY.v.npy].

The record is that of the fitted sample, so that its image is not read again. `latents` stacks the scaled latents'
means and, with an autoencoder that samples, their deviations: (image mean, glyph mean), or (image mean, image
deviation, glyph mean, glyph deviation), C h w each. `text` stacks t_g, the {t_i} and the token states, D each; the
record's `phrases` is the number of {t_i}. `v` is the image embedding, D.

Letters: B batch, C latent channels, h w cells, L tokens, N phrases, D width.
"""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from vlad.data.decoding import BadSample, decode_record, encode_record
from vlad.types import CachedStates, Sample
from vlad.utils.errors import UserError

LATENTS, TEXT, V = "latents.npy", "text.npy", "v.npy"
CACHED_KINDS = frozenset(("json", LATENTS, TEXT, V))


@dataclass(frozen=True)
class CachedSample:
    """A cached sample; arrays are float16."""

    sample: Sample
    latents: np.ndarray  # 2 or 4, C h w
    text: np.ndarray | None  # 1 + N + L, D
    phrases: int
    v: np.ndarray | None  # D


def encode_cached(sample: Sample, states: CachedStates) -> dict[str, bytes]:
    """The members of a cached sample; `states` are those of this sample alone (B = 1). Raises UserError."""
    record = encode_record(sample)
    latents = [
        states.image_mean,
        states.image_deviation,
        states.glyph_mean,
        states.glyph_deviation,
    ]
    members = {LATENTS: _to_npy(torch.cat([part for part in latents if part is not None]), sample.key)}
    if states.text is not None:
        local = states.text.local_states[0][states.text.local_mask[0]]  # N D
        tokens = states.text.tokens[0][states.text.mask[0]]  # L D
        record["phrases"] = len(local)
        members[TEXT] = _to_npy(torch.cat([states.text.global_state, local, tokens]), sample.key)
    if states.v is not None:
        members[V] = _to_npy(states.v[0], sample.key)
    return {"json": json.dumps(record, ensure_ascii=False).encode(), **members}


def _to_npy(x: Tensor, key: str) -> bytes:
    with np.errstate(over="ignore"):  # reported below, with the sample's key
        values = x.detach().float().cpu().numpy().astype(np.float16)
    if not np.isfinite(values).all():
        raise UserError(
            f"The latents or states of sample {key} exceed float16, so they cannot be cached; train without data.cache."
        )
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def decode_cached(members: dict[str, bytes], key: str) -> CachedSample:
    """A cached sample from its members. Raises BadSample."""
    if "json" not in members or LATENTS not in members:
        raise BadSample(f"no json or no {LATENTS}")
    record, sample = decode_record(members["json"], key)
    latents = _from_npy(members[LATENTS], LATENTS)
    text = _from_npy(members[TEXT], TEXT) if TEXT in members else None
    v = _from_npy(members[V], V) if V in members else None
    phrases = record.get("phrases", 0)
    if latents.ndim != 4 or len(latents) not in (2, 4):
        raise BadSample(f"{LATENTS} has shape {latents.shape}")
    if text is not None and (text.ndim != 2 or not isinstance(phrases, int) or not 0 <= phrases < len(text)):
        raise BadSample(f"{TEXT} has shape {text.shape} and {phrases!r} phrases")
    return CachedSample(sample, latents, text, phrases, v)


def _from_npy(data: bytes, name: str) -> np.ndarray:
    """The array of a npy file (version 1). Raises BadSample for any other type than float16."""
    if data[:8] != b"\x93NUMPY\x01\x00":
        raise BadSample(f"{name} is no npy file")
    start = 10 + int.from_bytes(data[8:10], "little")
    try:
        shape, fortran_order, dtype = _npy_header(data[8:start])
        if dtype != np.float16 or fortran_order or min(shape, default=0) < 0:
            raise BadSample(f"{name} is not an array of float16")
        return np.frombuffer(data, dtype, math.prod(shape), start).reshape(shape)
    except BadSample:
        raise
    except (ValueError, OverflowError, TypeError, EOFError, SyntaxError, RecursionError, MemoryError) as error:
        raise BadSample(f"{name} does not read: {str(error)[:200]}") from error


@lru_cache(maxsize=64)  # the arrays of a cache have few shapes
def _npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    return np.lib.format.read_array_header_1_0(io.BytesIO(header))
