"""Locations of shards and their files: local paths, HTTP(S) and object stores behind the same few functions.

    pattern -> expand_pattern -> paths and URLs -> read_bytes, list_files, exists, publish
                                                -> a whole local copy: shard_cache

`remote_files` opens a URL, `object_stores` holds what only fsspec can do, `retries` tries again.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import shutil
import urllib.error
import urllib.parse
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from braceexpand import braceexpand

from vlad.data.options import FetchOptions
from vlad.data.storage import object_stores
from vlad.data.storage.object_stores import check_location
from vlad.data.storage.remote_files import open_remote
from vlad.data.storage.retries import DamagedError, StorageError, with_retries
from vlad.data.storage.urls import HTTP_SCHEMES, display_url, is_url, join_path, local_path, scheme
from vlad.utils.errors import UserError, reason_of
from vlad.utils.paths import checked_path

SHARDS_OPTION = "data.shards"  # the option that names shards unless `errors_naming` says otherwise
MANIFEST = "manifest.json"  # describes the shards of a directory, and lists them where a server cannot
MAX_PATHS = 1_000_000  # a brace range of more is a mistyped one
MAX_NESTED_BRACES = 20
# The errors of parsing a text that is not a manifest.
NOT_A_MANIFEST = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(\.\.-?\d+)?")
_LETTER_RANGE = re.compile(r"[A-Za-z]\.\.[A-Za-z](\.\.-?\d+)?")
_INNERMOST_BRACES = re.compile(r"(?<!\\)\{([^{}]*)(?<!\\)\}")


@contextlib.contextmanager
def errors_naming(option: str) -> Iterator[None]:
    """Lets errors about `data.shards` name another option or argument, where that one names the shards."""
    try:
        yield
    except UserError as error:
        message = str(error)
        if not message.startswith(f"{SHARDS_OPTION}:") or option == SHARDS_OPTION:
            raise
        raise type(error)(option + message.removeprefix(SHARDS_OPTION)) from error


# Finding


def expand_pattern(pattern: str, options: FetchOptions | None = None) -> tuple[str, ...]:
    """The tar files of a directory, a glob or a brace pattern, local or remote, sorted.

    An HTTP server does not list files: there a brace pattern names the shards, or the manifest of the directory does.
    Raises UserError when there are none, and for a pattern that would run a program (`pipe:`).
    """
    if not pattern.strip():
        raise UserError("data.shards is empty; name a directory, a pattern or a URL.")
    found: list[str] = []
    missing: list[str] = []
    parts = [local_path(pattern)] if _exists_locally(pattern) else expand_braces(pattern)
    for part in parts:
        check_location(part)
        if not is_url(part):
            if checked_path(part, f"{SHARDS_OPTION}:").is_dir() and not os.access(part, os.R_OK | os.X_OK):
                raise UserError(f"data.shards: {part} cannot be read; give yourself permission to read it.")
            matched = [str(path) for path in Path(part).glob("*.tar")] if Path(part).is_dir() else _glob_locally(part)
            found += matched
            missing += [] if matched else [part]
        elif scheme(part) in HTTP_SCHEMES:
            found += _expand_http(part, options or FetchOptions())
        else:
            found += _expand_store(part, options or FetchOptions())
    if not found:
        raise UserError(
            f"data.shards: there are no shards at {display_url(pattern)}; make some with tools/render_shards.py"
            " (rendered signs) or tools/make_shards.py (your images)."
        )
    if missing:
        raise UserError(
            f"data.shards: {len(missing)} of the {len(parts)} shards that {pattern} names are missing (the first:"
            f" {missing[0]}); bring them back, or name those that are there by *.tar."
        )
    return tuple(sorted(set(found)))


def _exists_locally(pattern: str) -> bool:
    try:
        return not is_url(local_path(pattern)) and Path(local_path(pattern)).exists()
    except (OSError, ValueError):  # a pattern may be longer than any file's name
        return False


def _glob_locally(pattern: str) -> list[str]:
    """The files that a local pattern stands for; brackets in the name of what exists are no pattern."""
    known = next(path for path in (Path(pattern), *Path(pattern).parents) if path.exists())
    rest = Path(pattern).relative_to(known).parts
    # glob: Path.glob takes no absolute patterns.
    return glob.glob(str(Path(glob.escape(str(known)), *rest)))  # noqa: PTH207


def expand_braces(pattern: str) -> list[str]:
    """The paths and URLs that a brace pattern stands for, in its order.

    Raises UserError for a brace without its partner, and for a pattern of more than MAX_PATHS.
    """
    parts = []
    # The expansion keeps all of a range in memory, so a mistyped one must not come to it.
    if _max_expansions(pattern) <= MAX_PATHS:
        try:
            parts = list(braceexpand(pattern))
        except ValueError as error:
            raise UserError(
                f"data.shards: {display_url(pattern)} has a brace without its partner; close it, or escape it."
            ) from error
    if not parts:
        raise UserError(f"data.shards: {display_url(pattern)} stands for over {MAX_PATHS} shards; fix its range.")
    return [local_path(part) for part in parts]


def _max_expansions(pattern: str) -> int:
    """An upper bound of the number of texts that a brace pattern stands for, without expanding it."""
    bound = 1
    for _ in range(MAX_NESTED_BRACES):
        bodies = _INNERMOST_BRACES.findall(pattern)
        if not bodies:
            return bound
        for body in bodies:
            if _RANGE.fullmatch(body):
                bound *= _range_length(body)
            else:
                bound *= 52 if _LETTER_RANGE.fullmatch(body) else body.count(",") + 1
            if bound > MAX_PATHS:
                return bound
        pattern = _INNERMOST_BRACES.sub("", pattern)
    return MAX_PATHS + 1


def _range_length(body: str) -> int:
    first, last = body.split("..")[:2]
    if max(len(first), len(last)) > len(str(MAX_PATHS)) + 6:  # shards are numbered with leading zeros
        return MAX_PATHS + 1
    return abs(int(last) - int(first)) + 1


def _expand_http(url: str, options: FetchOptions) -> list[str]:
    path = urllib.parse.urlsplit(url).path
    if "*" in path:
        raise UserError(
            f"data.shards: {display_url(url)}: a web server does not list its files; write a brace pattern such as"
            " {000000..000999}.tar."
        )
    if path.endswith(".tar"):
        return [url]
    try:
        return [join_path(url, name) for name in _manifest_names(read_bytes(join_path(url, MANIFEST), options))]
    except StorageError as error:
        reason = str(error).removeprefix(f"{SHARDS_OPTION}: ")
        raise UserError(
            f"data.shards: {display_url(url)}: a web server does not list its files, and there is no {MANIFEST} in this"
            f" directory; write a brace pattern such as {{000000..000999}}.tar. ({reason})"
        ) from error
    except NOT_A_MANIFEST as error:
        raise UserError(
            f"data.shards: {display_url(join_path(url, MANIFEST))} is no shard manifest ({reason_of(error)})."
        ) from error


def _manifest_names(data: bytes) -> list[str]:
    names = [entry["name"] for entry in json.loads(data)["shards"]]
    for name in names:
        if not isinstance(name, str) or PurePosixPath(name).name != name or "\\" in name:
            raise ValueError(f"{name!r} is not the name of a shard")
    return names


def _expand_store(url: str, options: FetchOptions) -> list[str]:
    if any(character in url for character in "*?["):
        found = with_retries(url, options, partial(object_stores.glob, url, options.timeout_seconds))
        if found or any(character in url for character in "*?"):
            return found
    return [url] if url.endswith(".tar") else list(list_files(url, ".tar", options))


# Reading and writing


def list_files(directory: str, suffix: str, options: FetchOptions | None = None) -> tuple[str, ...]:
    """The files of a directory whose names end in `suffix`, sorted; none where there is no such directory.

    Raises StorageError for a location that cannot be listed, such as a web server.
    """
    directory = local_path(directory)
    check_location(directory)
    if not is_url(directory):
        return tuple(sorted(str(path) for path in Path(directory).glob("*") if path.name.endswith(suffix)))
    if scheme(directory) in HTTP_SCHEMES:
        raise StorageError(f"{display_url(directory)}: a web server does not list its files.")
    options = options or FetchOptions()
    listing = partial(object_stores.list_directory, directory, suffix, options.timeout_seconds)
    return tuple(sorted(with_retries(directory, options, listing)))


def read_bytes(url: str, options: FetchOptions | None = None, max_bytes: int = 256_000_000) -> bytes:
    """The contents of a local or remote file. Raises StorageError where it cannot be read, or exceeds `max_bytes`."""
    url = local_path(url)
    check_location(url)
    if not is_url(url):
        try:
            with Path(url).open("rb") as stream:
                data = stream.read(max_bytes + 1)
        except OSError as error:
            raise StorageError(f"{url} cannot be read ({error.strerror}).") from error
    else:
        options = options or FetchOptions()
        data = with_retries(url, options, partial(_read_remote, url, max_bytes, options.timeout_seconds))
    if len(data) > max_bytes:
        raise StorageError(f"{display_url(url)} is longer than {max_bytes} bytes, so it is not what its name says.")
    return data


def _read_remote(url: str, max_bytes: int, timeout_seconds: float) -> bytes:
    data = bytearray()
    with open_remote(url, timeout_seconds) as source:
        while len(data) <= max_bytes and (block := source.read()):
            data += block
        if source.length is not None and len(data) < min(source.length, max_bytes):
            raise DamagedError(f"it ended after {len(data)} of {source.length} bytes")
    return bytes(data)


def exists(url: str, options: FetchOptions | None = None) -> bool:
    """Whether there is a file that may be read; some stores answer that access is refused for what is missing.

    Raises StorageError where that cannot be found out.
    """
    url = local_path(url)
    check_location(url)
    if not is_url(url):
        return Path(url).is_file()
    options = options or FetchOptions()
    return with_retries(url, options, partial(_exists_remote, url, options.timeout_seconds))


def _exists_remote(url: str, timeout_seconds: float) -> bool:
    try:
        # A GET: not every server knows HEAD.
        with open_remote(url, timeout_seconds):
            return True
    except (FileNotFoundError, PermissionError):
        return False
    except urllib.error.HTTPError as error:
        if error.code in (403, 404, 410):
            return False
        raise


def publish(local: Path, target: str, options: FetchOptions | None = None) -> None:
    """Copies a finished file to a path or URL atomically, replacing any that is there.

    Raises StorageError for a location that takes no files.
    """
    target = local_path(target)
    check_location(target)
    if not is_url(target):
        _publish_locally(local, Path(target))
    elif scheme(target) in HTTP_SCHEMES:
        raise StorageError(
            f"{display_url(target)}: nothing is written over HTTP; name a directory or a store (s3://, gs://)."
        )
    else:
        options = options or FetchOptions()
        with_retries(target, options, partial(object_stores.upload, local, target))


def _publish_locally(local: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with local.open("rb") as source, temporary.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
            copy.flush()
            os.fsync(copy.fileno())
        temporary.replace(target)
    except OSError as error:
        raise StorageError(f"{target} cannot be written ({error.strerror}).") from error
    finally:
        temporary.unlink(missing_ok=True)
