"""Locks on directories, so that two processes do not write the same run."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from vlad.utils.errors import UserError

# Lustre without `flock`, some network file systems.
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextlib.contextmanager
def directory_lock(directory: Path, what: str) -> Iterator[None]:
    """Locks a directory for this process. Raises UserError when another process holds it.

    The system releases the lock when the process ends, however it ends. A forked worker does not hold it: it may
    outlive a killed trainer by some seconds.
    """
    path = directory / ".lock"
    lock = FileLock(path, blocking=False, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"Another process is at work on {what} in {directory}; wait until it is done, or name another place."
        ) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        # A run must not fail for the lack of a guard.
        print(
            f"warning: {directory} cannot be locked ({error.strerror}); let no other process work on {what} there.",
            file=sys.stderr,
        )
    try:
        yield
    finally:
        # While it is locked: afterwards the file may be another process's lock. Windows deletes no open file; there
        # filelock removes it.
        with contextlib.suppress(PermissionError):
            path.unlink(missing_ok=True)
        lock.release()
