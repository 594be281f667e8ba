"""Checks of paths that a user names: they can be looked up, read, or written to."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from vlad.utils.errors import UserError


def checked_path(path: Path | str, what: str) -> Path:
    """`path` as a Path, whether it exists or not.

    Raises UserError where the system cannot tell: a name that is too long, symbolic links in a circle, a folder
    without permission to enter. `what` is the option or argument that names it.
    """
    try:
        Path(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        shown = str(path) if len(str(path)) <= 100 else f"{str(path)[:100]}..."
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{what} {shown!r} is not a usable path ({reason}); name another.") from error
    return Path(path)


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


def writable_directory(path: Path | str, purpose: str, needed_bytes: int = 0) -> Path:
    """Creates `path` if need be and checks that files of `needed_bytes` can be written to it.

    Raises UserError when the path is a file, cannot be written, or its disk has too little room.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        # A name of its own: other threads, and other machines, may try the same directory.
        with tempfile.NamedTemporaryFile(dir=path, prefix=".write-probe-"):
            pass
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
