"""The quarantine: a file that lists the samples which cannot be used, each once in a run of many epochs."""

from __future__ import annotations

import json
from pathlib import Path

from vlad.data.storage.retries import StorageError
from vlad.utils.secrets import redacted


class Quarantine:
    """Lines of {"key", "shard", "reason"}; all workers and ranks of a machine append to the same file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listed: set[bytes] = set()
        self._read_bytes = 0

    def add(self, key: str, shard: str, reason: str) -> None:
        """Lists a sample, unless it is listed already. Raises StorageError where the file cannot be written."""
        record = {"key": key, "shard": redacted(shard), "reason": redacted(reason)}
        line = json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        try:
            with self.path.open("ab+") as stream:
                # Reads only what was appended since, here or by another process.
                stream.seek(self._read_bytes)
                new = stream.read()
                whole = new[: new.rfind(b"\n") + 1]  # another process may be in the middle of its line
                self._read_bytes += len(whole)
                self._listed.update(whole.splitlines(keepends=True))
                if line not in self._listed:
                    stream.write(line)
        except OSError as error:
            raise StorageError(
                f"{self.path} cannot be written ({error.strerror}), and it has to list a bad sample; make room, or give"
                " yourself permission to write it."
            ) from error
