"""Whole local copies of the shards that are far away.

URL -> ShardCache.local -> a local file, complete and compared, for as long as it is read
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from vlad.data.options import FetchOptions
from vlad.data.storage.locations import MANIFEST
from vlad.data.storage.object_stores import refuse_programs
from vlad.data.storage.remote_files import open_remote
from vlad.data.storage.retries import DamagedError, StorageError, attempts
from vlad.data.storage.urls import is_url, local_path, shown
from vlad.utils.paths import writable_directory

try:
    import fcntl
except ImportError:  # Windows: shards are read from the machine's own disks only
    fcntl = None  # type: ignore[assignment]

_CACHED_NAME = re.compile(r"[0-9a-f]{40}\.(shard|partial)")


class ShardCache:
    """Whole local copies of shards, shared by all processes of a machine, the least recently used removed first.

    A copy is locked while it is read (shared) or written (exclusively) with locks of the open file, which end with
    the process that holds them: nothing is left behind that others would wait for.
    """

    def __init__(self, options: FetchOptions | None = None) -> None:
        self.options = options or FetchOptions()

    @property
    def directory(self) -> Path:
        """Where the copies lie."""
        if self.options.directory is not None:
            return Path(self.options.directory)
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlad" / "shards"

    @contextlib.contextmanager
    def local(self, url: str, expected_bytes: int | None = None, sha256: str | None = None) -> Iterator[Path]:
        """The path of the whole shard: a local path itself, else a copy that stays for as long as the context.

        The copy has the length that is expected or that the server says, and the checksum where one is given. A shard
        of which nothing is expected is taken as never changing. Raises StorageError that names the shard.
        """
        url = local_path(url)
        refuse_programs(url)
        if not is_url(url):
            yield Path(url)
            return
        if fcntl is None:
            raise StorageError(
                f"data.shards: {shown(url)}: the cache of shards needs shared file locks, which this system does not"
                " have; copy the shards to this machine and name their folder."
            )
        identity = hashlib.sha256(f"{url}\n{expected_bytes}\n{sha256}".encode()).hexdigest()[:40]
        path = writable_directory(self.directory, "the cache of shards") / f"{identity}.shard"
        descriptor = self._acquire(url, path, expected_bytes, sha256)
        try:
            yield path
        finally:
            # Said outright: a process that was forked meanwhile has this open file too.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def _acquire(self, url: str, path: Path, expected_bytes: int | None, sha256: str | None) -> int:
        """A descriptor of the copy, locked for reading; the shard is downloaded if need be."""
        partial_path = path.with_suffix(".partial")
        while True:
            descriptor = _open_copy(path, expected_bytes)
            if descriptor is not None:
                return descriptor
            descriptor = os.open(partial_path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                if not _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    _lock(descriptor, fcntl.LOCK_SH)  # granted when who downloads it is done, or gone
                elif not _stands_at(descriptor, partial_path):
                    pass  # finished or given up between opening and locking
                elif path.exists():
                    partial_path.unlink()
                else:
                    try:
                        self._download(url, descriptor, expected_bytes, sha256)
                        partial_path.rename(path)
                    except BaseException:
                        partial_path.unlink(missing_ok=True)
                        raise
                    _lock(descriptor, fcntl.LOCK_SH)
                    if _stands_at(descriptor, path):
                        kept, descriptor = descriptor, -1
                        return kept
            finally:
                if descriptor != -1:
                    fcntl.flock(descriptor, fcntl.LOCK_UN)
                    os.close(descriptor)

    def _download(self, url: str, descriptor: int, expected_bytes: int | None, sha256: str | None) -> None:
        """Fills the open file with the whole shard, verified and down to the disk."""
        attempts(url, self.options, partial(self._try_download, url, descriptor, expected_bytes, sha256))

    def _try_download(self, url: str, descriptor: int, expected_bytes: int | None, sha256: str | None) -> None:
        digest, received = hashlib.sha256(), 0
        with open_remote(url, self.options.timeout_seconds) as source:
            length = source.length if source.length is not None else expected_bytes
            if length is None and not source.ends_itself:
                raise StorageError(
                    f"data.shards: {shown(url)}: the server does not say how long it is, so that half a shard would"
                    f" pass for a whole one; put its {MANIFEST} beside it."
                )
            if expected_bytes not in (None, length):
                raise DamagedError(f"it has {length} bytes where {expected_bytes} are expected")
            self._make_room(url, descriptor, length or 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            while block := source.read():
                received += len(block)
                if received > (self.options.max_bytes if length is None else length):
                    raise DamagedError(f"it goes on after {length or self.options.max_bytes} bytes")
                digest.update(block)
                self._write(descriptor, block)
        if length is not None and received != length:
            raise DamagedError(f"it ended after {received} of {length} bytes")
        if sha256 is not None and digest.hexdigest() != sha256:
            raise DamagedError("its checksum is not the one in the manifest")
        os.truncate(descriptor, received)
        os.fsync(descriptor)

    def _write(self, descriptor: int, block: bytes) -> None:
        try:
            remaining = memoryview(block)
            while remaining:
                remaining = remaining[os.write(descriptor, remaining) :]
        except OSError as error:
            raise self._full(error.strerror) from error

    def _full(self, reason: str | None) -> StorageError:
        return StorageError(
            f"data.fetch: the cache of shards at {self.directory} cannot take another shard ({reason}); make room,"
            " lower data.fetch.max_bytes, or name another directory."
        )

    def _make_room(self, url: str, descriptor: int, needed_bytes: int) -> None:
        """Removes copies that nobody reads, the least recently used first, until `needed_bytes` more fit in.

        Then the open file is made that long, so that others who make room count it.
        """
        if needed_bytes > self.options.max_bytes:
            raise StorageError(
                f"data.shards: {shown(url)} has {needed_bytes} bytes, more than the whole cache may hold"
                f" (data.fetch.max_bytes = {self.options.max_bytes}); raise it."
            )
        os.truncate(descriptor, 0)
        guard = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(guard, fcntl.LOCK_EX)
            copies = []
            for path in self.directory.iterdir():
                if _CACHED_NAME.fullmatch(path.name):
                    with contextlib.suppress(FileNotFoundError):
                        status = path.stat()
                        copies.append((path.suffix == ".shard", status.st_mtime_ns, status.st_size, path))
            total = sum(size for _, _, size, _ in copies)
            for _, _, size, path in sorted(copies):  # what a dead process left half downloaded goes first
                if total + needed_bytes <= self.options.max_bytes:
                    break
                if _remove_unused(path):
                    total -= size
            if shutil.disk_usage(self.directory).free < needed_bytes:
                raise self._full("its disk is full")
            os.truncate(descriptor, needed_bytes)
        finally:
            fcntl.flock(guard, fcntl.LOCK_UN)
            os.close(guard)


def _open_copy(path: Path, expected_bytes: int | None) -> int | None:
    """A descriptor of a finished copy, locked for reading; None where there is none of the right length."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    _lock(descriptor, fcntl.LOCK_SH)
    if _stands_at(descriptor, path):
        if expected_bytes in (None, os.fstat(descriptor).st_size):
            with contextlib.suppress(PermissionError):  # it belongs to another user
                os.utime(descriptor)  # used now: it is removed last
            return descriptor
        path.unlink()
    os.close(descriptor)
    return None


def _remove_unused(path: Path) -> bool:
    """Removes a copy unless a process has it locked; whether it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        if not _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
            return False
        if _stands_at(descriptor, path):
            path.unlink()
        return True
    finally:
        os.close(descriptor)


def _lock(descriptor: int, operation: int) -> bool:
    """Takes a lock of the open file; False where it is held by another and the operation does not wait."""
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        raise StorageError(
            f"data.fetch.directory: its file system knows no locks ({error.strerror}); name a directory on a local"
            " disk."
        ) from error
    return True


def _stands_at(descriptor: int, path: Path) -> bool:
    """Whether the path still names the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
