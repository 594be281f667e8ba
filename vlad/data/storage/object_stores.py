"""Object stores and all other file systems that fsspec knows.

Nothing here runs a program: a URL has a scheme that fsspec knows as a file system of its own, or it is refused.
fsspec's file systems are asked for anew in every process, so that nothing that was opened before a fork (sockets,
event loops) is used after it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from pathlib import Path
from typing import Any

from vlad.data.storage.retries import DamagedError, StorageError, with_timeout
from vlad.data.storage.urls import is_url, scheme, shown
from vlad.utils.errors import UserError, did_you_mean, install_command

# What other loaders take for a program to run.
_PROGRAM = re.compile(r"\s*(pipe|exec|shell|cmd)\s*:", re.IGNORECASE)
# fsspec's names that read another file system, an archive or a program's answer in place of a store of files.
_NO_STORES = frozenset(
    "arrow_hdfs asynclocal asyncwrapper async_wrapper blockcache cached dask data dir dvc filecache generic git gist"
    " jlab jupyter libarchive pyscript reference root simplecache tar wandb zip".split()
)
# Here an object appears when its upload is complete; elsewhere it is uploaded under another name and moved.
_WHOLE_UPLOADS = frozenset(("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "oss", "tos", "memory"))
# The packages that our extras install. fsspec knows the scheme abfss only once adlfs is there.
_PACKAGES = {
    **dict.fromkeys(("s3", "s3a"), ("s3fs", "s3")),
    **dict.fromkeys(("gs", "gcs"), ("gcsfs", "gs")),
    **dict.fromkeys(("az", "abfs", "abfss"), ("adlfs", "azure")),
}


def refuse_programs(text: str) -> None:
    """Raises UserError for what would run a program, and for a scheme that is not a place where files lie."""
    if _PROGRAM.match(text):
        raise UserError(f"data.shards: {text} would run a program; name a directory or a URL.")
    if "::" in re.sub(r"\[[0-9A-Fa-f:.]*\]", "", text) and "://" in text:
        raise UserError(f"data.shards: {shown(text)} chains file systems (::); name the place of the shards itself.")
    if not is_url(text):
        return
    from fsspec import available_protocols

    known = {*available_protocols(), *_PACKAGES} - _NO_STORES
    if scheme(text) not in known:
        raise UserError(
            f"data.shards: {shown(text)}: shards are not read from {scheme(text)}://."
            f"{did_you_mean(scheme(text), known)} Give a path, or a URL that starts with http, https, s3, gs,"
            " az or another store that fsspec knows."
        )


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, with the path in it. Raises StorageError where its package is missing."""
    import fsspec

    try:
        fsspec.get_filesystem_class(scheme(url))
    except (ImportError, ValueError) as error:
        package, extra = _PACKAGES.get(scheme(url), ("", ""))
        remedy = f"install {package}: {install_command(extra)}" if package else str(error).rstrip(".")
        raise StorageError(f"{shown(url)} needs a package that is not installed; {remedy}.") from error
    # fsspec keeps one a process, with an event loop of that process (asked for in the worker, not before).
    system, path = fsspec.core.url_to_fs(url)
    system.invalidate_cache()  # of listings: a shard may have been written since
    return system, path


def glob(url: str, timeout_seconds: float) -> list[str]:
    """The URLs of the files that a pattern (`*`, `?`, `[...]`) stands for."""
    system, path = file_system(url)
    return [_url_of(found, url, path) for found in with_timeout(timeout_seconds, system.glob, path)]


def list_directory(directory: str, suffix: str, timeout_seconds: float) -> list[str]:
    """The URLs of a directory's files whose names end in `suffix`; none where there is no such directory."""
    system, path = file_system(directory)
    try:
        entries = with_timeout(timeout_seconds, system.ls, path, True)
    except FileNotFoundError:
        return []
    return [_url_of(entry["name"], directory, path) for entry in entries if entry["name"].endswith(suffix)]


def _url_of(found: str, asked: str, path: str) -> str:
    """The URL of what was found at, or below, a path that was asked for by a URL.

    With the scheme, host and account that it was asked with: a file system's own names for its files have none.
    """
    asked, path = asked.rstrip("/"), path.rstrip("/")
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(reversed(asked), reversed(path), strict=False))
    shared = len(list(same))  # characters at the end of both
    return asked[: len(asked) - shared] + found[len(path) - shared :]


def upload(local: Path, target: str) -> None:
    """Copies a file to a store, where it appears whole or not at all."""
    system, path = file_system(target)
    whole = scheme(target) in _WHOLE_UPLOADS
    uploaded = path if whole else f"{path}.{os.getpid()}.partial"
    if not whole:
        system.makedirs(path.rpartition("/")[0], exist_ok=True)
    try:
        system.put_file(str(local), uploaded)
        system.invalidate_cache()
        arrived = system.info(uploaded)["size"]
        if arrived != local.stat().st_size:
            raise DamagedError(f"{arrived} of {local.stat().st_size} bytes arrived")
        if not whole:
            system.mv(uploaded, path)
    except Exception:
        if not whole:
            with contextlib.suppress(Exception):  # the upload's own failure is what is to be told
                system.rm_file(uploaded)
        raise
