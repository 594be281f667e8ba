"""The shards of a pattern, with what their manifests say of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlad.data.lint.findings import Finding
from vlad.data.options import FetchOptions
from vlad.data.shards.reader import ShardEntry, manifest_entries
from vlad.data.storage import locations as storage
from vlad.data.storage.retries import StorageError
from vlad.data.storage.urls import is_url, join, parent, shown
from vlad.utils.errors import reason_of


@dataclass(frozen=True)
class ListedShard:
    """A shard that is there, and what its manifest says of it (None: nothing)."""

    path: str
    said: ShardEntry | None = None

    @property
    def expected(self) -> tuple[str, int | None, str | None]:
        """What a local copy of it is asked for with: where it lies, its length and its checksum."""
        return (self.path, None, None) if self.said is None else (self.path, self.said.bytes, self.said.sha256)


@dataclass(frozen=True)
class ShardSet:
    """All shards of a pattern, and what is wrong with their manifests."""

    pattern: str
    shards: tuple[ListedShard, ...]
    manifests: int
    findings: tuple[Finding, ...]

    @property
    def listed_samples(self) -> int | None:
        """How many samples the manifests name; None where one does not."""
        said = [shard.said for shard in self.shards if shard.said is not None]
        return sum(entry.samples for entry in said) if len(said) == len(self.shards) else None


def list_set(pattern: str, cache: FetchOptions | None = None) -> ShardSet:
    """Finds the shards and reads their manifests. Raises UserError where there are no shards."""
    # Paths in one spelling: they are looked up in the manifests.
    paths = tuple(path if is_url(path) else str(Path(path)) for path in storage.expand(pattern, cache))
    listed: dict[str, ShardEntry] = {}
    findings: list[Finding] = []
    manifests = 0
    for directory in sorted({parent(path) for path in paths}):
        manifest = join(directory, storage.MANIFEST)
        if not _is_there(manifest, cache):
            continue
        manifests += 1
        try:
            entries = manifest_entries(storage.read_bytes(manifest, cache), directory)
        except StorageError as error:
            findings.append(Finding("manifest", shown(manifest), None, str(error)))
            continue
        except storage.NOT_A_MANIFEST as error:
            findings.append(Finding("manifest", shown(manifest), None, f"it is no shard manifest: {reason_of(error)}"))
            continue
        listed |= entries
        if not pattern.endswith(".tar") and not any(character in pattern for character in "*?[{"):
            findings += [
                Finding("manifest", shown(path), None, "the manifest lists it, but it is not there")
                for path in entries.keys() - set(paths)
            ]
        findings += [
            Finding("manifest", shown(path), None, "the manifest beside it does not list it")
            for path in paths
            if parent(path) == directory and path not in entries
        ]
    shards = tuple(ListedShard(path, listed.get(path)) for path in paths)
    return ShardSet(shown(pattern), shards, manifests, tuple(findings))


def _is_there(manifest: str, cache: FetchOptions | None) -> bool:
    try:
        return storage.exists(manifest, cache)
    except StorageError:  # stores refuse to say of what is not there; were they down, the shards would tell
        return False
