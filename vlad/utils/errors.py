"""What a user can get wrong, told in one sentence.

`UserError` is the only exception that the command lines catch: its text names the place and the remedy,
and the process ends with exit code 2. Anything else is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn


class UserError(ValueError):
    """A mistake in what the user gave: what was wrong, where, and what to do about it."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ " Did you mean 'x'?" for the closest of `known`, else the empty string."""
    close = get_close_matches(word, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


OTHERS_WAIT_SECONDS = 3.0  # torchrun looks for ended processes ten times a second
SHARDS_OPTION = "data.shards"  # what names shards in most calls


@contextlib.contextmanager
def told_of(place: str) -> Iterator[None]:
    """For shards that another option or argument names: sentences about `data.shards` are about that one here."""
    try:
        yield
    except UserError as error:
        said = str(error)
        if not said.startswith(f"{SHARDS_OPTION}:") or place == SHARDS_OPTION:
            raise
        raise type(error)(place + said.removeprefix(SHARDS_OPTION)) from error


def local_place(path: Path | str, what: str) -> Path:
    """`path` as a Path, whether anything is there or not.

    Raises UserError where that cannot be known: a name longer than any file's, links that go in circles, a folder
    that may not be looked into. `what` is the option or argument that names it.
    """
    try:
        Path(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        shown = str(path) if len(str(path)) <= 100 else f"{str(path)[:100]}..."
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{what} {shown!r} is no place for files ({reason}); name another.") from error
    return Path(path)


def reason_of(error: Exception) -> str:
    """What an error says, in a line: without the data that some carry along."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def counted(count: int, noun: str) -> str:
    """How many there are: "1 image", "2 images"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def sentence(reason: object) -> str:
    """The reason with one mark at its end, whatever stands there: of an error that is told inside another one."""
    said = " ".join(str(reason).split())
    return said if said.endswith((".", "?", "!")) else f"{said}."


class OptionParser(argparse.ArgumentParser):
    """A parser whose complaints are a UserError like any other: one sentence, without the list of all options."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help lists the options.")


def writable_directory(path: Path | str, purpose: str, needed_bytes: int = 0) -> Path:
    """Makes `path` if need be and proves that it takes `needed_bytes` of files.

    Raises UserError when the path is a file, cannot be written, or its disk has too little room.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write-probe-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"Cannot write {purpose} to {path} ({error.strerror}); name a directory you may write to."
        ) from error
    free_bytes = shutil.disk_usage(path).free
    if free_bytes < needed_bytes:
        raise UserError(
            f"The disk of {path} has {free_bytes / 1e6:.0f} MB free, but {purpose} needs about"
            f" {needed_bytes / 1e6:.0f} MB; make room or name another directory."
        )
    return path


# A forked loader's worker outlives a killed trainer by some seconds, and must not hold its directory for so long.
_LOCKS: set[int] = set()


def _let_go_of_locks() -> None:
    for descriptor in _LOCKS:
        os.close(descriptor)
    _LOCKS.clear()


os.register_at_fork(after_in_child=_let_go_of_locks)


@contextlib.contextmanager
def claimed(directory: Path, what: str) -> Iterator[None]:
    """Holds a directory for this process. Raises UserError when another one works there.

    The lock ends with the process, however that ends.
    """
    path = directory / ".lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    _LOCKS.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.path.samestat(os.fstat(descriptor), path.stat())
        except (BlockingIOError, FileNotFoundError):
            held = False
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise
            # Lustre without `flock`, some network file systems: a run must not fail for the lack of a guard.
            told = (
                f"warning: {directory} cannot be locked ({error.strerror}); let no other process work on {what} there."
            )
            print(told, file=sys.stderr)
            held = True
        if not held:  # or it was held until a moment ago, by one that has removed the file since
            raise UserError(
                f"Another process is at work on {what} in {directory}; wait until it is done, or name another place."
            )
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        _LOCKS.discard(descriptor)
        os.close(descriptor)


def is_file(path: Path | str) -> bool:
    """Whether there is a file at the path; False, and no error, for a name that is too long for any."""
    try:
        return Path(path).is_file()
    except OSError:
        return False


def existing_file(path: Path | str, what: str, remedy: str) -> Path:
    """`path` as a Path. Raises UserError when it is not a readable file."""
    path = Path(path)
    if not is_file(path):
        raise UserError(f"There is no {what} at {path}; {remedy}.")
    if not os.access(path, os.R_OK):
        raise UserError(f"The {what} at {path} cannot be read; give yourself permission to read it.")
    return path


def run_command_line(main: Callable[[], int | None]) -> None:
    """Runs a command line: a UserError becomes its sentence and exit code 2, Ctrl-C becomes exit code 130."""
    # Threads that spin for long while they wait for each other make two programs on one CPU ten times slower, and
    # threads that sleep at once make one program a quarter slower (docs/LOG.md): so they spin for some microseconds.
    # Read when torch is loaded, which every command line does later than this.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    try:
        sys.exit(main() or 0)
    except UserError as error:
        _let_the_first_speak()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)


def _let_the_first_speak() -> None:
    """Of a launcher's processes on a machine most meet the same mistake: the first one tells it, and the launcher ends
    the others while they wait. What another one meets alone, it tells after the wait."""
    local_rank = next((os.environ[name] for name in ("LOCAL_RANK", "SLURM_LOCALID") if name in os.environ), "0")
    if local_rank != "0":
        time.sleep(OTHERS_WAIT_SECONDS)
