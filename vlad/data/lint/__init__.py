"""Whether shards are sound: every sample looked at, what is wrong told with shard and key, what they hold counted.

    pattern -> listing -> inspection of every shard (headers) and chunk of samples (checks, counts) -> report

Nothing is changed. Memory is bounded on a set of any size: counts, a few examples of every finding, a few images;
keys go through files on disk.
"""
