"""Object stores (S3, GCS, Azure) and the other file systems of fsspec.

Nothing here runs a program: a URL has the scheme of a file system of its own, or it is refused. Every process asks
fsspec for its own file systems, so that nothing that was opened before a fork (sockets, event loops) is used after it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from vlad.data.storage.retries import DamagedError, StorageError, with_timeout
from vlad.data.storage.urls import display_url, is_url, scheme
from vlad.utils.errors import UserError, did_you_mean, install_command
from vlad.utils.secrets import HIDDEN

# Other loaders run these as programs.
_PROGRAM = re.compile(r"\s*(pipe|exec|shell|cmd)\s*:", re.IGNORECASE)
# Schemes of fsspec that wrap another file system, an archive or a program.
_NOT_STORES = frozenset(
    "arrow_hdfs asynclocal asyncwrapper async_wrapper blockcache cached dask data dir dvc filecache generic git gist"
    " jlab jupyter libarchive pyscript reference root simplecache tar wandb zip".split()
)
# Here an object appears when its upload is complete; elsewhere files are uploaded under another name and moved.
_ATOMIC_UPLOADS = frozenset(("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "oss", "tos", "memory"))
# Package and extra by scheme. fsspec knows the scheme abfss only once adlfs is installed.
_PACKAGES = {
    **dict.fromkeys(("s3", "s3a"), ("s3fs", "s3")),
    **dict.fromkeys(("gs", "gcs"), ("gcsfs", "gs")),
    **dict.fromkeys(("az", "abfs", "abfss"), ("adlfs", "azure")),
}


def check_location(text: str) -> None:
    """Raises UserError for a path or URL that would run a program, and for a scheme that stores no files."""
    if _PROGRAM.match(text):
        raise UserError(f"data.shards: {text} would run a program; name a directory or a URL.")
    if "::" in re.sub(r"\[[0-9A-Fa-f:.]*\]", "", text) and "://" in text:
        raise UserError(f"data.shards: {display_url(text)} chains file systems (::); name the shards' own location.")
    if not is_url(text):
        return
    if HIDDEN in text:
        raise UserError(
            f"data.shards: the secret of {text} is not stored; give it again, as data.shards=... or in data.mix."
        )
    known = _known_schemes()
    if scheme(text) not in known:
        raise UserError(
            f"data.shards: {display_url(text)}: shards are not read from {scheme(text)}://."
            f"{did_you_mean(scheme(text), known)} Give a path, or a URL that starts with http, https, s3, gs,"
            " az or another store that fsspec knows."
        )


@lru_cache
def _known_schemes() -> frozenset[str]:
    from fsspec import available_protocols

    return frozenset({*available_protocols(), *_PACKAGES} - _NOT_STORES)


def file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it. Raises StorageError where its package is missing."""
    import fsspec

    try:
        fsspec.get_filesystem_class(scheme(url))
    except (ImportError, ValueError) as error:
        package, extra = _PACKAGES.get(scheme(url), ("", ""))
        remedy = f"install {package}: {install_command(extra)}" if package else str(error).rstrip(".")
        raise StorageError(f"{display_url(url)} needs a package that is not installed; {remedy}.") from error
    # fsspec caches one per process, with an event loop of that process.
    system, path = fsspec.core.url_to_fs(url)
    system.invalidate_cache()  # its listings: a shard may have been written since
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
    """The URL of a file that was found at or below `path`, the path of the URL `asked`.

    It keeps the scheme, host and account of `asked`, which a file system's own names lack.
    """
    asked, path = asked.rstrip("/"), path.rstrip("/")
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(reversed(asked), reversed(path), strict=False))
    shared = len(list(same))  # characters at the end of both
    return asked[: len(asked) - shared] + found[len(path) - shared :]


def upload(local: Path, target: str) -> None:
    """Copies a file to a store atomically."""
    system, path = file_system(target)
    atomic = scheme(target) in _ATOMIC_UPLOADS
    uploaded = path if atomic else f"{path}.{os.getpid()}.partial"
    if not atomic:
        system.makedirs(path.rpartition("/")[0], exist_ok=True)
    try:
        system.put_file(str(local), uploaded)
        system.invalidate_cache()
        arrived = system.info(uploaded)["size"]
        if arrived != local.stat().st_size:
            raise DamagedError(f"{arrived} of {local.stat().st_size} bytes arrived")
        if not atomic:
            system.mv(uploaded, path)
    except Exception:  # stores share no class of errors; it is raised again
        if not atomic:
            with contextlib.suppress(Exception):  # the upload's own error is reported
                system.rm_file(uploaded)
        raise
