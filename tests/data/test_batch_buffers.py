"""Memory that batches are made in: handed over to the trainer without a copy, free again when the batch is gone."""

import gc
from dataclasses import dataclass

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from vlad.data.batch_buffers import BatchMemory
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
    """Records of consecutive numbers, made in memory with `slots` slots."""

    def __init__(self, slots, count, slot_bytes=4096):
        self.memory, self.count = BatchMemory(slots, slot_bytes), count

    def __iter__(self):
        for number in range(self.count):
            slot = self.memory.take()
            pixels = slot.empty(4, 5, 3).fill_(number).permute(2, 0, 1)
            values = slot.empty(7, dtype=torch.float32).fill_(number / 2)
            yield self.memory.hand_over(slot, Record(str(number), pixels, Inner(values)))


def loaded(dataset, workers=1):
    return DataLoader(dataset, batch_size=None, num_workers=workers, multiprocessing_context="fork")


def check(record, number):
    assert record.name == str(number)
    assert record.pixels.shape == (3, 4, 5) and record.pixels.stride() == (1, 15, 3)
    assert record.pixels.dtype == torch.uint8 and (record.pixels == number).all()
    assert record.inner.values.dtype == torch.float32 and (record.inner.values == number / 2).all()
    assert record.nothing is None


def test_a_worker_hands_batches_over_and_takes_the_memory_again():
    dataset = Numbered(slots=4, count=40)
    places = set()
    for number, record in enumerate(loaded(dataset)):
        check(record, number)
        places.add(record.pixels.data_ptr())
    assert len(places) <= 4  # 40 batches, in the same four places


def test_batches_that_are_kept_stay_as_they_are():
    records = list(loaded(Numbered(slots=3, count=20)))  # more than there are slots: the rest in memory of its own
    for number, record in enumerate(records):
        check(record, number)


def test_a_slot_is_free_when_the_last_view_is_gone():
    memory = BatchMemory(1, 100)
    slot = memory.take()
    view = slot.empty(10)[2:4]
    assert slot.number == 0
    del slot
    gc.collect()
    assert memory.take().number is None
    del view
    gc.collect()
    assert memory.take().number == 0


def test_what_does_not_fit_stands_in_memory_of_its_own():
    dataset = Numbered(slots=2, count=5, slot_bytes=1)  # a page: room for the pixels of a record
    dataset.memory.slot_bytes = 64
    for number, record in enumerate(loaded(dataset)):
        check(record, number)


def test_more_than_the_memory_holds_is_refused():
    with pytest.raises(UserError, match="do not fit into memory"):
        BatchMemory(4, 1 << 60)
