"""Shard lint: checks every sample, reports each finding with its shard and key, and counts what the shards contain.

    pattern -> listing with manifests -> each shard's headers -> chunks of samples (checks, counts) -> report

Shards are only read. Memory stays bounded whatever the size of the set: the report keeps counts, a few examples and a
few images of each kind of finding; keys go to files on disk.
"""
