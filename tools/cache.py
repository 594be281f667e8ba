"""Caches frozen models' outputs: python tools/cache.py CONFIG --out DIR [key=value ...]. The same as `vlad cache`."""

from vlad.cli.train import CACHE

if __name__ == "__main__":
    CACHE.run_script()
