"""The tar index: where the members of every sample are in a tar, read from its headers alone.

The one reader of tars, for importing, validating and training. Headers are not trusted: what leads out of the archive
is passed over, as are hidden members, devices and members of other kinds, and listed. Links are followed to what the
tar itself holds. Members need not stand side by side. An archive that was appended after another's end mark is read.
"""

from __future__ import annotations

import contextlib
import errno
import io
import posixpath
import re
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vlad.data.decoding import IMAGE_FORMATS, MAX_MEMBER_BYTES, MEMBER_KINDS, BadSample, image_size
from vlad.data.storage.compression import decompress

OUTSIDE = "its path leads out of the tar"
HIDDEN = "hidden or AppleDouble member"
LINK = "link to what the tar does not hold"
DEVICE = "neither a file nor a link"
_MAX_LINKS = 8  # that are followed one after the other
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"]\0\0": "lzma"}
MAX_HEADER_BYTES = 1_000_000  # of a long name; tarfile would read whatever length a header gives


@dataclass(frozen=True)
class SampleMembers:
    """Offset and size in bytes of the members of a sample, by kind."""

    key: str
    members: dict[str, tuple[int, int]]
    # Why the sample cannot be used, as far as the headers show; None: it can.
    fault: str | None = None


@dataclass(frozen=True)
class PassedMember:
    """A member that belongs to no sample, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class TarTable:
    """The samples of a tar, what was passed over, and where it is damaged (None: it is whole)."""

    samples: tuple[SampleMembers, ...]
    passed_over: tuple[PassedMember, ...]
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


@contextlib.contextmanager
def open_unpacked(path: Path) -> Iterator[BinaryIO]:
    """Opens a local tar, by way of a temporary file where it is compressed (gzip, bz2, xz, zstd).

    Raises OSError, and UserError where there is no decompressor for it.
    """
    with open_tar(path) as stream:
        kind = _compression_of(stream)
        if kind is None:
            yield stream
            return
        with tempfile.TemporaryFile() as unpacked:
            decompress(stream, kind, unpacked)
            yield unpacked


def _compression_of(stream: BinaryIO) -> str | None:
    stream.seek(0)
    beginning = stream.read(tarfile.BLOCKSIZE)
    if beginning[257:262] == b"ustar":  # its first member may have any name
        return None
    return next((kind for mark, kind in _COMPRESSIONS.items() if beginning.startswith(mark)), None)


def scan_tar(stream: BinaryIO, kinds: frozenset[str] = MEMBER_KINDS) -> TarTable:
    """Reads the headers of a tar. Damage never raises: it is reported, and the samples before it are kept.

    Members of other kinds than the given ones are passed over.
    """
    members, damage = _Members(kinds), None
    length = stream.seek(0, io.SEEK_END)
    try:
        kind = _compression_of(stream)
        if kind is not None:
            raise tarfile.ReadError(f"it is compressed with {kind}; unpack it")
        start: int | None = 0
        while start is not None:
            start = _scan_archive(stream, start, length, members)
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, RecursionError) as error:
        damage = " ".join(str(error).split())[:200] or type(error).__name__
    samples = members.samples()
    return TarTable(samples, tuple(members.passed_over), damage)


def _scan_archive(stream: BinaryIO, start: int, length: int, members: _Members) -> int | None:
    """Adds the members of the archive at `start`; returns where another one begins behind it, None for nowhere."""
    stream.seek(start)
    with tarfile.open(fileobj=_HeaderReader(stream), mode="r:") as archive:
        for member in archive:
            if member.size < 0 or member.offset_data + member.size > length:
                raise tarfile.ReadError(f"it ends within {member.name}")
            members.add(member)
        stop = archive.offset
    # tarfile takes a header that it cannot read for the end of the archive; at the true end there are zeros.
    stream.seek(stop)
    mark = stream.read(tarfile.BLOCKSIZE)
    if not mark or any(mark):
        raise tarfile.ReadError(f"byte {stop} begins neither a member nor the end mark")
    at = stop + tarfile.BLOCKSIZE
    while block := stream.read(MAX_HEADER_BYTES // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE):
        filled = len(block) - len(block.lstrip(b"\0"))
        if filled < len(block):
            at += filled // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
            stream.seek(at)
            try:
                tarfile.TarInfo.frombuf(stream.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
                return at
            except tarfile.HeaderError:
                if at == stop + tarfile.BLOCKSIZE:
                    raise tarfile.ReadError(f"byte {at} follows half an end mark") from None
                return None  # what other programs leave behind an archive
        at += len(block)
    return None


@dataclass
class _Members:
    """The members of a tar as they are read, and the samples that they make up."""

    kinds: frozenset[str]
    # Name, and place (offset, size) or the name of a link's target, in the tar's order.
    found: list[tuple[str, tuple[int, int] | str]] = field(default_factory=list)
    places: dict[str, tuple[int, int] | str] = field(default_factory=dict)
    passed_over: list[PassedMember] = field(default_factory=list)

    def add(self, member: tarfile.TarInfo) -> None:
        """Adds what a header describes, or passes it over."""
        parts = re.split(r"[/\\]", member.name)
        place: tuple[int, int] | str = (member.offset_data, member.size)
        if member.isdir():
            return
        if member.issym():
            place = posixpath.normpath(posixpath.join(posixpath.dirname(member.name), member.linkname))
        elif member.islnk():
            place = posixpath.normpath(member.linkname)
        elif not member.isreg() or member.sparse is not None:
            self.passed_over.append(PassedMember(member.name, DEVICE))
            return
        if not parts[0] or ".." in parts:
            self.passed_over.append(PassedMember(member.name, OUTSIDE))
            return
        self.places[posixpath.normpath(member.name)] = place
        if any((part.startswith(".") and part != ".") or part == "__MACOSX" for part in parts):
            self.passed_over.append(PassedMember(member.name, HIDDEN))
        else:
            self.found.append((member.name, place))

    def samples(self) -> tuple[SampleMembers, ...]:
        """The samples, in the order of their first members."""
        named = [(name, place, self._split(name)) for name, place in self.found]
        whole_keys = {split[0] for name, _, split in named if split is not None and not _has_dot(split[0])}
        grouped: list[SampleMembers] = []
        last: dict[str, int] = {}  # the newest sample of each key
        for name, found, split in named:
            place = self._follow(found)
            # A key may hold dots, unless what stands before the first of them is a sample: a.seg.png belongs to a.png.
            if split is None or (_has_dot(split[0]) and _to_first_dot(split[0]) in whole_keys):
                self.passed_over.append(PassedMember(name, f"member of another kind ({_kind_shown(name)})"))
            elif place is None:
                self.passed_over.append(PassedMember(name, LINK))
            else:
                _add_member(grouped, last, *split, place)
        return tuple(grouped)

    def _follow(self, place: tuple[int, int] | str) -> tuple[int, int] | None:
        """Where a link's target is; None where the tar does not hold it."""
        for _ in range(_MAX_LINKS):
            if isinstance(place, tuple):
                return place
            place = self.places.get(place, "")
        return None

    def _split(self, name: str) -> tuple[str, str] | None:
        """Key and kind: what stands before and after the first dot of the file's name that a known kind follows."""
        folder, slash, file = name.rpartition("/")
        for dot in re.finditer(r"[.]", file):
            kind = file[dot.end() :].lower()
            if kind in self.kinds and dot.start():
                return f"{folder}{slash}{file[: dot.start()]}", kind
        return None


def _has_dot(key: str) -> bool:
    return "." in key.rpartition("/")[2]


def _to_first_dot(key: str) -> str:
    folder, slash, file = key.rpartition("/")
    return f"{folder}{slash}{file.partition('.')[0]}"


def _kind_shown(name: str) -> str:
    kind = name.rpartition("/")[2].partition(".")[2]
    return f".{kind}" if kind else "no extension"


def _add_member(
    grouped: list[SampleMembers], last: dict[str, int], key: str, kind: str, place: tuple[int, int]
) -> None:
    fault = None
    if place[1] > MAX_MEMBER_BYTES:
        fault = f"its {kind} has {place[1]} bytes, over the limit of {MAX_MEMBER_BYTES}"
    at = last.get(key)
    # A key that comes again with all its members is another sample of that name.
    if at is None or (at < len(grouped) - 1 and kind in grouped[at].members):
        last[key] = len(grouped)
        grouped.append(SampleMembers(key, {kind: place}, fault))
        return
    before = grouped[at]
    if kind in before.members:
        fault = f"it has two members of kind {kind}"
    grouped[at] = SampleMembers(key, {**before.members, kind: place}, before.fault or fault)


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
