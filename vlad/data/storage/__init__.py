"""Where shards lie: local paths, HTTP(S), object stores; retries and local copies."""
