"""Remote files opened for reading: over HTTP, or from an object store.

HTTP uses the standard library, which keeps no connection open that would outlive a fork.
"""

from __future__ import annotations

import base64
import contextlib
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import vlad
from vlad.data.storage.object_stores import file_system
from vlad.data.storage.retries import with_timeout
from vlad.data.storage.urls import HTTP_SCHEMES, scheme

BLOCK_BYTES = 8 << 20  # per read from an object store


@dataclass(frozen=True)
class RemoteFile:
    """An open file: `read` gives the next bytes, b"" at the end; `length` is None where the server does not give it."""

    read: Callable[[], bytes]
    length: int | None
    # Whether the protocol itself detects an early end.
    ends_itself: bool = False


@contextlib.contextmanager
def open_remote(url: str, timeout_seconds: float) -> Iterator[RemoteFile]:
    """The file at a URL, for as long as the context. Raises the errors of the server, the store or the network."""
    if scheme(url) in HTTP_SCHEMES:
        with urllib.request.urlopen(_http_request(url), timeout=timeout_seconds) as response:
            length = response.headers.get("Content-Length")
            yield RemoteFile(
                partial(response.read, 1 << 20), int(length) if (length or "").isdigit() else None, response.chunked
            )
        return
    system, path = file_system(url)
    about = with_timeout(timeout_seconds, system.info, path)
    if about["type"] != "file":
        raise FileNotFoundError(path)
    stream = with_timeout(timeout_seconds, system.open, path, "rb", BLOCK_BYTES)
    try:
        yield RemoteFile(partial(with_timeout, timeout_seconds, stream.read, BLOCK_BYTES), about["size"])
    finally:
        stream.close()


def _http_request(url: str) -> urllib.request.Request:
    parts = urllib.parse.urlsplit(url)
    user, separator, place = parts.netloc.rpartition("@")
    # identity: lengths and checksums are those of the file itself. Some servers refuse Python's own user agent.
    headers = {"Accept-Encoding": "identity", "User-Agent": f"vlad/{vlad.__version__}"}
    path = urllib.parse.quote(parts.path, safe="/%!$&'()*+,;=:@~")
    request = urllib.request.Request(urllib.parse.urlunsplit(parts._replace(netloc=place, path=path)), headers=headers)
    if separator:
        token = base64.b64encode(urllib.parse.unquote(user).encode()).decode("ascii")
        request.add_unredirected_header("Authorization", f"Basic {token}")  # not sent on to another server
    return request
