"""Where shards lie: local paths, HTTP(S), and object stores through fsspec.

    pattern -> expand -> paths and URLs -> read_bytes, or a whole local copy (`shard_cache`)

Nothing here runs a program: a URL has a scheme that fsspec knows as a file system of its own, or it is refused.
HTTP goes through the standard library and fsspec's file systems are asked for anew in every process, so that
nothing that was opened before a fork (sockets, event loops) is used after it.
"""

from __future__ import annotations

import base64
import contextlib
import glob
import http.client
import itertools
import json
import os
import random
import re
import shutil
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from braceexpand import braceexpand

import vlad
from vlad.errors import UserError, did_you_mean

Result = TypeVar("Result")

MANIFEST = "manifest.json"  # describes the shards of a directory, and lists them where a server cannot
MAX_PATHS = 1_000_000  # a brace range of more is a mistyped one
HTTP_SCHEMES = ("http", "https")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)")
# What other loaders take for a program to run.
_PROGRAM = re.compile(r"\s*(pipe|exec|shell|cmd)\s*:", re.IGNORECASE)
# fsspec's names that read another file system, an archive or a program's answer in place of a store of files.
_NO_STORES = frozenset(
    "arrow_hdfs asynclocal asyncwrapper async_wrapper blockcache cached dask data dir dvc filecache generic git gist"
    " jlab jupyter libarchive pyscript reference root simplecache tar wandb zip".split()
)
# Here an object appears when its upload is complete; elsewhere it is uploaded under another name and moved.
_WHOLE_UPLOADS = frozenset(("s3", "s3a", "gs", "gcs", "az", "abfs", "oci", "oss", "tos", "memory"))
_EXTRAS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}

BLOCK_BYTES = 8 << 20  # read from a store at once
MOST_RETRIES, DAY_SECONDS = 1000, 86400
LONGEST_WAIT_SECONDS = 60.0  # between two tries
_NOT_TRANSIENT = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError")
_JITTER = random.SystemRandom()  # draws nothing from the generators that a run is seeded with


class StorageError(UserError):
    """Something that cannot be read or written where it lies; found before or while a run reads."""

    def __init__(self, message: str) -> None:
        # A DataLoader makes a worker's exception again from its whole traceback: our sentence is its end.
        kind = type(self)
        super().__init__(message.rpartition(f"{kind.__module__}.{kind.__name__}: ")[2].strip())


class DamagedError(OSError):
    """What arrived is not what was sent: worth another try."""


@dataclass(frozen=True)
class FetchOptions:
    """How shards that are not local are fetched and kept."""

    # None: the user's cache directory ($XDG_CACHE_HOME or ~/.cache), in vlad/shards. Shared by all runs of a machine.
    directory: str | None = None
    # The shards read last stay up to this; those being read right now stay in any case.
    max_bytes: int = 20_000_000_000
    # Tries after the first; before each a wait that doubles, from half to one and a half times backoff_seconds.
    retries: int = 5
    backoff_seconds: float = 0.5
    # The longest wait for a connection, and then for the next bytes.
    timeout_seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.max_bytes < 1 or not 0 < self.timeout_seconds <= DAY_SECONDS:
            raise UserError(
                f"data.fetch: max_bytes must be above 0, and timeout_seconds above 0 and at most a day ({DAY_SECONDS})."
            )
        if not 0 <= self.retries <= MOST_RETRIES or not 0 <= self.backoff_seconds <= DAY_SECONDS:
            raise UserError(
                f"data.fetch: retries must be from 0 to {MOST_RETRIES}, and backoff_seconds from 0 to a day"
                f" ({DAY_SECONDS})."
            )


def is_url(text: str) -> bool:
    """Whether the text names a place by a scheme (`s3://...`). A path with a colon in it is a path."""
    return _SCHEME.match(text) is not None


def shown(url: str) -> str:
    """The URL as it may stand in messages and logs: without password and query, which may hold a signature."""
    if not is_url(url):
        return url
    scheme, _, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    path = path.partition("?")[0] if scheme.lower() in HTTP_SCHEMES else path
    return f"{scheme}://{place.rpartition('@')[2]}{slash}{path}"


def join(directory: str, name: str) -> str:
    """The path or URL of `name` in a directory."""
    return f"{directory.rstrip('/')}/{name}" if is_url(directory) else str(Path(directory) / name)


def parent(path: str) -> str:
    """The directory of a path or URL."""
    return path.partition("?")[0].rpartition("/")[0] if is_url(path) else str(Path(path).parent)


# Finding


def expand(pattern: str, options: FetchOptions | None = None) -> tuple[str, ...]:
    """The tar files of a directory, a glob or a brace pattern, local or not, sorted.

    An HTTP server cannot list: there a brace pattern names the shards, or the manifest in the directory does. Raises
    UserError when there is none, or the pattern would run a program (`pipe:`).
    """
    if not pattern.strip():
        raise UserError("data.shards: the place of the shards is empty; name a directory, a pattern or a URL.")
    found: list[str] = []
    for part in _braces(pattern):
        refuse_programs(part)
        if not is_url(part):
            # glob: Path.glob takes no absolute patterns.
            found += map(str, Path(part).glob("*.tar")) if Path(part).is_dir() else glob.glob(part)  # noqa: PTH207
        elif _scheme(part) in HTTP_SCHEMES:
            found += _expand_http(part, options or FetchOptions())
        else:
            found += _expand_store(part, options or FetchOptions())
    if not found:
        raise UserError(
            f"data.shards: there are no shards at {shown(pattern)}; make some with tools/render_shards.py (rendered"
            " signs) or tools/make_shards.py (your pictures)."
        )
    return tuple(sorted(set(found)))


def _braces(pattern: str) -> list[str]:
    parts = []
    # Each range by itself first: the expansion keeps all of a range in memory.
    if all(abs(int(last) - int(first)) <= MAX_PATHS for first, last in _RANGE.findall(pattern)):
        try:
            parts = list(itertools.islice(braceexpand(pattern), MAX_PATHS + 1))
        except ValueError as error:
            raise UserError(
                f"data.shards: {pattern} has a brace without its partner; close it, or escape it."
            ) from error
    if not 0 < len(parts) <= MAX_PATHS:
        raise UserError(f"data.shards: {pattern} stands for over {MAX_PATHS} shards; mend its range.")
    # A file:// URL is a path, and everything that works on paths works on it.
    return [local_path(part) for part in parts]


def local_path(text: str) -> str:
    return text.partition("://")[2] if text.lower().startswith(("file://", "local://")) else text


def refuse_programs(text: str) -> None:
    """Raises UserError for what would run a program, and for a scheme that is not a place where files lie."""
    if _PROGRAM.match(text):
        raise UserError(f"data.shards: {text} would run a program; give a directory of tar files.")
    if "::" in re.sub(r"\[[0-9A-Fa-f:.]*\]", "", text) and "://" in text:
        raise UserError(f"data.shards: {shown(text)} chains file systems (::); give the URL of the shards themselves.")
    if not is_url(text):
        return
    from fsspec import available_protocols

    known = set(available_protocols()) - _NO_STORES
    if _scheme(text) not in known:
        raise UserError(
            f"data.shards: {shown(text)}: shards are not read from {_scheme(text)}://."
            f"{did_you_mean(_scheme(text), known)} Give a path, or a URL that starts with http, https, s3, gs or"
            " another store that fsspec knows."
        )


def _scheme(url: str) -> str:
    return url.partition("://")[0].lower()


def _expand_http(url: str, options: FetchOptions) -> list[str]:
    path = urllib.parse.urlsplit(url).path
    if "*" in path:
        raise UserError(
            f"data.shards: {shown(url)}: a web server does not list its files; write a brace pattern such as"
            " {000000..000999}.tar."
        )
    if path.endswith(".tar"):
        return [url]
    try:
        return [join(url, name) for name in _manifest_names(read_bytes(join(url, MANIFEST), options))]
    except StorageError as error:
        raise UserError(
            f"data.shards: {shown(url)}: a web server does not list its files, and there is no {MANIFEST} to be read"
            f" in this directory; write a brace pattern such as {{000000..000999}}.tar. ({error})"
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"data.shards: {shown(join(url, MANIFEST))} is no shard manifest ({error!r}).") from error


def _manifest_names(data: bytes) -> list[str]:
    names = [entry["name"] for entry in json.loads(data)["shards"]]
    for name in names:
        if not isinstance(name, str) or PurePosixPath(name).name != name or "\\" in name:
            raise ValueError(f"a shard is called {name!r}")
    return names


def _expand_store(url: str, options: FetchOptions) -> list[str]:
    if any(character in url for character in "*?["):
        return attempts(url, options, partial(_glob_store, url, options.timeout_seconds))
    return [url] if url.endswith(".tar") else list(list_files(url, ".tar", options))


def _glob_store(url: str, timeout_seconds: float) -> list[str]:
    system, path = _file_system(url)
    return [system.unstrip_protocol(found) for found in _within(timeout_seconds, system.glob, path)]


# Reading and writing


def list_files(directory: str, suffix: str, options: FetchOptions | None = None) -> tuple[str, ...]:
    """The files of a directory whose names end in `suffix`, sorted; none where there is no such directory.

    Raises StorageError when the place cannot be listed (HTTP never can).
    """
    directory = local_path(directory)
    refuse_programs(directory)
    if not is_url(directory):
        return tuple(sorted(str(path) for path in Path(directory).glob("*") if path.name.endswith(suffix)))
    if _scheme(directory) in HTTP_SCHEMES:
        raise StorageError(f"{shown(directory)}: a web server does not list its files.")
    options = options or FetchOptions()
    return tuple(sorted(attempts(directory, options, partial(_list_store, directory, suffix, options))))


def _list_store(directory: str, suffix: str, options: FetchOptions) -> list[str]:
    system, path = _file_system(directory)
    try:
        entries = _within(options.timeout_seconds, system.ls, path, True)
    except FileNotFoundError:
        return []
    return [system.unstrip_protocol(entry["name"]) for entry in entries if entry["name"].endswith(suffix)]


def read_bytes(url: str, options: FetchOptions | None = None, max_bytes: int = 256_000_000) -> bytes:
    """What a file holds, wherever it lies. Raises StorageError when it cannot be read or is longer than `max_bytes`."""
    url = local_path(url)
    refuse_programs(url)
    if not is_url(url):
        try:
            with Path(url).open("rb") as stream:
                data = stream.read(max_bytes + 1)
        except OSError as error:
            raise StorageError(f"{url} cannot be read ({error.strerror}).") from error
    else:
        options = options or FetchOptions()
        data = attempts(url, options, partial(_read_remote, url, max_bytes, options.timeout_seconds))
    if len(data) > max_bytes:
        raise StorageError(f"{shown(url)} is longer than {max_bytes} bytes; it cannot be what it should be.")
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
    """Whether there is a file. Raises StorageError when the place does not say."""
    url = local_path(url)
    refuse_programs(url)
    if not is_url(url):
        return Path(url).is_file()
    options = options or FetchOptions()
    return attempts(url, options, partial(_exists_remote, url, options.timeout_seconds))


def _exists_remote(url: str, timeout_seconds: float) -> bool:
    try:
        # Opened rather than asked with HEAD, which not every server knows.
        with open_remote(url, timeout_seconds):
            return True
    except FileNotFoundError:
        return False
    except urllib.error.HTTPError as error:
        if error.code in (404, 410):
            return False
        raise


def publish(local: Path, target: str, options: FetchOptions | None = None) -> None:
    """Copies a finished file to a path or URL, where it appears whole or not at all; one that stands there is replaced.

    Raises StorageError when the place takes no files.
    """
    target = local_path(target)
    refuse_programs(target)
    if not is_url(target):
        _publish_locally(local, Path(target))
    elif _scheme(target) in HTTP_SCHEMES:
        raise StorageError(
            f"{shown(target)}: nothing is written over HTTP; name a directory or a store (s3://, gs://)."
        )
    else:
        options = options or FetchOptions()
        attempts(target, options, partial(_publish_remotely, local, target))


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


def _publish_remotely(local: Path, target: str) -> None:
    system, path = _file_system(target)
    whole = _scheme(target) in _WHOLE_UPLOADS
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


# What is far away


@dataclass(frozen=True)
class _Source:
    """An open remote file: `read` gives the next bytes, b"" at the end; `length` None: it is not said beforehand."""

    read: Callable[[], bytes]
    length: int | None
    # Whether an early end would be noticed by the protocol itself.
    ends_itself: bool = False


@contextlib.contextmanager
def open_remote(url: str, timeout_seconds: float) -> Iterator[_Source]:
    if _scheme(url) in HTTP_SCHEMES:
        with urllib.request.urlopen(_http_request(url), timeout=timeout_seconds) as response:
            length = response.headers.get("Content-Length")
            yield _Source(
                partial(response.read, 1 << 20), int(length) if (length or "").isdigit() else None, response.chunked
            )
        return
    system, path = _file_system(url)
    about = _within(timeout_seconds, system.info, path)
    if about["type"] != "file":
        raise FileNotFoundError(path)
    stream = _within(timeout_seconds, system.open, path, "rb", BLOCK_BYTES)
    try:
        yield _Source(partial(_within, timeout_seconds, stream.read, BLOCK_BYTES), about["size"])
    finally:
        stream.close()


def _http_request(url: str) -> urllib.request.Request:
    parts = urllib.parse.urlsplit(url)
    user, separator, place = parts.netloc.rpartition("@")
    # identity: lengths and checksums are those of the file itself. Some servers turn Python's own agent away.
    headers = {"Accept-Encoding": "identity", "User-Agent": f"vlad/{vlad.__version__}"}
    path = urllib.parse.quote(parts.path, safe="/%!$&'()*+,;=:@~")
    request = urllib.request.Request(urllib.parse.urlunsplit(parts._replace(netloc=place, path=path)), headers=headers)
    if separator:
        token = base64.b64encode(urllib.parse.unquote(user).encode()).decode("ascii")
        request.add_unredirected_header("Authorization", f"Basic {token}")  # never handed on to another server
    return request


def _file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, with the path in it."""
    import fsspec

    try:
        # fsspec keeps one a process, with an event loop of that process (asked for in the worker, not before).
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = _EXTRAS.get(_scheme(url))
        remedy = f"install it: pip install {package}" if package else str(error)
        raise StorageError(
            f"{shown(url)} needs a package that is not installed; {remedy}"
            f"{' (the extra vlad[s3])' if package == 's3fs' else ''}."
        ) from error
    system.invalidate_cache()  # of listings: a shard may have been written since
    return system, path


def _within(seconds: float, function: Callable[..., Result], *arguments: Any) -> Result:
    """What the call gives. Raises TimeoutError when it takes longer; it is left behind then, in a thread of its own."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function(*arguments))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"nothing came for {seconds:g} seconds")
    return results[0]


def attempts(url: str, options: FetchOptions, action: Callable[[], Result]) -> Result:
    """What `action` gives, tried again after what may pass. Raises StorageError: the URL, the reason, the tries."""
    for attempt in itertools.count(1):
        try:
            return action()
        except UserError:
            raise
        except Exception as error:
            if isinstance(error, (TypeError, AttributeError, NameError, AssertionError, LookupError)):
                raise  # ours, not the network's
            if attempt > options.retries or not _may_pass(error):
                tries = "1 try" if attempt == 1 else f"{attempt} tries"
                damaged = isinstance(error, DamagedError)
                remedy = "copy or make it again" if damaged else "check the address, your access and the network"
                raise StorageError(
                    f"data.shards: {shown(url)} failed after {tries}: {_reason(error, options)}; {remedy}."
                ) from error
            wait = options.backoff_seconds * 2 ** (attempt - 1) * _JITTER.uniform(0.5, 1.5)
            time.sleep(min(LONGEST_WAIT_SECONDS, max(wait, _asked_wait_seconds(error))))
    raise AssertionError("the loop above ends by returning or raising")


def _may_pass(error: Exception) -> bool:
    """Whether a later try may fare better."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in (408, 425, 429) or error.code >= 500
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)):
        return False
    if isinstance(cause, (ssl.SSLCertVerificationError, http.client.InvalidURL, NotImplementedError)):
        return False
    return type(cause).__name__ not in _NOT_TRANSIENT


def _asked_wait_seconds(error: Exception) -> float:
    """The wait that a busy server asks for, 0 where it does not."""
    if not isinstance(error, urllib.error.HTTPError):
        return 0.0
    asked = error.headers.get("Retry-After", "")
    return float(asked) if asked.isdigit() else 0.0


def _reason(error: Exception, options: FetchOptions) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, FileNotFoundError):
        return "it is not there"
    if isinstance(cause, PermissionError):
        return "access is refused"
    if isinstance(cause, TimeoutError):
        return f"nothing came for {options.timeout_seconds:g} seconds"
    return (" ".join(str(cause).split()) or type(cause).__name__)[:300].rstrip(".")
