"""Translates what libraries raise into `UserError`: out of memory, full disk, lost worker, unreadable file.

Libraries share no class for these, and say some of them in words alone. Classes of torch, safetensors and diffusers are
known by their names here, so that nothing heavy is imported.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from vlad.utils.errors import UserError, reason_of

# How gloo, NCCL and the store say that somebody no longer answers; torch has a class of its own for some of them only.
_LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|timed? ?out|broken pipe|socket", re.IGNORECASE)
_FULL = ("file write failed", "No space left", "Disk quota exceeded")


@contextmanager
def user_errors(
    what: str,
    *,
    memory: str | None = None,
    disk: str | None = None,
    worker: str | None = None,
    port: str | None = None,
    unreadable: str | None = None,
) -> Iterator[None]:
    """Inside the block the failures for which a remedy is given become a UserError that ends with it.

    what: how the message begins: a stage's label, or the file or folder that is read.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # libraries share no class for these
        if is_out_of_memory(error):
            kind, remedy = "out of memory", memory
        elif is_taken_port(error):
            kind, remedy = "the port for the ranks to meet at is taken", port
        elif re.search(r"DataLoader worker \(pid", str(error)):
            kind, remedy = "a data-loading worker was lost", worker
        elif is_full_disk(error):
            kind, remedy = "no space left on the disk", disk
        else:  # a damaged, missing or foreign file, or one with code in it, which is not run
            kind, remedy = "cannot be read", unreadable
        if remedy is None:
            raise
        raise UserError(f"{what} {kind} ({reason_of(error)}); {remedy}.".lstrip()) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: a GPU's, or the machine's, for which torch has no class of its own."""
    return isinstance(error, MemoryError) or _is_a(error, "OutOfMemoryError") or "can't allocate memory" in str(error)


def is_full_disk(error: BaseException | None) -> bool:
    """Whether a disk without room stopped a write; some writers say it in words, or pass the cause on."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(error) for words in _FULL):  # torch's and safetensors' writers, a loader's process
            return True
        error = error.__cause__ or error.__context__
    return False


def is_taken_port(error: BaseException) -> bool:
    """Whether another process listens on the port at which the ranks of a launch were to meet (MASTER_PORT)."""
    return "EADDRINUSE" in str(error)


def is_lost_connection(error: BaseException) -> bool:
    """Whether a collective failed because another rank no longer took part."""
    if is_taken_port(error):
        return False
    return _is_a(error, "DistError") or (isinstance(error, RuntimeError) and _LOST.search(str(error)) is not None)


def _is_a(error: BaseException, *names: str) -> bool:
    return any(kind.__name__ in names for kind in type(error).__mro__)
