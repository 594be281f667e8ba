"""WebDataset shards: reading, writing, and the tar index."""
