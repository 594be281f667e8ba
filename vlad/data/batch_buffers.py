"""Batch buffers: shared memory in which workers make batches, used again and again.

    take -> fill -> hand over to the trainer -> the last tensor of the batch is gone -> take ...

The pages of fresh memory cost a third of what decoding does. A forked worker sees the same pages as its trainer, so of
a batch that it hands over only the positions of the tensors travel. Where processes cannot fork (Windows, macOS),
every batch has memory of its own, and torch sends it as it sends any tensor.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import mmap
import os
import sys
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


def can_fork() -> bool:
    """Whether workers may be forked. On macOS system libraries crash in forked processes."""
    return hasattr(os, "fork") and sys.platform != "darwin"


def worker_context(workers: int) -> str | None:
    """The `multiprocessing_context` of a DataLoader over shards; None is the platform's default."""
    return "fork" if workers and can_fork() else None


class BatchBuffers:
    """Memory for `count` batches of up to `batch_bytes`, shared with processes that are forked later.

    A copy that is pickled, for a worker that is not forked, has no memory to share. Raises UserError where there is
    too little memory.
    """

    def __init__(self, count: int, batch_bytes: int) -> None:
        self.count = count if can_fork() else 0
        self.buffer_bytes = math.ceil(batch_bytes / mmap.PAGESIZE) * mmap.PAGESIZE
        if not self.count:
            return
        try:
            self._pages = mmap.mmap(-1, count * self.buffer_bytes)  # taken when they are first written to
        except (OSError, OverflowError, ValueError) as error:
            raise UserError(
                f"data: {count} batches of {batch_bytes / 1e6:,.0f} MB each do not fit into memory; lower"
                " data.batch_size, data.image_pixels, data.resolutions or data.workers."
            ) from error
        _keep_freed_memory()
        self._bytes = torch.frombuffer(self._pages, dtype=torch.uint8)
        self._owner = os.getpid()
        self._id = next(_ids)
        # The numbers of the free buffers are in a pipe: any worker takes one, this process puts it back.
        self._free_out, self._free_in = os.pipe()
        weakref.finalize(self, _close, self._free_out, self._free_in)
        for end in (self._free_out, self._free_in):
            os.set_blocking(end, False)
        for number in range(count):
            self._put_back(number)
        _all_buffers[self._id] = self

    def __reduce__(self) -> tuple[type[BatchBuffers], tuple[int, int]]:
        return BatchBuffers, (0, self.buffer_bytes)

    def take(self) -> Buffer:
        """A free buffer for one batch. Where all are in use it allocates fresh memory."""
        if not self.count:
            return Buffer()
        try:
            number = int.from_bytes(os.read(self._free_out, 4), "little")
        except BlockingIOError:
            return Buffer()
        return Buffer(number, self._view(number))

    def hand_over(self, buffer: Buffer, batch: Any) -> Any:
        """What a worker sends in place of a batch (a dataclass); unpickled in the trainer, it is the batch.

        Tensors outside of the buffer travel as torch sends them.
        """
        if buffer.number is None:
            return batch
        start = self._view(buffer.number).data_ptr()

        def locate(x: Tensor) -> Tensor | _Location:
            offset = x.data_ptr() - start
            inside = x.numel() > 0 and 0 <= offset < self.buffer_bytes
            return _Location(offset, x.dtype, tuple(x.shape), x.stride()) if inside else x

        return _Parcel(self._id, buffer.number, _map_records(batch, Tensor, locate))

    def _unpack(self, number: int, batch: Any) -> Any:
        view = self._view(number)

        def tensor(at: _Location) -> Tensor:
            rest = view[at.offset :]
            rest = rest[: len(rest) // at.dtype.itemsize * at.dtype.itemsize].view(at.dtype)
            return rest.as_strided(at.shape, at.strides)

        return _map_records(batch, _Location, tensor)

    def _view(self, number: int) -> Tensor:
        """A buffer's bytes. In the process that forked, the buffer is free again when nothing refers to them."""
        start = number * self.buffer_bytes
        if os.getpid() != self._owner:
            return self._bytes[start : start + self.buffer_bytes]
        array = np.frombuffer(self._pages, np.uint8, self.buffer_bytes, start)
        # Buffers that are left when the process ends need not be put back.
        weakref.finalize(array, self._put_back, number).atexit = False
        return torch.from_numpy(array)  # keeps the array for as long as any view of it

    def _put_back(self, number: int) -> None:
        if os.getpid() == self._owner:  # a forked process holds copies of our references
            os.write(self._free_in, number.to_bytes(4, "little"))


@dataclass
class Buffer:
    """Where one batch is made. `number` None: in memory of its own."""

    number: int | None = None
    free: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))

    def empty(self, *shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
        """An uninitialised tensor in the buffer, or in memory of its own where the buffer is full."""
        needed = math.prod(shape) * dtype.itemsize
        if needed > len(self.free):
            return torch.empty(shape, dtype=dtype)
        taken = self.free[:needed]
        self.free = self.free[math.ceil(needed / ALIGNMENT_BYTES) * ALIGNMENT_BYTES :]
        return taken.view(dtype).view(shape)


# A parcel that arrives from a worker finds its buffers here: a forked process knows them by the same id.
_all_buffers: weakref.WeakValueDictionary[int, BatchBuffers] = weakref.WeakValueDictionary()
_ids = itertools.count()


@dataclass(frozen=True)
class _Location:
    """Where a tensor is in a buffer."""

    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Parcel:
    """A batch with locations in place of tensors; unpickled, it is the batch."""

    buffers: int
    number: int
    batch: Any

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _unpack, (self.buffers, self.number, self.batch)


def _unpack(buffers: int, number: int, batch: Any) -> Any:
    return _all_buffers[buffers]._unpack(number, batch)


def _map_records(record: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """The record with every value of `kind` in it, and in the records in it, changed."""
    if isinstance(record, kind):
        return change(record)
    if is_dataclass(record) and not isinstance(record, type):
        changed = {entry.name: _map_records(getattr(record, entry.name), kind, change) for entry in fields(record)}
        return replace(record, **changed)
    return record


def _keep_freed_memory() -> None:
    """Lets this process, and those that are forked later, reuse an image's memory when the next one is decoded.

    glibc returns freed blocks to the system, whose fresh pages are slow, from twice the size on of the largest block
    that was ever freed, at most 32 MiB: so we free one.
    """
    torch.empty(LARGEST_HEAP_BLOCK_BYTES, dtype=torch.uint8)


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
