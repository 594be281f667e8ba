"""Makes shards: python tools/make_shards.py SOURCE --out SHARDS. The same as `vlad shards make`."""

from vlad.cli.shards import MAKE

if __name__ == "__main__":
    MAKE.run_script()
