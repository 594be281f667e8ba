"""The journal of an unfinished set of shards, from which an interrupted `make_shards` resumes."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlad.data.importers.sources import Skipped
from vlad.data.shards.writer import Statistics, full_disk, write_text_file
from vlad.utils.errors import UserError
from vlad.utils.json_objects import parse_object


@dataclass(frozen=True)
class ShardRecord:
    """A finished shard. The field names are the journal's JSON keys."""

    number: int
    entry: dict[str, Any] | None  # for the manifest; None: every image was skipped, and there is no file
    first: str  # key of the shard's first image: a different one means that the source has changed
    places: int  # images of the source that the shard covers, skipped ones included
    statistics: Statistics
    skipped: tuple[Skipped, ...]

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(line: str) -> ShardRecord:
        """The record of one line. Raises ValueError, KeyError or TypeError for any other text."""
        record = parse_object(line)
        statistics = Statistics(**record.pop("statistics"))
        skipped = tuple(Skipped(**entry) for entry in record.pop("skipped"))
        return ShardRecord(**record, statistics=statistics, skipped=skipped)


class Journal:
    """A JSONL file beside the growing shards: the settings on its first line, then one line per finished shard."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resume(self, about: dict[str, Any]) -> dict[int, ShardRecord]:
        """The finished shards of an interrupted run with these settings; starts a new journal where there is none.

        Raises UserError where the finished shards were made with other settings.
        """
        lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n") if self.path.exists() else [""]
        begun: Any = None
        records: dict[int, ShardRecord] = {}
        try:
            begun = parse_object(lines[0])
            for line in lines[1:]:
                record = ShardRecord.from_json(line)
                records[record.number] = record
        except (ValueError, KeyError, TypeError):
            pass  # the machine stopped while this line was written
        if records and begun != about:
            raise UserError(
                f"{self.path.parent} holds shards that were begun from another source or with other settings (see"
                f" {self.path.name} there); name another directory, or add --overwrite to replace them."
            )
        text = "\n".join([json.dumps(about), *(record.to_json() for record in records.values())])
        write_text_file(text + "\n", self.path.parent, self.path.name)
        return records

    def add(self, record: ShardRecord) -> None:
        """Appends a finished shard. Raises UserError when the disk is full."""
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(record.to_json() + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise full_disk(self.path.parent, error) or error from None
