"""What can be wrong with a set of shards."""

from __future__ import annotations

from dataclasses import dataclass

# What can be wrong, in the order it is told.
KINDS = {
    "shard": "shards that cannot be read, or are damaged",
    "manifest": "shards that are not what their manifest says",
    "name": "members with absolute or climbing names, links, devices (never read)",
    "member": "members of kinds that are never read",
    "double": "samples whose members are too large or stand there twice",
    "incomplete": "samples without an image or without a record",
    "bomb": "images over the pixel limit (never decoded)",
    "image": "images that do not decode",
    "record": "records that cannot be read",
    "caption": "missing captions",
    "text": "lines without text",
    "outside": "polygons that leave the image",
    "crossing": "polygons that cross themselves",
    "flat": "polygons without area",
    "font": "lines with characters that no font of ours draws (training ignores them)",
    "duplicate": "keys that stand there more than once",
    "launch": "launches that the set is too small for",
}


@dataclass(frozen=True)
class Finding:
    """Something wrong; `key` is None where it is about a whole shard, `shard` where it is about the whole set."""

    kind: str
    shard: str | None
    key: str | None
    detail: str
