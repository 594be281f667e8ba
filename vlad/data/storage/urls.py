"""URLs and paths as text; nothing here accesses a file."""

from __future__ import annotations

import re
from pathlib import Path

HTTP_SCHEMES = ("http", "https")
_NAMED_BEFORE_AT = ("abfs", "abfss")  # Azure's CONTAINER@ACCOUNT.dfs.core.windows.net: nothing secret
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def is_url(text: str) -> bool:
    """Whether the text starts with a scheme (`s3://`). A path with a colon in it is a path."""
    return _SCHEME.match(text) is not None


def scheme(url: str) -> str:
    """The part before `://`, in lower case."""
    return url.partition("://")[0].lower()


def display_url(url: str) -> str:
    """The URL for messages and logs: without password, and without query, which may hold a signature."""
    if not is_url(url):
        return url
    scheme, _, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    path = path.partition("?")[0] if scheme.lower() in HTTP_SCHEMES else path
    place = place if scheme.lower() in _NAMED_BEFORE_AT else place.rpartition("@")[2]
    return f"{scheme}://{place}{slash}{path}"


def join_path(directory: str, name: str) -> str:
    """The path or URL of `name` in a directory."""
    return f"{directory.rstrip('/')}/{name}" if is_url(directory) else str(Path(directory) / name)


def parent_directory(path: str) -> str:
    """The directory of a path or URL."""
    return path.partition("?")[0].rpartition("/")[0] if is_url(path) else str(Path(path).parent)


def local_path(text: str) -> str:
    """The path of a file:// URL; anything else as it is."""
    return text.partition("://")[2] if text.lower().startswith(("file://", "local://")) else text
