"""Checks shards: python tools/validate_shards.py SHARDS [--html DIR]. The same as `vlad shards check`."""

from vlad.cli.shards import CHECK

if __name__ == "__main__":
    CHECK.run_script()
