"""Storage of shards: local paths, HTTP(S) and object stores, with retries and a cache of local copies."""
