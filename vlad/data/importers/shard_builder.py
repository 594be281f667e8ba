"""Building shards of a source on all cores of one machine.

    refs, in order -> annotate, on all cores -> captioner, if any -> shard k: images k S to (k + 1) S, less skipped ones

A shard depends on its own images alone, so that a resumed run, and a run on a cluster (`on_ray`), make the same bytes.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import multiprocessing
import os
import signal
import threading
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Protocol

import numpy as np

from vlad.data.decoding import decode_image
from vlad.data.importers.annotate import AnnotateOptions, Draft, annotate
from vlad.data.importers.caption_templates import compose_caption, with_quotations
from vlad.data.importers.journal import ShardRecord
from vlad.data.importers.sources import ImageRef, Skipped, Source
from vlad.data.shards.writer import Statistics, publish_shard, shard_entry, write_tar
from vlad.types import OCREngine, TextLine
from vlad.utils.errors import UserError

IMAGES_PER_JOB = 4
# Starting a process for fewer images takes longer than it saves.
MIN_IMAGES_PER_PROCESS = 16


class Captioner(Protocol):
    """Writes captions: `vlad.models.captioner` has one."""

    name: str

    def describe(self, images: list[np.ndarray], strings: list[tuple[str, ...]]) -> list[str]:
        """A sentence for every image (H W 3, uint8), given the strings in it."""


@dataclass(frozen=True)
class ShardSpec:
    """All that the bytes of a shard depend on; it can be pickled to build shards on any machine."""

    source: Source
    options: AnnotateOptions
    # Makes the OCR engine, in each process anew: engines cannot be pickled.
    build_engine: Callable[[], OCREngine]
    build_captioner: Callable[[], Captioner] | None = None
    samples_per_shard: int = 1000
    caption_batch: int = 8

    def annotator(self) -> Callable[[ImageRef], Draft | Skipped]:
        """The function that annotates one image, with an engine of its own, built when an image first needs it."""
        build = functools.cache(self.build_engine)

        def read_text(image: np.ndarray) -> tuple[TextLine, ...]:
            return build().read(image)

        return lambda ref: annotate(self.source, ref, read_text, self.options, self.build_captioner is not None)


def make_shard(
    number: int,
    pairs: Iterable[tuple[ImageRef, Draft | Skipped]],
    captioner: Captioner | None,
    caption_batch: int,
    target: Path | str,
    workplace: Path,
) -> ShardRecord:
    """Writes one shard from the results of its images, and publishes it at `target`.

    `workplace` is the directory in which it grows: `target` itself where that is a directory.
    """
    keys: list[str] = []
    skipped: list[Skipped] = []
    total = Statistics()

    def results() -> Iterator[Draft | Skipped]:
        for ref, result in pairs:
            keys.append(ref.key)
            yield result

    def members() -> Iterator[tuple[str, dict[str, bytes]]]:
        nonlocal total
        for item in _with_captions(results(), captioner, caption_batch):
            if isinstance(item, Skipped):
                skipped.append(item)
            else:
                total += item.statistics
                yield item.key, item.members

    name = f"{number:06d}.tar"
    temporary = workplace / f"{name}.partial"
    count = write_tar(members(), temporary)
    entry = None
    if count:
        entry = shard_entry(temporary, count, total, name)
        publish_shard(temporary, target, name)
    else:
        temporary.unlink()
    return ShardRecord(number, entry, keys[0], len(keys), total, tuple(skipped))


def _with_captions(
    results: Iterable[Draft | Skipped], captioner: Captioner | None, batch: int
) -> Iterator[Draft | Skipped]:
    """The results in order, with captions for all; a captioner gets `batch` images at a time.

    Batches are counted from the start of the shard: a model's sentence may depend on the rest of its batch.
    """
    if captioner is None:
        yield from results
        return
    waiting: list[Draft | Skipped] = []
    for item in results:
        waiting.append(item)
        if sum(_wants_caption(other) for other in waiting) == batch:
            yield from _captioned(waiting, captioner)
            waiting = []
    yield from _captioned(waiting, captioner)


def _wants_caption(item: Draft | Skipped) -> bool:
    return isinstance(item, Draft) and item.wants_caption


def _captioned(items: list[Draft | Skipped], captioner: Captioner) -> Iterator[Draft | Skipped]:
    drafts = [item for item in items if isinstance(item, Draft) and item.wants_caption]
    written: Iterator[str] = iter(())
    if drafts:
        images = []
        for draft in drafts:
            extension = next(name for name in draft.members if name != "json")
            images.append(decode_image(draft.members[extension], extension))
        written = iter(captioner.describe(images, [draft.strings for draft in drafts]))
    for item in items:
        if isinstance(item, Draft) and item.wants_caption:
            sentence = with_quotations(next(written), item.strings)
            yield item.captioned(sentence or compose_caption(item.strings, item.statistics.lines > 0))
        else:
            yield item


def make_shards_locally(
    spec: ShardSpec,
    target: Path | str,
    workplace: Path,
    done: dict[int, ShardRecord],
    workers: int,
    on_image: Callable[[ImageRef], None],
) -> Iterator[ShardRecord]:
    """Makes every shard that is not in `done`, in order, in `workers` processes (1: in this one).

    `on_image` is called for every finished image. Raises UserError where the shards in `done` are of another source.
    """
    captioner = None if spec.build_captioner is None else spec.build_captioner()
    with contextlib.ExitStack() as stack:
        if workers == 1:
            pairs = _in_this_process(spec, remaining_refs(spec, done))
        else:
            pool = stack.enter_context(_processes(spec, workers))
            pairs = _on_processes(pool, workers, remaining_refs(spec, done))
        reported = _report(pairs, on_image)
        for number, group in itertools.groupby(reported, lambda pair: pair[0].number // spec.samples_per_shard):
            yield make_shard(number, group, captioner, spec.caption_batch, target, workplace)


def _report(
    pairs: Iterable[tuple[ImageRef, Draft | Skipped]], on_image: Callable[[ImageRef], None]
) -> Iterator[tuple[ImageRef, Draft | Skipped]]:
    for ref, result in pairs:
        on_image(ref)
        yield ref, result


def remaining_refs(spec: ShardSpec, done: dict[int, ShardRecord]) -> Iterator[ImageRef]:
    """The images of the shards that are not done.

    Raises UserError where the source has changed since the others were made.
    """
    counted: Counter[int] = Counter()
    for ref in spec.source.refs():
        shard, inside = divmod(ref.number, spec.samples_per_shard)
        record = done.get(shard)
        if record is None:
            yield ref
            continue
        counted[shard] += 1
        if inside == 0 and ref.key != record.first:
            raise _changed(spec.source)
    # The last shard may have had fewer images: some were added since, or taken away.
    if any(counted[shard] != record.places for shard, record in done.items()):
        raise _changed(spec.source)


def _changed(source: Source) -> UserError:
    return UserError(
        f"{source.path} has changed since these shards were begun; restore it, or make them all again with --overwrite."
    )


def _in_this_process(spec: ShardSpec, refs: Iterable[ImageRef]) -> Iterator[tuple[ImageRef, Draft | Skipped]]:
    annotate_one = spec.annotator()
    return ((ref, annotate_one(ref)) for ref in refs)


def _on_processes(
    pool: ProcessPoolExecutor, workers: int, refs: Iterable[ImageRef]
) -> Iterator[tuple[ImageRef, Draft | Skipped]]:
    """The results in order; a few jobs ahead, so that a long stream of images needs little memory."""
    waiting: deque[tuple[list[ImageRef], Future[list[Draft | Skipped]]]] = deque()
    iterator = iter(refs)
    try:
        while job := list(itertools.islice(iterator, IMAGES_PER_JOB)):
            waiting.append((job, pool.submit(_annotate_job, job)))
            if len(waiting) > 3 * workers:
                job, future = waiting.popleft()
                yield from zip(job, future.result(), strict=True)
        for job, future in waiting:
            yield from zip(job, future.result(), strict=True)
    except BrokenProcessPool as error:
        raise UserError(
            "A process died while it read an image, most likely for want of memory; run the same command again"
            " with fewer --workers: it resumes after the last finished shard."
        ) from error


@contextlib.contextmanager
def _processes(spec: ShardSpec, workers: int) -> Iterator[ProcessPoolExecutor]:
    # Spawned: the libraries of this process have threads, which a fork would break.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start_process, initargs=(spec,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


# Of a process of the pool.
_annotator: Callable[[ImageRef], Draft | Skipped] | None = None


def _start_process(spec: ShardSpec) -> None:
    global _annotator  # noqa: PLW0603 - a pool's processes keep nothing else between jobs
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C for all
    # A killed main process cannot end its pool, whose processes would wait for jobs for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel
        threading.Thread(target=lambda: (wait([sentinel]), os._exit(1)), daemon=True).start()
    warnings.filterwarnings("ignore", module="PIL")  # about odd metadata, which does not matter here
    _annotator = spec.annotator()


def _annotate_job(refs: list[ImageRef]) -> list[Draft | Skipped]:
    assert _annotator is not None
    return [_annotator(ref) for ref in refs]
