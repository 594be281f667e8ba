"""The shard cache: whole local copies of remote shards, bounded in size and shared by all processes of a machine.

    URL -> ShardCache.local -> a local file, complete and verified, that stays for as long as it is read

Three kinds of lock files, which the system releases when a process ends, however it ends:

    ID.NAME.lease   one per reader or downloader: a copy with a live lease is not removed
    ID.lock         held while a shard is downloaded: the others wait for it
    lock            held for a moment, while a lease is taken and while copies are removed
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from vlad.data.options import FetchOptions
from vlad.data.storage.locations import MANIFEST
from vlad.data.storage.object_stores import check_location
from vlad.data.storage.remote_files import open_remote
from vlad.data.storage.retries import DamagedError, StorageError, with_retries
from vlad.data.storage.urls import display_url, is_url, local_path
from vlad.utils.locks import NO_LOCKS
from vlad.utils.paths import writable_directory

_COPY = re.compile(r"[0-9a-f]{40}\.(shard|partial)")


class ShardCache:
    """Whole local copies of shards; the least recently used are removed first. Workers get it pickled or forked."""

    def __init__(self, options: FetchOptions | None = None) -> None:
        self.options = options or FetchOptions()

    @property
    def directory(self) -> Path:
        """The directory of the copies."""
        if self.options.directory is not None:
            return Path(self.options.directory)
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlad" / "shards"

    @contextlib.contextmanager
    def local(self, url: str, expected_bytes: int | None = None, sha256: str | None = None) -> Iterator[Path]:
        """The path of the whole shard: a local path itself, else a copy that stays for as long as the context.

        The copy has the expected length, or the one that the server gives, and the checksum if there is one. A shard
        without expectations is taken to never change. Raises StorageError that names the shard.
        """
        url = local_path(url)
        check_location(url)
        if not is_url(url):
            yield Path(url)
            return
        identity = hashlib.sha256(f"{url}\n{expected_bytes}\n{sha256}".encode()).hexdigest()[:40]
        path = writable_directory(self.directory, "the cache of shards") / f"{identity}.shard"
        with self._lease(path):
            if not _is_complete(path, expected_bytes):
                with _locked(path.with_suffix(".lock"), remove=True):
                    if not _is_complete(path, expected_bytes):  # no other process has downloaded it meanwhile
                        self._download(url, path, expected_bytes, sha256)
            with contextlib.suppress(PermissionError):  # it belongs to another user
                os.utime(path)  # used now: it is removed last
            yield path

    @contextlib.contextmanager
    def _lease(self, path: Path) -> Iterator[None]:
        """Keeps all processes from removing a copy, or its unfinished download."""
        lease = path.with_suffix(f".{uuid.uuid4().hex}.lease")
        with contextlib.ExitStack() as held:
            with _locked(self.directory / "lock"):
                held.enter_context(_locked(lease, remove=True))
            yield

    def _download(self, url: str, path: Path, expected_bytes: int | None, sha256: str | None) -> None:
        """Fetches a whole shard, verified and written down to the disk, to `path`."""
        path.unlink(missing_ok=True)  # a damaged copy
        partial_path = path.with_suffix(".partial")
        try:
            with partial_path.open("wb", buffering=0) as stream:
                with_retries(url, self.options, partial(self._try_download, url, stream, expected_bytes, sha256))
            partial_path.replace(path)
        except BaseException:
            partial_path.unlink(missing_ok=True)
            raise

    def _try_download(self, url: str, stream: io.FileIO, expected_bytes: int | None, sha256: str | None) -> None:
        digest, received = hashlib.sha256(), 0
        with open_remote(url, self.options.timeout_seconds) as source:
            length = source.length if source.length is not None else expected_bytes
            if length is None and not source.ends_itself:
                raise StorageError(
                    f"data.shards: {display_url(url)}: the server does not give its length, so that half a shard would"
                    f" pass for a whole one; put its {MANIFEST} beside it."
                )
            if expected_bytes not in (None, length):
                raise DamagedError(f"it has {length} bytes where {expected_bytes} are expected")
            self._make_room(url, stream, length or 0)
            stream.seek(0)
            while block := source.read():
                received += len(block)
                if received > (self.options.max_bytes if length is None else length):
                    raise DamagedError(f"it goes on after {length or self.options.max_bytes} bytes")
                digest.update(block)
                self._write(stream, block)
        if length is not None and received != length:
            raise DamagedError(f"it ended after {received} of {length} bytes")
        if sha256 is not None and digest.hexdigest() != sha256:
            raise DamagedError("its checksum is not the one in the manifest")
        stream.truncate(received)
        os.fsync(stream.fileno())

    def _write(self, stream: io.FileIO, block: bytes) -> None:
        try:
            remaining = memoryview(block)
            while remaining:
                remaining = remaining[stream.write(remaining) :]
        except OSError as error:
            raise self._full(error.strerror) from error

    def _full(self, reason: str | None) -> StorageError:
        return StorageError(
            f"data.fetch: the cache of shards at {self.directory} cannot take another shard ({reason}); make room,"
            " lower data.fetch.max_bytes, or name another directory."
        )

    def _make_room(self, url: str, stream: io.FileIO, needed_bytes: int) -> None:
        """Removes copies without a lease, the least recently used first, until `needed_bytes` more fit in.

        Then makes the open file that long, so that other processes count it.
        """
        if needed_bytes > self.options.max_bytes:
            raise StorageError(
                f"data.shards: {display_url(url)} has {needed_bytes} bytes, more than the whole cache may hold"
                f" (data.fetch.max_bytes = {self.options.max_bytes}); raise it."
            )
        stream.truncate(0)
        with _locked(self.directory / "lock"):
            leased = {lease.name[:40] for lease in self.directory.glob("*.lease") if _is_held(lease)}
            copies = []
            for path in self.directory.iterdir():
                if _COPY.fullmatch(path.name):
                    with contextlib.suppress(FileNotFoundError):
                        status = path.stat()
                        copies.append((path.suffix == ".shard", status.st_mtime_ns, status.st_size, path))
            total = sum(size for _, _, size, _ in copies)
            for _, _, size, path in sorted(copies):  # what a dead process left half downloaded goes first
                if total + needed_bytes <= self.options.max_bytes:
                    break
                if path.stem not in leased:
                    path.unlink(missing_ok=True)
                    total -= size
            if shutil.disk_usage(self.directory).free < needed_bytes:
                raise self._full("its disk is full")
            stream.truncate(needed_bytes)


def _is_complete(path: Path, expected_bytes: int | None) -> bool:
    """Whether there is a finished copy of the right length."""
    return path.is_file() and expected_bytes in (None, path.stat().st_size)


@contextlib.contextmanager
def _locked(path: Path, remove: bool = False) -> Iterator[None]:
    """Holds a lock file, waiting for the process that has it; with `remove` deletes the file at the end."""
    lock = _file_lock(path)
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise StorageError(
            f"data.fetch.directory: its file system has no locks ({error.strerror}); name a directory on a local disk."
        ) from error
    try:
        yield
    finally:
        if lock.is_locked:  # not so in a process that was forked meanwhile
            if remove:
                _remove(path)
            lock.release()


def _is_held(path: Path) -> bool:
    """Whether a live process holds a lock file; the file of a dead one is removed."""
    lock = _file_lock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    _remove(path)
    lock.release()
    return False


def _file_lock(path: Path) -> FileLock:
    # For all users of the machine; a context may end in another thread than it began in.
    return FileLock(path, mode=0o666, thread_local=False, poll_interval=0.01, fallback_to_soft=False)


def _remove(path: Path) -> None:
    """Deletes a lock file that is held: later it may be another process's. Windows cannot, there filelock does it."""
    with contextlib.suppress(PermissionError):
        path.unlink(missing_ok=True)
