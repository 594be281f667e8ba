"""Batch buffers: handed over to the trainer without a copy, free again when the batch is gone."""

import gc
import mmap
import os
import sys
from dataclasses import dataclass

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from vlad.data.batch_buffers import BatchBuffers, worker_context
from vlad.utils.errors import UserError


@dataclass(frozen=True)
class Inner:
    values: torch.Tensor


@dataclass(frozen=True)
class Record:
    name: str
    pixels: torch.Tensor
    inner: Inner
    nothing: torch.Tensor | None = None


class Numbered(IterableDataset):
    """Records of consecutive numbers, made in the memory of so many buffers."""

    def __init__(self, buffers, count, buffer_bytes=4096):
        self.buffers, self.count = BatchBuffers(buffers, buffer_bytes), count

    def __iter__(self):
        for number in range(self.count):
            buffer = self.buffers.take()
            pixels = buffer.empty(4, 5, 3).fill_(number).permute(2, 0, 1)
            values = buffer.empty(7, dtype=torch.float32).fill_(number / 2)
            yield self.buffers.hand_over(buffer, Record(str(number), pixels, Inner(values)))


def loaded(dataset, context="fork"):
    return DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context=context)


def check(record, number):
    assert record.name == str(number)
    assert record.pixels.shape == (3, 4, 5) and record.pixels.stride() == (1, 15, 3)
    assert record.pixels.dtype == torch.uint8 and (record.pixels == number).all()
    assert record.inner.values.dtype == torch.float32 and (record.inner.values == number / 2).all()
    assert record.nothing is None


def test_a_worker_hands_batches_over_and_reuses_the_memory():
    dataset = Numbered(buffers=4, count=40)
    addresses = set()
    for number, record in enumerate(loaded(dataset)):
        check(record, number)
        addresses.add(record.pixels.data_ptr())
    assert len(addresses) <= 4  # 40 batches, at the same four addresses


def test_batches_that_are_kept_stay_as_they_are():
    records = list(loaded(Numbered(buffers=3, count=20)))  # more than there are buffers: the rest has its own memory
    for number, record in enumerate(records):
        check(record, number)


def test_a_buffer_is_free_when_the_last_view_is_gone():
    buffers = BatchBuffers(1, 100)
    buffer = buffers.take()
    view = buffer.empty(10)[2:4]
    assert buffer.number == 0
    del buffer
    gc.collect()
    assert buffers.take().number is None
    del view
    gc.collect()
    assert buffers.take().number == 0


def test_a_tensor_that_does_not_fit_has_memory_of_its_own():
    dataset = Numbered(buffers=2, count=5, buffer_bytes=1)  # a page: room for the pixels of a record
    dataset.buffers.buffer_bytes = 64
    for number, record in enumerate(loaded(dataset)):
        check(record, number)


def test_more_than_the_memory_holds_is_refused():
    with pytest.raises(UserError, match="do not fit into memory"):
        BatchBuffers(4, 1 << 60)


def test_without_fork_batches_have_memory_of_their_own(monkeypatch):
    monkeypatch.delattr(os, "fork")
    monkeypatch.setattr(mmap, "mmap", None)
    assert worker_context(2) is None
    for number, record in enumerate(Numbered(buffers=2, count=3)):  # in the training process itself
        check(record, number)


def test_macos_workers_are_not_forked(monkeypatch):
    assert (worker_context(2), worker_context(0)) == ("fork", None)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert worker_context(2) is None
    assert BatchBuffers(2, 100).take().number is None


def test_a_spawned_worker_sends_its_batches():
    for number, record in enumerate(loaded(Numbered(buffers=2, count=3), "spawn")):
        check(record, number)
