"""Keys that stand in a set more than once, found in bounded memory."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO


class KeyBook:
    """All keys with the shards they stand in, on disk in parts: a part alone is held in memory to find doubles."""

    PARTS = 256

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files = ExitStack()
        self._parts: dict[int, TextIO] = {}

    def add(self, key: str, shard: int) -> None:
        """Notes that a shard has the key."""
        number = zlib.crc32(key.encode("utf-8", "surrogatepass")) % self.PARTS
        if number not in self._parts:
            self._parts[number] = self._files.enter_context(self._path(number).open("w", encoding="ascii"))
        self._parts[number].write(f"{shard} {json.dumps(key)}\n")

    def doubles(self) -> Iterator[tuple[str, list[int]]]:
        """Keys that stand in the set more than once, with their shards. Nothing can be added any more."""
        self._files.close()
        for number in sorted(self._parts):
            places: dict[str, list[int]] = {}
            with self._path(number).open(encoding="ascii") as stream:
                for line in stream:
                    shard, _, key = line.partition(" ")
                    places.setdefault(key, []).append(int(shard))
            yield from ((json.loads(key), shards) for key, shards in places.items() if len(shards) > 1)

    def _path(self, number: int) -> Path:
        return self._directory / f"{number}.keys"
