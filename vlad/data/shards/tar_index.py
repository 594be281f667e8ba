"""The tar index: where the members of every sample are in a tar, read from its headers alone.

Headers are not trusted: names that lead out of the archive, links, devices and members of unknown kinds are ignored,
and listed.
"""

from __future__ import annotations

import contextlib
import errno
import io
import re
import tarfile
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vlad.data.decoding import IMAGE_FORMATS, MAX_MEMBER_BYTES, MEMBER_KINDS, BadSample, image_size

# WebDataset's rule: the key is the path up to the first dot of the file's name, the kind is the rest.
_MEMBER_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
MAX_HEADER_BYTES = 1_000_000  # of a long name; tarfile would read whatever length a header gives


@dataclass(frozen=True)
class SampleMembers:
    """Offset and size in bytes of the members of a sample, by kind."""

    key: str
    members: dict[str, tuple[int, int]]
    # Why the sample cannot be used, as far as the headers show; None: it can.
    fault: str | None = None


@dataclass(frozen=True)
class TarTable:
    """The samples of a tar, the names that were ignored, and where it is damaged (None: it is whole)."""

    samples: tuple[SampleMembers, ...]
    ignored: tuple[str, ...]
    damage: str | None


class _HeaderReader(io.RawIOBase):
    """A stream that reads no more at once than a header can have, so that no shard is read into memory whole."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self.stream.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        return self.stream.tell()


def open_tar(path: Path) -> BufferedReader:
    """Opens a local tar. Raises OSError, also for a pipe or device, from which reading might never end."""
    if not path.is_file() and path.exists():
        raise OSError(errno.EINVAL, "Is a directory" if path.is_dir() else "It is no file")
    return path.open("rb")


def scan_tar(stream: BinaryIO, kinds: frozenset[str] = MEMBER_KINDS) -> TarTable:
    """Reads the headers of a tar. Damage never raises: it is reported, and the samples before it are kept.

    Members of other kinds than the given ones are ignored.
    """
    grouped: list[SampleMembers] = []
    ignored: list[str] = []
    length = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    try:
        with tarfile.open(fileobj=_HeaderReader(stream), mode="r:") as archive:
            for member in archive:
                if member.size < 0 or member.offset_data + member.size > length:
                    raise tarfile.ReadError(f"it ends within {member.name}")
                _add_member(grouped, ignored, member, kinds)
            stop = archive.offset
        # tarfile takes a header that it cannot read for the end of the archive; at the true end there are zeros.
        stream.seek(stop)
        mark = stream.read(tarfile.BLOCKSIZE)
        damage = None if mark and not any(mark) else f"byte {stop} begins neither a member nor the end mark"
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, RecursionError) as error:
        damage = " ".join(str(error).split())[:200] or type(error).__name__
    return TarTable(tuple(grouped), tuple(ignored), damage)


def _add_member(
    grouped: list[SampleMembers], ignored: list[str], member: tarfile.TarInfo, kinds: frozenset[str]
) -> None:
    matched = _MEMBER_NAME.fullmatch(member.name)
    if member.isdir():
        return
    climbs = member.name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", member.name)
    if not member.isreg() or member.sparse is not None or matched is None or climbs:
        ignored.append(member.name)
        return
    key, kind = matched[1], matched[2].lower()
    if kind not in kinds:
        ignored.append(member.name)
        return
    fault = None
    if member.size > MAX_MEMBER_BYTES:
        fault = f"its {kind} has {member.size} bytes, over the limit of {MAX_MEMBER_BYTES}"
    if grouped and grouped[-1].key == key:
        before = grouped.pop()
        if kind in before.members:
            fault = f"it has two members of kind {kind}"
        grouped.append(
            SampleMembers(key, {**before.members, kind: (member.offset_data, member.size)}, before.fault or fault)
        )
    else:
        grouped.append(SampleMembers(key, {kind: (member.offset_data, member.size)}, fault))


def read_sample(stream: BinaryIO, sample: SampleMembers) -> dict[str, bytes]:
    """The bytes of a sample's members by kind."""
    members = {}
    for kind, (offset, size) in sample.members.items():
        stream.seek(offset)
        members[kind] = stream.read(size)
    return members


def header_sizes(stream: BinaryIO, table: TarTable) -> np.ndarray:
    """Width and height of every sample's image, N 2 (int32), from the image's header.

    A sample without a readable header counts as 1 x 1: it is reported when it is read.
    """
    sizes = np.ones((len(table.samples), 2), dtype=np.int32)
    for number, sample in enumerate(table.samples):
        kind = next((kind for kind in IMAGE_FORMATS if kind in sample.members), None)
        if kind is not None and sample.fault is None:
            offset, length = sample.members[kind]
            stream.seek(offset)
            with contextlib.suppress(BadSample):
                sizes[number] = image_size(stream.read(length), kind)
    return sizes
