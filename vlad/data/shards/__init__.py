"""WebDataset shards: reading, writing, and the tar index.

The format and the tar writer are WebDataset's. The reader is our own: `webdataset` reads streams, and an exact resume
needs random access to samples.
"""
