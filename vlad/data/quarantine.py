"""The file that names the samples which cannot be used, each once however many epochs come to it."""

from __future__ import annotations

import json
from pathlib import Path

from vlad.data.storage.retries import StorageError


class Quarantine:
    """Lines {"key", "shard", "reason"} in a file that all workers of a rank, and all ranks of a machine, add to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listed: set[bytes] = set()
        self._read_bytes = 0

    def add(self, key: str, shard: str, reason: str) -> None:
        """Lists a sample unless it is listed. Raises StorageError where the file cannot be written."""
        record = {"key": key, "shard": shard, "reason": reason}
        line = json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        try:
            with self.path.open("ab+") as stream:
                # What was added since, here or by another process: a long file is not read again for each sample.
                stream.seek(self._read_bytes)
                new = stream.read()
                whole = new[: new.rfind(b"\n") + 1]  # another one may be at its line
                self._read_bytes += len(whole)
                self._listed.update(whole.splitlines(keepends=True))
                if line not in self._listed:
                    stream.write(line)
        except OSError as error:
            raise StorageError(
                f"{self.path} cannot be written ({error.strerror}), and bad samples are listed there; make room, or"
                " give yourself permission to write it."
            ) from error
