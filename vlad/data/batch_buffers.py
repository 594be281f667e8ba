"""Memory that batches are made in, used again and again: the pages of fresh memory cost a third of what decoding does.

    take -> fill -> hand over, from a worker to its trainer too -> the last tensor of the batch goes -> take ...

A worker was forked from its trainer and sees the same pages, so of a batch that it hands over only the places of the
tensors travel.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import mmap
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlad.utils.errors import UserError

ALIGNMENT_BYTES = 64
LARGEST_HEAP_BLOCK_BYTES = 30_000_000


class BatchMemory:
    """Room for `batches` batches of up to `batch_bytes`, shared with the processes that are forked later.

    Raises UserError where there is not so much.
    """

    def __init__(self, batches: int, batch_bytes: int) -> None:
        self.slot_bytes = math.ceil(batch_bytes / mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            self._pages = mmap.mmap(-1, batches * self.slot_bytes)  # taken when they are first written to
        except (OSError, OverflowError, ValueError) as error:
            raise UserError(
                f"data: {batches} batches of {batch_bytes / 1e6:,.0f} MB each do not fit into memory; lower"
                " data.batch_size, data.image_pixels, data.resolutions or data.workers."
            ) from error
        _keep_freed_memory()
        self._bytes = torch.frombuffer(self._pages, dtype=torch.uint8)
        self._owner = os.getpid()
        self._number = next(_numbers)
        # The free slots are numbers in a pipe: any worker takes one, this process gives it back.
        self._taking, self._giving = os.pipe()
        weakref.finalize(self, _close, self._taking, self._giving)
        for end in (self._taking, self._giving):
            os.set_blocking(end, False)
        for slot in range(batches):
            self._give_back(slot)
        _memories[self._number] = self

    def take(self) -> Slot:
        """A free slot, to be filled with one batch. Where all are in use it is fresh memory."""
        try:
            number = int.from_bytes(os.read(self._taking, 4), "little")
        except BlockingIOError:
            return Slot()
        return Slot(number, self._view(number))

    def hand_over(self, slot: Slot, batch: Any) -> Any:
        """What a worker gives to its loader in place of a batch (a dataclass); the trainer gets the batch from it.

        Tensors that are not in the slot travel as torch sends them.
        """
        if slot.number is None:
            return batch
        start = self._view(slot.number).data_ptr()

        def place(x: Tensor) -> Tensor | _Place:
            offset = x.data_ptr() - start
            inside = x.numel() > 0 and 0 <= offset < self.slot_bytes
            return _Place(offset, x.dtype, tuple(x.shape), x.stride()) if inside else x

        return _Parcel(self._number, slot.number, _with_tensors(batch, Tensor, place))

    def _unpack(self, slot: int, batch: Any) -> Any:
        room = self._view(slot)

        def tensor(place: _Place) -> Tensor:
            whole = room[place.offset :]
            whole = whole[: len(whole) // place.dtype.itemsize * place.dtype.itemsize].view(place.dtype)
            return whole.as_strided(place.shape, place.strides)

        return _with_tensors(batch, _Place, tensor)

    def _view(self, slot: int) -> Tensor:
        """A slot's bytes. In the process that forked, the slot is free again when nothing refers to them any more."""
        start = slot * self.slot_bytes
        if os.getpid() != self._owner:
            return self._bytes[start : start + self.slot_bytes]
        array = np.frombuffer(self._pages, np.uint8, self.slot_bytes, start)
        # What is left when the process ends need not be given back.
        weakref.finalize(array, self._give_back, slot).atexit = False
        return torch.from_numpy(array)  # keeps the array for as long as any view of it

    def _give_back(self, slot: int) -> None:
        if os.getpid() == self._owner:  # a forked process holds copies of our references
            os.write(self._giving, slot.to_bytes(4, "little"))


def _keep_freed_memory() -> None:
    """Lets this process, and those that are forked later, use again what an image took when the next one is decoded.

    glibc gives freed memory back to the system, and its pages are taken anew, from twice the size on of the largest
    block that was ever freed, at most 32 MiB: so we free one.
    """
    torch.empty(LARGEST_HEAP_BLOCK_BYTES, dtype=torch.uint8)


# So that what arrives from a worker finds its memory: a process that is forked sees it under the same number.
_memories: weakref.WeakValueDictionary[int, BatchMemory] = weakref.WeakValueDictionary()
_numbers = itertools.count()


@dataclass(frozen=True)
class _Place:
    """Where a tensor stands in a slot."""

    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Parcel:
    """A batch with places for tensors; unpickled, it is the batch."""

    memory: int
    slot: int
    batch: Any

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _unpack, (self.memory, self.slot, self.batch)


def _unpack(memory: int, slot: int, batch: Any) -> Any:
    return _memories[memory]._unpack(slot, batch)


def _with_tensors(record: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """The record with every value of `kind` in it, and in the records in it, changed."""
    if isinstance(record, kind):
        return change(record)
    if is_dataclass(record) and not isinstance(record, type):
        changed = {entry.name: _with_tensors(getattr(record, entry.name), kind, change) for entry in fields(record)}
        return replace(record, **changed)
    return record


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)


@dataclass
class Slot:
    """Where one batch is made. `number` None: in memory of its own."""

    number: int | None = None
    room: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))

    def empty(self, *shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
        """A tensor in the slot, or in memory of its own where the slot is full. It holds anything."""
        needed = math.prod(shape) * dtype.itemsize
        if needed > len(self.room):
            return torch.empty(shape, dtype=dtype)
        taken = self.room[:needed]
        self.room = self.room[math.ceil(needed / ALIGNMENT_BYTES) * ALIGNMENT_BYTES :]
        return taken.view(dtype).view(shape)
