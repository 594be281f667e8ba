"""Data: shards, decoding, rendered signs, importers."""
